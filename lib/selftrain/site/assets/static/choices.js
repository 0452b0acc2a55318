"use strict";
/* Choosing a chain by its settings. Each choice narrows those after it; a choice that no longer fits moves to the nearest that does. */
const choices = (() => {
  const keys = store.index.keys.map(([key]) => key);
  const all = store.index.chains;
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : 0);
  const agree = (chain, wanted, some) => some.every((key) => chain[key] === wanted[key]);

  /* The values of a key within the study (all values for the study itself), each with whether the choices before it allow it. */
  function options(key, wanted) {
    const before = keys.slice(0, keys.indexOf(key));
    const study = key === "study" ? all : all.filter((chain) => chain.study === wanted.study);
    const allowed = new Set(study.filter((chain) => agree(chain, wanted, before)).map((chain) => chain[key]));
    return [...new Set(study.map((chain) => chain[key]))].sort(order).map((value) => ({ value, allowed: allowed.has(value) }));
  }

  const distance = (a, b) => (typeof a === "number" && typeof b === "number" ? Math.abs(a - b) : Number(a !== b));

  /* The chain that keeps the wanted values, first keys first; where one cannot be kept, the nearest number or the first value. */
  function nearest(wanted) {
    let left = all;
    for (const key of keys) {
      const best = Math.min(...left.map((chain) => distance(chain[key], wanted[key])));
      left = left.filter((chain) => distance(chain[key], wanted[key]) === best);
      left = left.filter((chain) => chain[key] === left[0][key]);
    }
    return left[0];
  }

  const find = (study, name) => all.find((chain) => chain.study === study && chain.chain === name);
  const shown = (key, value) => (value === null || value === "" ? "–" : key === "regime" ? value.toUpperCase() : String(value));

  return { keys, options, nearest, find, shown };
})();
