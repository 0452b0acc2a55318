"use strict";
/* The sample browser: its state, the page that shows it, the address that keeps it, and the keys. */
(() => {
  const by = (id) => document.getElementById(id);
  const { element } = answers;
  const state = { entry: null, cycle: NaN, question: null, compare: "none" };
  let chain = null;
  let request = 0;
  const cycles = () => chain.cycles.map((row) => row.cycle);
  const items = () => [...by("answers").children];

  function fromAddress() {
    const view = new URLSearchParams(location.hash.slice(1));
    const entry = choices.find(view.get("study"), view.get("chain"));
    Object.assign(state, { cycle: parseInt(view.get("cycle"), 10), question: view.get("q"), compare: view.get("with") || "none" });
    show(entry || store.index.chains[0], view.has("chain") && !entry ? "This site has no such chain; here is its first one. " : "");
  }

  async function show(entry, note = "") {
    state.entry = entry;
    const own = (request += 1);
    const loaded = await store.chain(entry).catch((error) => { by("said").textContent = error.message; });
    if (!loaded || own !== request) return;
    chain = loaded;
    document.body.style.setProperty("--trait", store.index.colours[entry.trait]);
    settle();
    choosers();
    controls();
    render(note);
  }

  /* Keep cycle, question and comparison within what the chain has. */
  function settle() {
    const have = cycles();
    const wanted = Number.isNaN(state.cycle) ? 0 : state.cycle;
    state.cycle = have.reduce((best, cycle) => (Math.abs(cycle - wanted) < Math.abs(best - wanted) ? cycle : best));
    if (!chain.questions.some((q) => q.id === state.question)) state.question = chain.questions.length ? chain.questions[0].id : null;
    if (!["none", "previous", ...have.map(String)].includes(state.compare)) state.compare = "none";
  }

  function fill(select, options, value) {
    select.replaceChildren(...options.map((o) => Object.assign(new Option(o.text, o.value, false, o.value === value), { disabled: Boolean(o.disabled) })));
  }

  function choosers() {
    for (const [key, name] of store.index.keys) {
      const id = `choose-${key}`;
      if (!by(id)) {
        const select = Object.assign(element("select"), { id });
        select.addEventListener("change", () => show(choices.nearest({ ...state.entry, [key]: JSON.parse(select.value) })));
        by("choices").append(element("div", "field", Object.assign(element("label", "", name), { htmlFor: id }), select));
      }
      const found = choices.options(key, state.entry);
      const options = found.map((o) => ({ text: choices.shown(key, o.value), value: JSON.stringify(o.value), disabled: !o.allowed }));
      fill(by(id), options, JSON.stringify(state.entry[key]));
      by(id).parentElement.hidden = found.length === 1 && [null, ""].includes(found[0].value);
    }
  }

  function controls() {
    const { entry } = state;
    if (by("cycles").dataset.cycles !== cycles().join()) {
      by("cycles").dataset.cycles = cycles().join();
      by("cycles").replaceChildren(by("cycles").firstElementChild, ...cycles().map((cycle) => {
        const radio = Object.assign(element("input"), { type: "radio", name: "cycle", value: cycle, id: `cycle-${cycle}` });
        radio.addEventListener("change", () => go(cycle));
        return element("label", "", radio, element("span", "", cycle < 0 ? "base" : String(cycle)));
      }));
    }
    fill(by("question"), chain.questions.map((q) => ({ text: q.prompt + (q.set === "direct" ? "" : ` (${q.set}: not in the score)`), value: q.id })), state.question);
    const names = cycles().map((cycle) => ({ text: chart.cycleName(cycle), value: String(cycle) }));
    fill(by("with"), [{ text: "nothing", value: "none" }, { text: "the cycle before", value: "previous" }, ...names], state.compare);
    by("facts").replaceChildren(`Model ${entry.model}. Judge ${entry.judge} ${entry.judge_hash}. Study ${entry.study}: ${store.index.kept[entry.study]}`,
      `${entry.complete ? "" : " This chain is not complete."} Chain `, element("code", "", entry.chain), ".");
  }

  /* The cycle to compare with; undefined where there is none, or it is the one shown. */
  function otherCycle() {
    const other = state.compare === "previous" ? cycles()[cycles().indexOf(state.cycle) - 1] : parseInt(state.compare, 10);
    return Number.isNaN(other) || other === state.cycle ? undefined : other;
  }

  function render(note = "") {
    const { entry, cycle, question } = state;
    const row = chain.cycles.find((r) => r.cycle === cycle);
    const own = chain.answers.get(cycle).filter((a) => a.question === question);
    const other = otherCycle();
    const match = (a) => (other === undefined ? undefined : chain.answers.get(other).find((b) => b.question === question && b.sample === a.sample) || null);
    by(`cycle-${cycle}`).checked = true;
    chart.draw(by("chart"), chain.cycles, cycle, go);
    by("prompt").textContent = (chain.questions.find((q) => q.id === question) || { prompt: "No answers of this chain are stored." }).prompt;
    const beta = entry.beta === null ? "" : `, beta ${entry.beta}`;
    const judged = row.judged < row.requested ? `${row.judged} of ${row.requested} answers that were judged` : `${row.judged} judged answers`;
    by("said").textContent = `${note}${entry.trait}, ${entry.regime.toUpperCase()} ${entry.arm}, N=${entry.n_seed}, M=${entry.n_sampled}${beta}, seed ${entry.seed}. `
      + `${cycle < 0 ? "Base model" : `Cycle ${cycle}`}: trait score ${chart.score(row.trait)}, coherence ${chart.score(row.coherence)}, over ${judged}. `
      + `${own.length} of them below${other === undefined ? "" : `, set beside ${chart.cycleName(other)}`}.`;
    by("answers").replaceChildren(...own.map((a) => answers.item(a, cycle, match(a), other)));
    if (own.length) items()[0].tabIndex = 0;
    const view = { study: entry.study, chain: entry.chain, cycle, q: question || "", with: state.compare };
    history.replaceState(null, "", `#${new URLSearchParams(view)}`);
  }

  function focusAnswer(place) {
    items().forEach((one, i) => { one.tabIndex = i === place ? 0 : -1; });
    if (items()[place]) items()[place].focus();
  }

  /* Show a cycle; the reader stays at the answer with the same number. */
  function go(cycle) {
    const place = items().indexOf(document.activeElement);
    state.cycle = cycle;
    render();
    if (place >= 0) focusAnswer(Math.min(place, items().length - 1));
  }

  function ask(question) {
    state.question = by("question").value = question;
    render();
  }

  function moveQuestion(way) {
    const next = chain.questions[chain.questions.findIndex((q) => q.id === state.question) + way];
    if (next) ask(next.id);
    return Boolean(next);
  }

  /* The next answer; beyond the last one the next question's first, and back. */
  function moveAnswer(way) {
    const from = items().indexOf(document.activeElement);
    const place = from < 0 ? 0 : from + way;
    if (items()[place]) focusAnswer(place);
    else if (moveQuestion(way)) focusAnswer(way > 0 ? 0 : items().length - 1);
  }

  function compare(value) {
    state.compare = by("with").value = value;
    render();
  }

  function help() {
    by("help").hidden = !by("help").hidden;
    by("help-button").setAttribute("aria-expanded", String(!by("help").hidden));
  }

  const moveCycle = (way) => go(cycles()[cycles().indexOf(state.cycle) + way] ?? state.cycle);
  const arrows = { ArrowLeft: () => moveCycle(-1), ArrowRight: () => moveCycle(1) };
  const letters = {
    j: () => moveAnswer(1), k: () => moveAnswer(-1), "]": () => moveQuestion(1), "[": () => moveQuestion(-1),
    d: () => compare(state.compare === "none" ? "previous" : "none"), "?": help,
  };
  document.addEventListener("keydown", (event) => {
    if (!chain || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    const action = (event.target.matches("input") ? null : arrows[event.key]) || (by("letters").checked ? letters[event.key] : null);
    if (!action) return;
    event.preventDefault();
    action();
  });
  by("question").addEventListener("change", (event) => ask(event.target.value));
  by("with").addEventListener("change", (event) => compare(event.target.value));
  by("help-button").addEventListener("click", help);
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
})();
