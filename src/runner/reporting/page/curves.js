// Learning curves: a card for each task with the metric one chooses, mean over seeds with a band of one deviation.
const CONTEXT = 60;

function curvesPart(group) {
  const host = group.part("curves"), { data, state } = group;
  const keys = [...group.series.keys()];
  const splits = [...new Set(keys.map(key => key.split("|")[0]))];
  if (!keys.some(key => !key.endsWith("|weight"))) return;
  if (!splits.includes(state.split)) state.split = splits[0];
  const legend = el("div"), cards = el("div", { class: "cards" });
  const redraw = () => {
    const rows = group.shown().filter(row => row.runs.length);
    legend.replaceChildren(group.legend(rows));
    cards.replaceChildren();
    const plots = [];
    for (const task of data.tasks) {
      const metrics = keys.filter(key => key.startsWith(`${state.split}|${task}|`) && !key.endsWith("|weight")).map(key => key.split("|")[2]);
      if (metrics.length) plots.push(curveCard(group, cards, task, metrics, rows, redraw));
    }
    plots.forEach(plot => plot()); // only now do the cards have their width
  };
  host.append(el("div", { class: "bar" }, el("h3", {}, "Learning curves"),
    choice("split", splits.map(s => [s, s]), state.split, value => { state.split = value; redraw(); }),
    tick("second half only", state.late, on => { state.late = on; redraw(); }),
    tick("each seed", state.seeds, on => { state.seeds = on; redraw(); })), legend, cards);
  group.parts.push(redraw);
  redraw();
}

function curveCard(group, cards, task, metrics, rows, redraw) {
  const { data, state } = group;
  const head = data.metrics.find(m => m[0] === task && m[3]);
  const wish = state.metric[task] || (head && head[1]);
  const metric = metrics.includes(wish) ? wish : metrics[0];
  const about = data.metrics.find(m => m[0] === task && m[1] === metric);
  const better = about ? about[2] : metric === "loss" ? "down" : "";
  const body = el("div");
  const picker = metrics.length > 1
    ? el("select", { "aria-label": `metric of ${task}`, onchange: event => { state.metric[task] = event.target.value; redraw(); } }, metrics.map(m => el("option", { value: m, selected: m === metric }, m)))
    : el("span", {}, metric);
  cards.append(el("div", { class: "card" }, el("div", { class: "top" }, el("h4", {}, task + arrow(better)), picker), body));
  return () => curvePlot(group, body, `${state.split}|${task}|${metric}`, rows, better, `${metric} of ${task} over steps`);
}

function curvePlot(group, body, key, rows, better, label) {
  const { state } = group;
  const drawn = rows.map(row => ({ row, curve: group.curve(row, key) })).filter(d => d.curve);
  const rest = group.settings().filter(row => !row.on).slice(0, CONTEXT).map(row => group.curve(row, key)).filter(Boolean);
  const all = [...drawn.map(d => d.curve), ...rest];
  if (!all.length) { body.append(el("p", { class: "hint" }, "nothing is shown")); return; }
  const high = Math.max(...all.map(c => c.x[c.x.length - 1])), low = state.late ? high / 2 : Math.min(...all.map(c => c.x[0]));
  const f = frame(body, { x: [low, high === low ? low + 1 : high], y: range(all.flatMap(c => c.y.flatMap((y, i) => c.x[i] < low || y === null ? [] : c.sd[i] ? [y - c.sd[i], y + c.sd[i]] : [y]))), label });
  for (const curve of rest) line(f, curve.x, curve.y, { stroke: "var(--context)", "stroke-width": 1, opacity: .55 });
  for (const { row, curve } of drawn) {
    if (state.seeds) for (const run of curve.runs) line(f, run.x, run.y, { stroke: row.colour, "stroke-width": 1, opacity: .45 });
    else if (curve.n > 1) band(f, curve, row.colour);
  }
  for (const { row, curve } of drawn) line(f, curve.x, curve.y, { stroke: row.colour, "stroke-width": 2, "stroke-dasharray": row.dash });
  hover(f, drawn, better);
}

function line(f, x, y, attrs) {
  draw("path", { d: path(x, y, f.sx, f.sy), fill: "none", "stroke-linejoin": "round", ...attrs }, f.area);
  if (x.length === 1) draw("circle", { cx: f.sx(x[0]), cy: f.sy(y[0]), r: 3, fill: attrs.stroke }, f.area);
}

function band(f, curve, colour) {
  const upper = [], lower = [];
  curve.x.forEach((x, i) => {
    if (curve.y[i] === null) return;
    upper.push(`${f.sx(x).toFixed(1)} ${f.sy(curve.y[i] + curve.sd[i]).toFixed(1)}`);
    lower.unshift(`${f.sx(x).toFixed(1)} ${f.sy(curve.y[i] - curve.sd[i]).toFixed(1)}`);
  });
  draw("path", { d: `M${[...upper, ...lower].join("L")}Z`, fill: colour, opacity: .13 }, f.area);
}

function hover(f, drawn, better, format = fmt) {
  const cross = draw("line", { class: "zero", y1: 4, y2: f.height - f.bottom, visibility: "hidden" }, f.root);
  const steps = [...new Set(drawn.flatMap(d => d.curve.x))].sort((a, b) => a - b);
  const over = draw("rect", { x: f.left, y: 0, width: f.width - f.left - f.right, height: f.height - f.bottom, fill: "transparent" }, f.root);
  over.addEventListener("pointermove", event => {
    if (!steps.length) return;
    const box = f.root.getBoundingClientRect(), px = (event.clientX - box.left) * f.width / box.width;
    const step = steps.reduce((a, b) => Math.abs(f.sx(b) - px) < Math.abs(f.sx(a) - px) ? b : a);
    cross.setAttribute("x1", f.sx(step)); cross.setAttribute("x2", f.sx(step)); cross.setAttribute("visibility", "visible");
    const values = drawn.map(d => [d.row, at(d.curve, step)]).filter(pair => pair[1] !== null);
    values.sort((a, b) => better === "down" ? a[1] - b[1] : b[1] - a[1]);
    showTip(event, el("div", {}, `step ${step}`), ...values.slice(0, 12).map(([row, value]) => tipLine(row, row.label, format(value))));
  });
  over.addEventListener("pointerleave", () => { hideTip(); cross.setAttribute("visibility", "hidden"); });
}
