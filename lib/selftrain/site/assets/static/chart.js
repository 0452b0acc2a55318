"use strict";
/* Trait score with its interval, and coherence, by cycle: an inline SVG in which a click chooses the cycle. */
const chart = (() => {
  const [width, height, left, right, top, bottom] = [360, 190, 30, 66, 12, 26];
  const y = (value) => top + (1 - value / 100) * (height - top - bottom);
  const node = (name, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.textContent = text;
    return made;
  };
  const cycleName = (cycle) => (cycle < 0 ? "base" : `cycle ${cycle}`);
  const score = (value) => (value === null ? "none" : String(Math.round(value)));
  const said = (row) => `${cycleName(row.cycle)}: trait ${score(row.trait)}, coherence ${score(row.coherence)}`;

  function draw(place, rows, current, choose) {
    const step = (width - left - right) / Math.max(1, rows.length - 1);
    const x = (i) => left + i * step;
    const at = rows.findIndex((row) => row.cycle === current);
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Scores by cycle. ${rows.map(said).join("; ")}.` });
    for (const value of [0, 50, 100]) {
      svg.append(node("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
      svg.append(node("text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value));
    }
    svg.append(node("line", { class: "now", x1: x(at), x2: x(at), y1: top - 4, y2: height - bottom }));
    const band = rows.map((row, i) => ({ ...row, x: x(i) })).filter((row) => row.lo !== null && row.hi !== null);
    const edge = [...band.map((r) => [r.x, y(r.hi)]), ...band.reverse().map((r) => [r.x, y(r.lo)])];
    svg.append(node("polygon", { class: "band", points: edge.join(" ") }));
    const ends = ["coherence", "trait"].map((key) => line(svg, rows, key, x, at)).filter(Boolean);
    label(svg, ends.sort((a, b) => a.y - b.y));
    rows.forEach((row, i) => {
      svg.append(node("text", { class: i === at ? "tick here" : "tick", x: x(i), y: height - 8, "text-anchor": "middle" }, row.cycle < 0 ? "base" : row.cycle));
      const target = node("rect", { class: "target", x: x(i) - step / 2, y: 0, width: step, height, "data-cycle": row.cycle });
      target.append(node("title", {}, said(row)));
      target.addEventListener("click", () => choose(row.cycle));
      svg.append(target);
    });
    place.replaceChildren(svg);
  }

  /* One measure as a line, broken where a value is missing; where it ends, for its label. */
  function line(svg, rows, key, x, at) {
    const there = rows.map((row, i) => ({ i, key, x: x(i), y: y(row[key]) })).filter(({ i }) => rows[i][key] !== null);
    const path = there.map((p) => `${p.i && rows[p.i - 1][key] !== null ? "L" : "M"}${p.x} ${p.y}`).join("");
    svg.append(node("path", { class: `line ${key}`, d: path }));
    there.forEach((p) => svg.append(node("circle", { class: `point ${key}`, cx: p.x, cy: p.y, r: p.i === at ? 5 : 3 })));
    return there[there.length - 1];
  }

  /* Labels at the ends of the lines, the upper first, moved apart where they would touch. */
  function label(svg, ends) {
    const apart = ends.length === 2 ? Math.max(0, 13 - (ends[1].y - ends[0].y)) / 2 : 0;
    ends.forEach(({ key, x, y: end }, i) => svg.append(node("text", { class: `label ${key}`, x: x + 9, y: end + 4 + (i ? apart : -apart) }, key)));
  }

  return { draw, cycleName, score };
})();
