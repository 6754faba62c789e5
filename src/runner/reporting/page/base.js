"use strict";
// What every plot uses: elements, scales, ticks, a frame with axes, the tip under the pointer.
const DATA = JSON.parse(document.getElementById("data").textContent);
const HUES = 8, DASHES = ["", "6 3", "2 2.5", "9 3 2 3"];

function el(tag, attrs, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attrs || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter(c => c !== null && c !== undefined));
  return node;
}

function draw(tag, attrs, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attrs || {})) if (value !== null && value !== undefined) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function fmt(x) {
  if (x === null || x === undefined || !isFinite(x)) return "–";
  const size = Math.abs(x);
  return size !== 0 && (size >= 1e5 || size < 1e-3) ? x.toExponential(2).replace(/\.?0+e/, "e") : String(+x.toPrecision(4));
}
const signed = x => (x > 0 ? "+" : "") + (Math.round(x * 100) / 100 || 0).toFixed(2);
const arrow = better => better === "up" ? " ↑" : better === "down" ? " ↓" : "";
const mean = list => list.reduce((a, b) => a + b, 0) / list.length;
const known = list => list.filter(x => x !== null && x !== undefined && isFinite(x));
function deviation(list) {
  if (list.length < 2) return 0;
  const m = mean(list);
  return Math.sqrt(list.reduce((a, b) => a + (b - m) ** 2, 0) / (list.length - 1));
}
function quantile(sorted, q) {
  const at = (sorted.length - 1) * q, low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}

// The range of a plot: all values, but for a few wild ones that would flatten the rest.
function range(values, pad = 0.05) {
  const sorted = known(values).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  let low = sorted[0], high = sorted[sorted.length - 1];
  const q1 = quantile(sorted, 0.03), q9 = quantile(sorted, 0.97), room = 2.5 * (q9 - q1);
  if (room > 0) { low = Math.max(low, q1 - room); high = Math.min(high, q9 + room); }
  if (low === high) { const half = Math.abs(low) * 0.05 || 0.5; return [low - half, high + half]; }
  return [low - pad * (high - low), high + pad * (high - low)];
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999) || 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}
const scale = (low, high, from, to) => x => from + (x - low) / (high - low || 1) * (to - from);

// Axes and a clipped area to draw in.
let clips = 0;
function frame(host, { height = 210, x, y, left = 46, right = 10, bottom = 26, top = 8, label }) {
  const width = Math.max(220, host.clientWidth || 320);
  const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": label }, host);
  const sx = scale(x[0], x[1], left, width - right), sy = scale(y[0], y[1], height - bottom, top);
  for (const t of ticks(y[0], y[1], 5)) {
    draw("line", { class: "grid", x1: left, x2: width - right, y1: sy(t), y2: sy(t) }, root);
    draw("text", { x: left - 6, y: sy(t) + 4, "text-anchor": "end" }, root, fmt(t));
  }
  for (const t of ticks(x[0], x[1], Math.max(2, Math.floor(width / 90)))) {
    draw("line", { class: "axis", x1: sx(t), x2: sx(t), y1: height - bottom, y2: height - bottom + 4 }, root);
    draw("text", { x: sx(t), y: height - bottom + 17, "text-anchor": t === x[1] ? "end" : "middle" }, root, t >= 1e4 ? `${fmt(t / 1e3)}k` : fmt(t));
  }
  draw("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, root);
  const id = `clip${clips++}`;
  draw("rect", { x: left - 4, y: 0, width: width - right - left + 8, height: height - bottom + 1 }, draw("clipPath", { id }, root));
  return { root, sx, sy, width, height, left, right, bottom, area: draw("g", { "clip-path": `url(#${id})` }, root) };
}

function path(xs, ys, sx, sy) {
  let text = "", open = false;
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] === null || ys[i] === undefined || !isFinite(ys[i])) { open = false; continue; }
    text += `${open ? "L" : "M"}${sx(xs[i]).toFixed(1)} ${sy(ys[i]).toFixed(1)}`;
    open = true;
  }
  return text;
}

const tip = el("div", { id: "tip", hidden: true, role: "status" });
function showTip(event, ...lines) {
  tip.replaceChildren(...lines.filter(Boolean));
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), gap = 14;
  const x = event.clientX + gap + box.width > innerWidth ? event.clientX - gap - box.width : event.clientX + gap;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + gap, innerHeight - box.height - 4))}px`;
}
const hideTip = () => { tip.hidden = true; };
const tipLine = (row, text, value) => el("div", {}, row ? sample(row) : null, el("span", {}, text), el("b", {}, value));

// A short piece of a row's line, as in a legend.
function sample(row) {
  const root = draw("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" });
  draw("line", { x1: 1, x2: 23, y1: 5, y2: 5, stroke: row.colour, "stroke-width": 2.6, "stroke-dasharray": row.dash }, root);
  return root;
}

function choice(label, options, value, onchange) {
  const list = el("select", { onchange: event => onchange(event.target.value) }, options.map(([key, text]) => el("option", { value: key, selected: String(key) === String(value) }, text)));
  return el("label", {}, label, list);
}
const tick = (label, on, onchange) => el("label", {}, el("input", { type: "checkbox", checked: on, onchange: event => onchange(event.target.checked) }), label);
