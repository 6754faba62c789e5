// What the weighting did: the tasks' weights over the steps, and how their gradients agreed.
function weightsPart(group) {
  const host = group.part("weights"), { data } = group;
  const tasks = data.tasks.map((task, k) => ({ label: task, colour: `var(--s${k % HUES})`, dash: DASHES[Math.floor(k / HUES) % DASHES.length], key: `train|${task}|weight` }));
  const has = row => tasks.some(task => group.series.has(task.key) && row.runs.some(run => group.series.get(task.key).has(run)));
  if (!group.settings().some(has)) return;
  const cards = el("div", { class: "cards" });
  const redraw = () => {
    cards.replaceChildren();
    const rows = group.shown().filter(row => row.kind === "setting").map(row => ({ row, lines: tasks.map(task => ({ row: task, curve: group.curve(row, task.key) })).filter(d => d.curve) })).filter(d => d.lines.length);
    const all = rows.flatMap(d => d.lines.flatMap(l => l.curve.y.map((y, i) => y === null ? null : y + l.curve.sd[i])));
    if (!rows.length) { cards.append(el("p", { class: "hint" }, "nothing is shown")); return; }
    const y = range([0, ...all]);
    const bodies = rows.map(({ row }) => {
      const body = el("div");
      cards.append(el("div", { class: "card" }, el("div", { class: "top" }, el("h4", {}, row.label)), body));
      return body;
    });
    rows.forEach(({ row, lines }, i) => { // only now do the cards have their width
      const low = Math.min(...lines.map(l => l.curve.x[0])), high = Math.max(...lines.map(l => l.curve.x[l.curve.x.length - 1]));
      const f = frame(bodies[i], { height: 170, x: [low, high === low ? low + 1 : high], y, label: `task weights of ${row.label}` });
      for (const { row: task, curve } of lines) {
        if (curve.n > 1) band(f, curve, task.colour);
        line(f, curve.x, curve.y, { stroke: task.colour, "stroke-width": 1.8, "stroke-dasharray": task.dash });
      }
      hover(f, lines, "up");
    });
  };
  host.append(el("div", { class: "bar" }, el("h3", {}, "Task weights")), group.legend(tasks), cards);
  group.parts.push(redraw);
  redraw();
}

function conflictPart(group) {
  const host = group.part("conflict"), { data, state } = group, { pairs } = data.curves;
  const kinds = Object.keys(pairs).filter(kind => Object.keys(pairs[kind]).length);
  if (!kinds.length) return;
  if (!kinds.includes(state.pair)) state.pair = kinds[0];
  const cards = el("div", { class: "cards" }), hint = el("p", { class: "hint" });
  const words = { cosine: "mean cosine between the gradients of two tasks over the run; below 0 they conflict", conflict: "share of steps in which the gradients of two tasks have a negative cosine" };
  const redraw = () => {
    hint.textContent = words[state.pair];
    cards.replaceChildren();
    for (const row of group.shown()) {
      const found = {};
      for (const run of row.runs) for (const [pair, value] of Object.entries(pairs[state.pair][run] || {})) (found[pair] = found[pair] || []).push(value);
      if (Object.keys(found).length) heat(cards, row, data.tasks, found, state.pair);
    }
    if (!cards.childElementCount) cards.append(el("p", { class: "hint" }, "none of the shown settings records gradients"));
  };
  host.append(el("div", { class: "bar" }, el("h3", {}, "Gradient conflict"), choice("show", kinds.map(kind => [kind, kind]), state.pair, value => { state.pair = value; redraw(); })), hint, cards);
  group.parts.push(redraw);
  redraw();
}

function heat(cards, row, tasks, found, kind) {
  const body = el("div"), size = Math.max(26, Math.min(64, 220 / tasks.length)), left = 90, top = 6, n = tasks.length;
  const longest = Math.min(13, Math.max(...tasks.map(task => task.length))), tilted = longest * 6.4 > size;
  cards.append(el("div", { class: "card" }, el("div", { class: "top" }, el("h4", {}, row.label)), body));
  const foot = top + n * size, height = foot + (tilted ? 14 + longest * 4.2 : 22), width = left + n * size + 10;
  const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, style: "max-width: 100%", role: "img", "aria-label": `${kind} of ${row.label}` }, body);
  const short = (text, most) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
  tasks.forEach((a, i) => {
    draw("text", { x: left - 6, y: top + (i + .5) * size + 4, "text-anchor": "end" }, root, short(a, 13));
    const x = left + (i + .5) * size;
    if (tilted) draw("text", { x: x + 4, y: foot + 12, "text-anchor": "end", transform: `rotate(-38 ${x + 4} ${foot + 12})` }, root, short(a, 13));
    else draw("text", { x, y: foot + 15, "text-anchor": "middle" }, root, a);
    tasks.forEach((b, j) => {
      const values = found[`${a}~${b}`] || found[`${b}~${a}`], x = left + j * size, y = top + i * size;
      const value = i === j ? null : values ? mean(values) : null;
      const bad = kind === "conflict" ? value : Math.max(0, -(value || 0)), good = kind === "conflict" ? 0 : Math.max(0, value || 0);
      const fill = value === null ? "var(--faint)" : bad > 0 ? `rgba(var(--warm), ${Math.min(1, .06 + bad)})` : `rgba(var(--cold), ${Math.min(1, .06 + good)})`;
      const cell = draw("rect", { x: x + 1, y: y + 1, width: size - 2, height: size - 2, fill, rx: 3 }, root);
      if (value === null) return;
      if (size >= 30) draw("text", { class: "strong", x: x + size / 2, y: y + size / 2 + 4, "text-anchor": "middle", "pointer-events": "none" }, root, value.toFixed(2));
      cell.addEventListener("pointermove", event => showTip(event, tipLine(null, `${a}, ${b}`, value.toFixed(3)), el("div", {}, `${values.length} run${values.length > 1 ? "s" : ""}`)));
      cell.addEventListener("pointerleave", hideTip);
    });
  });
}
