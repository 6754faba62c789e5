// One group: a table, its rows' colours, which rows are drawn, and the parts below it.
const SHOWN = 8;

class Group {
  constructor(section) {
    this.section = section;
    this.data = DATA.tables[+section.dataset.table];
    this.state = { split: "validation", seeds: false, late: false, definition: this.data.chosen, pair: "cosine", metric: {} };
    let place = 0;
    this.rows = this.data.rows.map((row, index) => {
      const own = row.kind === "setting", n = own ? place++ : 0;
      return {
        ...row, index,
        colour: own ? `var(--s${n % HUES})` : "var(--soft)",
        dash: own ? DASHES[Math.floor(n / HUES) % DASHES.length] : "3 3",
        on: own ? n < SHOWN : row.kind === "baseline",
      };
    });
    this.parts = [];
    this.index();
    if (section.querySelector(".results")) this.table();
  }

  // Series by key and run, so that a plot need not search.
  index() {
    this.series = new Map();
    const { grids, series } = this.data.curves;
    for (const [key, list] of Object.entries(series)) {
      this.series.set(key, new Map(list.map(([run, grid, values]) => [run, { x: grids[grid], y: values }])));
    }
  }

  part(name) { return this.section.querySelector(`[data-part=${name}]`); }
  shown() { return this.rows.filter(row => row.on); }
  settings() { return this.rows.filter(row => row.kind === "setting"); }
  redraw() { for (const part of this.parts) part(); }

  // Mean, deviation and single seeds of a row's curve, on the steps of its longest run.
  curve(row, key) {
    const all = this.series.get(key);
    const runs = all ? row.runs.map(run => all.get(run)).filter(Boolean) : [];
    if (!runs.length) return null;
    const x = runs.reduce((a, b) => b.x.length > a.x.length ? b : a).x;
    const columns = x.map(step => known(runs.map(run => at(run, step))));
    return { x, y: columns.map(c => c.length ? mean(c) : null), sd: columns.map(deviation), n: runs.length, runs };
  }

  table() {
    const table = this.section.querySelector(".results"), body = table.tBodies[0];
    const lines = [...body.rows];
    for (const line of lines) {
      const row = this.rows[+line.dataset.row];
      const drawn = row.runs.length > 0;
      row.swatch = el("button", {
        class: "swatch", type: "button", "aria-pressed": String(row.on), title: drawn ? "show in the plots" : "no runs to draw",
        onclick: () => { row.on = !row.on; row.swatch.setAttribute("aria-pressed", String(row.on)); this.redraw(); },
      }, sample(row));
      if (!drawn) row.swatch.style.visibility = "hidden";
      line.cells[0].prepend(row.swatch);
    }
    const pinned = lines.filter(line => !line.classList.contains("setting"));
    if (pinned.length && pinned.length < lines.length) pinned[pinned.length - 1].classList.add("last-special");
    const heads = [...table.tHead.rows[1].cells];
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = line => line.cells[column].dataset.v;
      const rest = lines.filter(line => line.classList.contains("setting")).sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === undefined && y === undefined) return (up ? 1 : -1) * a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true });
        return x === undefined ? 1 : y === undefined ? -1 : (up ? 1 : -1) * (x - y);
      });
      body.append(...pinned, ...rest);
    }));
    const hide = (name, on) => {
      table.classList.toggle(name, on);
      for (const th of table.tHead.rows[0].cells) {
        const from = +th.dataset.from, under = heads.slice(from, from + +th.dataset.all).filter(head => getComputedStyle(head).display !== "none");
        th.colSpan = Math.max(1, under.length);
        th.classList.toggle("span", under.length > 1);
        th.style.display = under.length ? "" : "none";
      }
    };
    hide("few", true);
    hide("one", true);
    const all = on => { for (const row of this.settings()) { row.on = on; row.swatch.setAttribute("aria-pressed", String(on)); } this.redraw(); };
    this.part("controls").append(...[
      table.querySelector(".extra") ? tick("all metrics", false, on => hide("few", !on)) : null,
      table.querySelector(".more") ? tick("all Δm definitions", false, on => hide("one", !on)) : null,
      this.settings().length > 1 ? el("span", {}, "click a heading to sort, a line sample to show or hide it in the plots") : null,
      this.settings().length > 1 ? el("button", { class: "plain", type: "button", onclick: () => all(true) }, "show all") : null,
      this.settings().length > 1 ? el("button", { class: "plain", type: "button", onclick: () => all(false) }, "hide all") : null,
    ].filter(Boolean));
  }

  legend(rows) {
    return el("ul", { class: "legend" }, rows.map(row => el("li", {}, sample(row), row.label)));
  }
}

function at(run, step) {
  const { x, y } = run;
  if (step < x[0] || step > x[x.length - 1]) return null;
  let low = 0, high = x.length - 1;
  while (low < high) { const middle = (low + high) >> 1; if (x[middle] < step) low = middle + 1; else high = middle; }
  if (x[low] === step || low === 0) return y[low];
  if (y[low] === null || y[low - 1] === null) return null;
  return y[low - 1] + (y[low] - y[low - 1]) * (step - x[low - 1]) / (x[low] - x[low - 1]);
}
