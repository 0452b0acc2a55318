"use strict";
/* Answers as a list: scores, text, and where asked the same answer of another cycle beside it with the differing words marked. */
const answers = (() => {
  const element = (name, className, ...children) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };

  /* Control characters made visible, as their Unicode pictures. Every text is set as text, never as markup. */
  const visible = (text) => text
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f]/g, "\u2421");

  function meter(name, value) {
    const shown = element("span", `score ${name}`, element("span", "name", name), element("b", "", chart.score(value)));
    if (value === null) return shown;
    const bar = element("span", "bar", element("span", "fill"));
    bar.style.setProperty("--v", value);
    shown.append(bar);
    return shown;
  }

  function head(answer, title) {
    const line = element("p", "scores", element("span", "title", title), meter("trait", answer.trait), meter("coherence", answer.coherence));
    if (answer.status !== "judged") line.append(element("span", "flag", `not judged: ${answer.status}`));
    if (!answer.finished) line.append(element("span", "flag", "cut at the length limit"));
    return line;
  }

  /* The text, or its parts, those that were not kept as elements of the name `tag`. */
  function text(content, parts, tag) {
    const shown = element("div", "answer-text");
    shown.dir = "auto";
    if (!content) shown.append(element("span", "quiet", "(an empty answer)"));
    for (const part of parts || [{ text: content, kept: true }]) {
      const body = part.text.trimEnd();
      shown.append(part.kept ? visible(body) : element(tag, "", visible(body)), visible(part.text.slice(body.length)));
    }
    return shown;
  }

  /* A list item. `other`: the answer of `otherCycle` to set beside it, null where that cycle has none, undefined where none is asked for. */
  function item(answer, cycle, other, otherCycle) {
    const title = `answer ${answer.sample + 1}`;
    const made = element("li", "answer");
    made.tabIndex = -1;
    if (other === undefined) {
      made.append(head(answer, title), text(answer.text));
      return made;
    }
    const back = otherCycle < cycle;
    const found = other && (back ? diff.words(other.text, answer.text) : diff.words(answer.text, other.text));
    const side = (one, said, earlier) => element("div", earlier ? "earlier" : "later", head(one, said),
      text(one.text, found && (earlier ? found.earlier : found.later), earlier ? "del" : "ins"));
    const here = side(answer, `${title}, ${chart.cycleName(cycle)}`, !back);
    const there = other ? side(other, chart.cycleName(otherCycle), back) : element("p", "quiet", `No such answer at ${chart.cycleName(otherCycle)}.`);
    made.classList.add("pair");
    made.append(...(back ? [there, here] : [here, there]));
    if (found) made.append(element("p", "quiet shared", `${Math.round(found.share * 100)} % of the words are the same, in order.`));
    return made;
  }

  return { item, element };
})();
