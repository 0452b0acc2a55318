"use strict";
/* The stored data: an index of all chains, and a file a panel, loaded by a script element when it is first needed. */
const store = (() => {
  const { index, panels } = SELFTRAIN;
  const waiting = new Map();
  const named = (fields, row) => Object.fromEntries(fields.map((field, i) => [field, row[i]]));

  function load(file) {
    if (!waiting.has(file)) {
      waiting.set(file, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${file}`;
        script.onload = () => resolve(panels[file]);
        script.onerror = () => reject(new Error(`data/${file} is missing; build the site again`));
        document.head.append(script);
      }));
    }
    return waiting.get(file);
  }

  /* A chain with its cycles, questions and answers. Answers of a cycle: objects of answerFields, `text` being the text itself. */
  async function chain(entry) {
    const panel = await load(entry.file);
    const own = panel.chains[entry.chain];
    const cycles = own.cycles.map((row) => named(index.cycleFields, row));
    const rows = (cycle) => (own.answers[cycle] || []).map((row) => named(index.answerFields, row));
    const answers = new Map(cycles.map(({ cycle }) => [cycle, rows(cycle).map((a) => ({ ...a, text: panel.texts[a.text] }))]));
    const asked = [...new Set([...answers.values()].flat().map((a) => a.question))].sort();
    return { entry, cycles, answers, questions: asked.map((id) => ({ id, ...panel.questions[id] })) };
  }

  return { index, chain };
})();
