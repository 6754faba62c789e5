// Panels, each setting's configuration beside its neighbours, its runs with their commands, and what went wrong.
function panelsPart(group) {
  const host = group.part("panels"), { panels, panels_left_out: left } = group.data;
  if (!panels.length && !left) return;
  const bar = el("div", { class: "bar" }, el("h3", {}, "Predictions"));
  const strip = el("div", { class: "figures", tabindex: 0 }, panels.map(panel => {
    const run = DATA.runs[panel.run];
    const caption = el("figcaption", {}, el("b", {}, panel.label), run.seed !== null ? `  seed ${run.seed}` : "", `  ${panel.name.replace(/\.(png|md)$/, "")}`);
    const words = panel.words && panel.words.length ? el("div", { class: "words" }, plainTable(panel.words[0], panel.words.slice(1))) : null;
    const image = panel.image ? el("img", { src: panel.image, alt: `inputs, targets and predictions of ${panel.label}`, loading: "lazy", onclick: () => enlarge(panel.image) }) : null;
    return el("figure", {}, caption, image, words);
  }));
  host.append(bar, strip, left ? el("p", { class: "hint" }, `${left} more did not fit; --panels-mb makes room`) : "");
}

function enlarge(address) {
  const box = el("dialog", { onclick: () => box.close(), onclose: () => box.remove() }, el("img", { src: address, alt: "" }));
  document.body.append(box);
  box.showModal();
}

function plainTable(heads, rows) {
  return el("table", { class: "plain-table" }, el("thead", {}, el("tr", {}, heads.map(h => el("th", {}, h)))), el("tbody", {}, rows.map(row => el("tr", {}, row.map(cell => el("td", {}, cell))))));
}

// The settings that differ in the fewest keys, nearest first.
function neighbours(rows, row) {
  return rows.filter(other => other !== row).map(other => {
    const keys = [...new Set([...Object.keys(row.config), ...Object.keys(other.config)])].filter(key => row.config[key] !== other.config[key]);
    return { other, keys };
  }).sort((a, b) => a.keys.length - b.keys.length).slice(0, 3);
}

function runsPart(group) {
  const host = group.part("runs"), { data } = group, rows = group.rows.filter(row => row.runs.length);
  const rest = data.rest.map(i => DATA.runs[i]);
  if (rows.length) {
    const body = el("div", { class: "two" });
    const show = index => { const row = group.rows[+index]; body.replaceChildren(...settingCards(group, row)); };
    host.append(el("div", { class: "bar" }, el("h3", {}, "Configurations and runs"), choice("setting", rows.map(row => [row.index, row.label]), (group.settings()[0] || rows[0]).index, show)), body);
    show((group.settings()[0] || rows[0]).index);
  }
  if (rest.length) host.append(el("h3", {}, "Runs without a result"), runTable(rest));
}

function settingCards(group, row) {
  const cards = [];
  if (row.config) {
    const near = neighbours(group.settings(), row);
    cards.push(el("div", { class: "card" }, el("h4", {}, `${row.label}: its nearest neighbours`),
      near.length ? near.map(({ other, keys }) => [
        el("p", {}, `against ${other.label}${gap(group, row, other)}`),
        plainTable(["key", "here", "there"], keys.slice(0, 12).map(key => [key, row.config[key] ?? "(absent)", other.config[key] ?? "(absent)"])),
        keys.length > 12 ? el("p", {}, `and ${keys.length - 12} keys more`) : "",
      ]) : el("p", {}, "there is no other setting"),
      el("details", {}, el("summary", {}, "the whole configuration"), el("pre", {}, [...Object.entries(row.config), ...group.data.constant.filter(([key]) => key.includes(".") || !Object.keys(row.config).includes(key))].map(([key, value]) => `${key}: ${value}`).sort().join("\n")))));
  }
  cards.push(el("div", { class: "card" }, el("h4", {}, `${row.label}: runs`), row.runs.map(i => runCard(DATA.runs[i]))));
  return cards;
}

function gap(group, row, other) {
  const key = `Δm/${group.state.definition}`;
  const [a, b] = [row.v[key], other.v[key]];
  return a && b && a[0] !== null && b[0] !== null ? ` (Δm ${signed(a[0])} % here, ${signed(b[0])} % there)` : "";
}

function runCard(run) {
  const facts = [run.seed !== null ? `seed ${run.seed}` : null, run.signature, run.git ? `git ${run.git}` : null].filter(Boolean).join(" · ");
  const copy = el("button", { class: "plain", type: "button", onclick: () => { navigator.clipboard?.writeText(run.command).then(() => { copy.textContent = "copied"; }, () => {}); } }, "copy");
  return el("div", { class: "run" }, el("p", {}, el("span", { class: `state ${run.state}` }, run.state), ` · ${facts}${run.cause ? ` · ${run.cause}` : ""}`, el("br"), el("span", { class: "mono" }, run.path)),
    run.command ? el("pre", {}, run.command) : "", run.command ? copy : "");
}

const runTable = runs => plainTable(["state", "run", "what happened", "command"], runs.map(run => [el("span", { class: `state ${run.state}` }, run.state), el("span", { class: "mono" }, run.path), run.cause || "", el("span", { class: "mono" }, run.command)]));

function troublePart() {
  const host = document.getElementById("trouble");
  if (DATA.broken.length) host.append(el("h2", {}, "Waiting, or cannot be read"), runTable(DATA.broken));
}
