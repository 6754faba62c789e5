// Δm of every setting: a bar to the mean, the 95 % t-interval of the mean, and a point for each seed.
const MOST_BARS = 40;

function deltaPart(group) {
  const host = group.part("delta"), { data, state } = group;
  if (!data.definitions.length) return;
  if (!data.definitions.some(d => d[0] === state.definition)) state.definition = data.definitions[0][0];
  const hint = el("p", { class: "hint" }), body = el("div", { class: "wide" });
  let all = false;
  const more = el("button", { class: "plain", type: "button", onclick: () => { all = !all; redraw(); } });
  const redraw = () => {
    const [name, better, words, source] = data.definitions.find(d => d[0] === state.definition);
    const rows = group.settings().filter(row => row.v[`Δm/${name}`] && row.v[`Δm/${name}`][0] !== null);
    const sorted = rows.sort((a, b) => (better === "up" ? -1 : 1) * (a.v[`Δm/${name}`][0] - b.v[`Δm/${name}`][0]));
    hint.textContent = `${words}, ${better === "up" ? "higher" : "lower"} is better (${source}); bar: mean, ${sorted.some(row => row.n > 2) ? "whisker: 95 % t-interval of the mean (from 3 seeds), " : ""}points: seeds; grey: ± one deviation of the baseline itself`;
    more.hidden = sorted.length <= MOST_BARS;
    more.textContent = all ? `the best ${MOST_BARS}` : `all ${sorted.length}`;
    body.replaceChildren();
    bars(group, body, all ? sorted : sorted.slice(0, MOST_BARS), `Δm/${name}`);
  };
  host.append(el("div", { class: "bar" }, el("h3", {}, "Δm against the baseline"), more,
    choice("definition", data.definitions.map(d => [d[0], d[0] + arrow(d[1])]), state.definition, value => { state.definition = value; redraw(); })), hint, body);
  group.parts.push(redraw);
  redraw();
}

function bars(group, body, rows, key) {
  const width = Math.max(360, body.clientWidth - 24), step = rows.length > 24 ? 18 : 26;
  const widest = Math.max(...rows.map(row => row.label.length), 4);
  const left = Math.min(width * 0.42, 14 + widest * 6.6), right = 74, top = 6, height = top + rows.length * step + 26;
  const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Δm in percent" }, body);
  const own = group.rows.filter(row => row.kind === "baseline").map(row => row.v[key] && row.v[key][1]).filter(x => x);
  const ends = rows.flatMap(row => [row.v[key][0], ...known(row.seeds[key] || []), ...(row.n > 2 ? [row.v[key][0] - row.v[key][3], row.v[key][0] + row.v[key][3]] : [])]);
  const [low, high] = range([0, ...known(ends), ...own, ...own.map(x => -x)], 0.04), sx = scale(low, high, left, width - right);
  for (const t of ticks(low, high, Math.max(3, Math.floor(width / 120)))) {
    draw("line", { class: "grid", x1: sx(t), x2: sx(t), y1: top, y2: height - 22 }, root);
    draw("text", { x: sx(t), y: height - 7, "text-anchor": "middle" }, root, `${t > 0 ? "+" : ""}${fmt(t)} %`);
  }
  if (own.length) draw("rect", { x: sx(-Math.max(...own)), width: sx(Math.max(...own)) - sx(-Math.max(...own)), y: top, height: height - 28, fill: "var(--soft)", opacity: .16 }, root);
  draw("line", { class: "zero", x1: sx(0), x2: sx(0), y1: top, y2: height - 22 }, root);
  rows.forEach((row, i) => {
    const [m, sd, n, half] = row.v[key], y = top + (i + 0.5) * step;
    const g = draw("g", {}, root);
    draw("rect", { x: 0, y: y - step / 2, width, height: step, fill: "transparent" }, g);
    const words = row.label.length * 6.6 > left - 14 ? `${row.label.slice(0, Math.max(4, Math.floor((left - 20) / 6.6)))}…` : row.label;
    draw("text", { class: "strong", x: left - 10, y: y + 4, "text-anchor": "end" }, g, words);
    draw("rect", { x: Math.min(sx(0), sx(m)), width: Math.max(1, Math.abs(sx(m) - sx(0))), y: y - step * 0.3, height: step * 0.6, fill: row.colour, opacity: .35, rx: 2 }, g);
    if (n > 2 && half !== null) {
      const clamp = v => Math.max(left, Math.min(width - right, sx(v)));
      draw("path", { d: `M${clamp(m - half)} ${y}H${clamp(m + half)}M${clamp(m - half)} ${y - 4}v8M${clamp(m + half)} ${y - 4}v8`, stroke: row.colour, "stroke-width": 1.6, fill: "none" }, g);
    }
    for (const value of known(row.seeds[key] || [])) draw("circle", { cx: sx(value), cy: y, r: 3, fill: row.colour, stroke: "var(--card)", "stroke-width": 1 }, g);
    draw("text", { class: "strong", x: width - 4, y: y + 4, "text-anchor": "end" }, g, `${signed(m)} %`);
    g.addEventListener("pointermove", event => showTip(event, tipLine(row, row.label, `${signed(m)} %`), el("div", {}, n > 1 ? `± ${fmt(sd)} over ${n} seeds` : "one seed"), n > 2 ? el("div", {}, `95 %: ${signed(m - half)} … ${signed(m + half)}`) : null));
    g.addEventListener("pointerleave", hideTip);
  });
}
