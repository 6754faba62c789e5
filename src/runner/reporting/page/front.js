// What can be traded for what: two results of every setting, and those that nothing beats in both.
function frontPart(group) {
  const host = group.part("front"), { data, state } = group, rows = group.settings();
  const axes = [
    ...data.metrics.filter(m => m[2]).map(([task, name, better, head]) => ({ key: `${task}/${name}`, text: `${task} ${name}`, better, head })),
    ...data.merges.map(([key, text, better]) => ({ key, text, better, head: 0 })),
    ...data.definitions.map(([name, better]) => ({ key: `Δm/${name}`, text: `Δm % ${name}`, better, head: 0 })),
    ...[["step", "ms/step"], ["memory", "peak MB"], ["parameters", "parameters"]].map(([key, text]) => ({ key, text, better: "down", head: 0 })),
  ].filter(axis => rows.some(row => row.v[axis.key] && row.v[axis.key][0] !== null));
  const heads = axes.filter(axis => axis.head);
  if (rows.length < 4 || axes.length < 2) return;
  const named = key => axes.find(axis => axis.key === key);
  const storage = named("merge/bytes") && named("merge/normalised");  // of merges: what accuracy costs in bytes
  state.x = (storage ? named("merge/bytes") : heads[0] || axes[0]).key;
  state.y = (storage || heads[1] || axes[1]).key;
  const body = el("div", { class: "wide" }), options = axes.map(axis => [axis.key, axis.text + arrow(axis.better)]);
  const redraw = () => { body.replaceChildren(); front(body, rows, axes.find(a => a.key === state.x), axes.find(a => a.key === state.y)); };
  host.append(el("div", { class: "bar" }, el("h3", {}, "Trade-off"),
    choice("across", options, state.x, value => { state.x = value; redraw(); }), choice("up", options, state.y, value => { state.y = value; redraw(); })),
  el("p", { class: "hint" }, "the mean of every setting; the line is the Pareto front: settings that no other one beats in both"), body);
  group.parts.push(redraw);
  redraw();
}

function pareto(points, x, y) {
  const gain = (p, axis, i) => axis.better === "down" ? -p[i] : p[i];
  return points.filter(p => !points.some(q => gain(q, x, 0) >= gain(p, x, 0) && gain(q, y, 1) >= gain(p, y, 1) && (q[0] !== p[0] || q[1] !== p[1])));
}

function front(body, rows, x, y) {
  const points = rows.filter(row => row.v[x.key] && row.v[y.key]).map(row => [row.v[x.key][0], row.v[y.key][0], row]).filter(p => p[0] !== null && p[1] !== null);
  if (!points.length) { body.append(el("p", { class: "hint" }, "no setting has both")); return; }
  const pad = list => { const [low, high] = [Math.min(...list), Math.max(...list)], half = (high - low) * .06 || Math.abs(low) * .05 || .5; return [low - half, high + half]; };
  const f = frame(body, { height: 330, left: 58, bottom: 44, x: pad(points.map(p => p[0])), y: pad(points.map(p => p[1])), label: `${x.text} against ${y.text}` });
  draw("text", { class: "strong", x: (f.left + f.width) / 2, y: f.height - 6, "text-anchor": "middle" }, f.root, x.text + arrow(x.better));
  draw("text", { class: "strong", x: f.left + 6, y: 16 }, f.root, y.text + arrow(y.better));
  const best = pareto(points, x, y).sort((a, b) => a[0] - b[0]);
  draw("path", { d: path(best.map(p => p[0]), best.map(p => p[1]), f.sx, f.sy), fill: "none", stroke: "var(--soft)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }, f.area);
  for (const point of points) {
    const [px, py, row] = point, on = best.includes(point);
    const dot = draw("circle", { cx: f.sx(px), cy: f.sy(py), r: on ? 6 : 4, fill: row.colour, opacity: on ? 1 : .5, stroke: on ? "var(--ink)" : "none", "stroke-width": 1.2 }, f.root);
    dot.addEventListener("pointermove", event => showTip(event, tipLine(row, row.label, on ? "on the front" : ""), tipLine(null, x.text, fmt(px)), tipLine(null, y.text, fmt(py))));
    dot.addEventListener("pointerleave", hideTip);
  }
  if (best.length <= 8) for (const [px, py, row] of best) {
    const right = f.sx(px) > f.width * .7;
    draw("text", { class: "strong", x: f.sx(px) + (right ? -10 : 10), y: f.sy(py) + 4, "text-anchor": right ? "end" : "start", stroke: "var(--card)", "stroke-width": 3, "paint-order": "stroke" }, f.root, row.label);
  }
}

// How much each parameter of a search mattered.
function searchesPart() {
  const host = document.getElementById("searches");
  for (const [name, objective, shares] of DATA.searches) {
    const body = el("div", { class: "wide" });
    host.append(el("h2", {}, DATA.searches.length > 1 ? `Search ${name}` : "What mattered in the search"), el("p", { class: "hint" }, `share of the variation of ${objective} that each parameter explains (PED-ANOVA)`), body);
    const width = Math.max(320, body.clientWidth - 24), left = Math.min(width * .4, 20 + 6.8 * Math.max(...shares.map(s => s[0].length))), step = 26, height = shares.length * step + 6;
    const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": "importance of parameters" }, body);
    const sx = scale(0, Math.max(...shares.map(s => s[1]), .01), left, width - 60);
    shares.forEach(([key, share], i) => {
      const y = 3 + (i + .5) * step;
      draw("text", { class: "strong", x: left - 10, y: y + 4, "text-anchor": "end" }, root, key);
      draw("rect", { x: left, y: y - 8, width: Math.max(1, sx(share) - left), height: 16, fill: "var(--s0)", opacity: .65, rx: 2 }, root);
      draw("text", { class: "strong", x: sx(share) + 8, y: y + 4 }, root, `${(100 * share).toFixed(0)} %`);
    });
  }
}
