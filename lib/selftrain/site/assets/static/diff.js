"use strict";
/* Word-level difference of two texts: longest common subsequence over words, each with the blanks that follow it. */
const diff = (() => {
  const LIMIT = 16e6; // cells of the table, 4000 words against 4000; beyond it both texts count as changed throughout

  /* Both texts as parts {text, kept}, in order; `share`: words kept over words of the longer text, 0 to 1. */
  function words(earlier, later) {
    const [a, b] = [earlier, later].map((text) => text.match(/\S+\s*|\s+/g) || []);
    const [x, y] = [a, b].map((list) => list.map((word) => word.trim()));
    const [keptX, keptY] = [x, y].map((list) => list.map(() => false));
    const pairs = x.length * y.length < LIMIT ? common(x, y) : [];
    pairs.forEach(([i, j]) => { keptX[i] = keptY[j] = true; });
    return { earlier: parts(a, keptX), later: parts(b, keptY), share: pairs.length / Math.max(1, x.length, y.length) };
  }

  /* Places (i, j) of a longest common subsequence. */
  function common(x, y) {
    const width = y.length + 1;
    const table = new Uint16Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i -= 1) {
      for (let j = y.length - 1; j >= 0; j -= 1) {
        const here = i * width + j;
        table[here] = x[i] === y[j] ? table[here + width + 1] + 1 : Math.max(table[here + width], table[here + 1]);
      }
    }
    const pairs = [];
    for (let i = 0, j = 0; i < x.length && j < y.length;) {
      if (x[i] === y[j]) pairs.push([i++, j++]);
      else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i += 1;
      else j += 1;
    }
    return pairs;
  }

  function parts(list, kept) {
    const made = [];
    list.forEach((text, i) => {
      const last = made[made.length - 1];
      if (last && last.kept === kept[i]) last.text += text;
      else made.push({ text, kept: kept[i] });
    });
    return made;
  }

  return { words };
})();
