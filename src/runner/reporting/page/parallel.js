// Parallel coordinates: what varies, then what came of it. Up is better on the result axes; drag along an axis to filter.
function parallelPart(group) {
  const host = group.part("parallel"), { data, state } = group;
  const rows = group.settings();
  if (!data.params.length || rows.length < 4) return;
  const head = data.metrics.filter(m => m[3]);
  const axes = [
    ...data.params.map((name, i) => parameterAxis(name, rows.map(row => row.cells[i]))),
    ...head.map(([task, name, better]) => resultAxis(`${task}/${name}`, task, name, better)),
    ...data.definitions.filter(d => d[0] === data.chosen).map(d => resultAxis(`Δm/${d[0]}`, "Δm %", d[0], d[1])),
  ].filter(Boolean);
  const results = axes.filter(axis => axis.key);
  if (!results.length) return;
  const body = el("div", { class: "wide" }), filters = new Map();
  state.by = results[results.length - 1].key;
  const redraw = () => { body.replaceChildren(); parallel(group, body, rows, axes, filters, redraw); };
  host.append(el("div", { class: "bar" }, el("h3", {}, "Parameters and results"),
    choice("coloured by", results.map(axis => [axis.key, `${axis.over} ${axis.name}`]), state.by, value => { state.by = value; redraw(); })),
  el("p", { class: "hint how" }, "one line for each setting; up is better on the result axes; drag along an axis to filter, click it to clear"), body);
  group.parts.push(redraw);
  redraw();
}

function parameterAxis(name, texts) {
  const numbers = texts.map(Number);
  if (texts.every((text, i) => text !== "" && isFinite(numbers[i]))) {
    const values = [...new Set(numbers)].sort((a, b) => a - b);
    const log = values[0] > 0 && values[values.length - 1] / values[0] > 20;
    const place = log ? Math.log : x => x;
    const low = place(values[0]), high = place(values[values.length - 1]);
    const marks = values.length <= 8 ? values : log ? [values[0], values[values.length - 1]] : ticks(low, high, 4);
    return { name, over: "", of: (row, i) => scale(low, high, 0, 1)(place(numbers[i])), marks: marks.map(v => [scale(low, high, 0, 1)(place(v)), fmt(v)]) };
  }
  const values = [...new Set(texts)].sort();
  const place = value => values.length > 1 ? values.indexOf(value) / (values.length - 1) : .5;
  return { name, over: "", of: (row, i) => place(texts[i]), marks: values.length <= 24 ? values.map(v => [place(v), v || "–"]) : [] };
}

function resultAxis(key, over, name, better) { return { key, over, name, better }; }

function parallel(group, body, rows, axes, filters, redraw) {
  const width = Math.max(axes.length * 108, body.clientWidth - 24), height = 320, top = 44, bottom = 22, right = 62;
  const left = 24 + 6.4 * Math.max(6, ...axes[0].marks.map(m => m[1].length));
  const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "parallel coordinates" }, body);
  const sx = i => axes.length > 1 ? left + i * (width - left - right) / (axes.length - 1) : width / 2, sy = scale(0, 1, height - bottom, top);
  for (const axis of axes) {
    if (!axis.key) continue;
    const values = known(rows.map(row => row.v[axis.key] && row.v[axis.key][0])), low = Math.min(...values), high = Math.max(...values);
    const place = scale(...(axis.better === "down" ? [high, low] : [low, high]), 0, 1);
    axis.of = row => row.v[axis.key] && row.v[axis.key][0] !== null ? (low === high ? .5 : place(row.v[axis.key][0])) : null;
    axis.marks = low < high ? ticks(low, high, 4).map(v => [place(v), fmt(v)]) : [[.5, fmt(low)]];
  }
  const by = axes.find(axis => axis.key === group.state.by);
  const passes = (row, i) => [...filters].every(([axis, [a, b]]) => { const v = axes[axis].of(row, i); return v !== null && v >= a && v <= b; });
  const drawn = rows.map((row, i) => ({ row, points: axes.map(axis => axis.of(row, i)), rank: by.of(row, i), pass: passes(row, i) }));
  drawn.sort((a, b) => (a.pass - b.pass) || ((a.rank ?? -1) - (b.rank ?? -1)));
  const order = known(drawn.map(d => d.rank)).sort((a, b) => a - b);
  for (const d of drawn) {
    // Coloured by rank, not by value: one failed setting must not make all others look alike.
    const share = d.rank === null || order.length < 2 ? 0 : order.lastIndexOf(d.rank) / (order.length - 1);
    const line = draw("path", {
      d: path(axes.map((_, i) => sx(i)), d.points, x => x, sy), fill: "none", "stroke-linejoin": "round",
      stroke: d.pass ? `color-mix(in oklab, rgb(var(--warm)) ${Math.round(100 - 100 * share)}%, rgb(var(--cold)))` : "var(--context)",
      "stroke-width": d.pass ? 1.2 + 1.6 * share ** 3 : 1, opacity: d.pass ? .3 + .65 * share ** 2 : .2,
    }, root);
    line.addEventListener("pointermove", event => {
      line.setAttribute("stroke-width", 4);
      showTip(event, tipLine(d.row, d.row.label, ""), ...axes.filter(a => a.key && d.row.v[a.key]).map(a => tipLine(null, `${a.over} ${a.name}${arrow(a.better)}`, fmt(d.row.v[a.key][0]))));
    });
    line.addEventListener("pointerleave", () => { hideTip(); line.setAttribute("stroke-width", 1.2 + 1.6 * share ** 3); });
  }
  axes.forEach((axis, i) => parallelAxis(root, axis, i, { x: sx(i), sy, top, height, bottom, last: i === axes.length - 1, first: i === 0 }, filters, redraw));
}

function parallelAxis(root, axis, i, at, filters, redraw) {
  const anchor = at.first ? "start" : at.last ? "end" : "middle", x = at.first ? 2 : at.last ? at.x + 56 : at.x;
  draw("line", { class: "zero", x1: at.x, x2: at.x, y1: at.top, y2: at.height - at.bottom }, root);
  draw("text", { x, y: 14, "text-anchor": anchor }, root, axis.over);
  draw("text", { class: "strong", x, y: 29, "text-anchor": anchor, "font-weight": 600 }, root, (axis.name.length > 18 ? axis.name.split(".").pop() : axis.name) + arrow(axis.better));
  for (const [place, text] of axis.marks) {
    if (place < -0.001 || place > 1.001) continue;
    draw("line", { class: "zero", x1: at.x - 3, x2: at.x + 3, y1: at.sy(place), y2: at.sy(place) }, root);
    draw("text", { x: at.last ? at.x + 6 : at.x - 6, y: at.sy(place) + 4, "text-anchor": at.last ? "start" : "end", stroke: "var(--card)", "stroke-width": 3, "paint-order": "stroke" }, root, text);
  }
  if (filters.has(i)) {
    const [a, b] = filters.get(i);
    draw("rect", { x: at.x - 7, width: 14, y: at.sy(b), height: Math.max(3, at.sy(a) - at.sy(b)), fill: "var(--accent)", opacity: .3 }, root);
  }
  const grip = draw("rect", { x: at.x - 10, width: 20, y: at.top - 6, height: at.height - at.bottom - at.top + 12, fill: "transparent", style: "cursor: ns-resize; touch-action: none" }, root);
  grip.addEventListener("pointerdown", event => {
    const box = root.getBoundingClientRect(), where = e => (at.sy(0) - (e.clientY - box.top)) / (at.sy(0) - at.sy(1)), from = where(event);
    grip.setPointerCapture(event.pointerId);
    grip.addEventListener("pointerup", end => {
      const to = where(end);
      if (Math.abs(to - from) < 0.015) filters.delete(i); else filters.set(i, [Math.min(from, to), Math.max(from, to)]);
      redraw();
    }, { once: true });
  });
}
