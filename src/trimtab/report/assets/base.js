"use strict";
/* Small pieces that both pages use: elements, numbers, scales, ticks, tooltips, redrawing. */
const data = JSON.parse(document.getElementById("data").textContent);

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...(children || []).filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  put(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const byId = (id) => document.getElementById(id);
const colour = (index) => `var(--c${index % 12})`;

/* Numbers as people read them: three figures, the unit that fits. */
function figures(value, count = 3) {
  const size = Math.abs(value);
  if (size < 5e-7) return "0"; // rounding noise
  const decimals = Math.max(0, count - 1 - Math.floor(Math.log10(size) + 1e-9));
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return size < 1e-4 ? value.toExponential(1) : value.toFixed(Math.min(decimals, 6));
}
const UNITS = { "requests/s": "req/s", "tokens/s": "tok/s", s: "s" };
function show(value, unit) {
  if (value === null || value === undefined || !isFinite(value)) return "\u2013";
  if (unit && unit.startsWith("ms")) {
    const rest = unit.slice(2);
    return Math.abs(value) >= 999.5 ? `${figures(value / 1000)} s${rest}` : `${figures(value)} ms${rest}`;
  }
  if (unit === "share") return `${figures(value * 100)} %`;
  return UNITS[unit] ? `${figures(value)} ${UNITS[unit]}` : figures(value);
}
/* On an axis: no zeros that say nothing, thousands as k. */
function tick(value, unit) {
  const text = !unit && Math.abs(value) >= 1000 ? `${figures(value / 1000)}k` : show(value, unit);
  return text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");
}
const signed = (value) => `${value > 0 ? "+" : value < 0 ? "\u2212" : "\u00b1"}${figures(Math.abs(value * 100), Math.abs(value) < 0.1 ? 2 : 3)} %`;

/* Scales map data to pixels; `ticks` are where the eye wants lines. */
function linearScale(low, high, from, to) {
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  const scale = (value) => from + ((value - low) / (high - low)) * (to - from);
  scale.inverse = (pixel) => low + ((pixel - from) / (to - from)) * (high - low);
  scale.ticks = (count = 5) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const found = [];
    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) found.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
    return found;
  };
  return scale;
}
function logScale(low, high, from, to) {
  if (!(high > low)) { low /= 2; high = low * 4; }
  const inner = linearScale(Math.log10(low), Math.log10(high), from, to);
  const scale = (value) => inner(Math.log10(Math.max(value, low / 10)));
  scale.inverse = (pixel) => 10 ** inner.inverse(pixel);
  scale.ticks = (count = 7) => {
    for (const digits of [[1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const digit of digits) { const tick = digit * 10 ** power; if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick); }
      if (found.length <= count || digits.length === 1) return found.length > 1 ? found : linearScale(low, high, 0, 1).ticks(4).filter((tick) => tick > 0);
    }
  };
  return scale;
}

const tooltip = document.body.appendChild(el("div", { id: "tooltip", role: "status", hidden: "" }));
function tell(event, ...content) {
  tooltip.replaceChildren(...content);
  tooltip.hidden = false;
  const box = tooltip.getBoundingClientRect();
  const left = event.clientX + 16 + box.width > innerWidth - 8 ? event.clientX - box.width - 14 : event.clientX + 16;
  tooltip.style.left = `${Math.max(6, left)}px`;
  tooltip.style.top = `${Math.max(6, Math.min(event.clientY + 14, innerHeight - box.height - 8))}px`;
}
const hush = () => { tooltip.hidden = true; };
function explain(node, text) {
  node.addEventListener("pointermove", (event) => tell(event, text));
  node.addEventListener("pointerleave", hush);
  node.addEventListener("focus", () => { const box = node.getBoundingClientRect(); tell({ clientX: box.left, clientY: box.bottom }, text); });
  node.addEventListener("blur", hush);
  return node;
}
for (const node of document.querySelectorAll("[data-tip]")) explain(node, node.dataset.tip);

/* Draw now, and again when the width or the colour scheme changes. */
const schemes = matchMedia("(prefers-color-scheme: dark)");
function live(node, draw) {
  let width = 0;
  const redraw = () => { width = node.clientWidth; if (width > 0) draw(width); };
  new ResizeObserver(() => { if (node.clientWidth !== width) redraw(); }).observe(node);
  schemes.addEventListener("change", redraw);
  redraw();
  return redraw;
}

function segments(label, options, chosen, choose) {
  const box = el("div", { class: "segments", role: "group", "aria-label": label });
  const press = (key) => {
    for (const button of box.children) button.setAttribute("aria-pressed", String(button.dataset.key === key));
    choose(key);
  };
  for (const [key, title, tip] of options) {
    const button = el("button", { type: "button", "data-key": key, "aria-pressed": String(key === chosen), onclick: () => press(key) }, title);
    box.append(tip ? explain(button, tip) : button);
  }
  return box;
}

/* A frame with grid lines and labels; returns the scales and the group to draw into. */
function frame(width, height, options) {
  const margin = { top: 10, right: 14, bottom: 40, left: 46, ...options.margin };
  const makeX = options.log ? logScale : linearScale;
  const x = makeX(options.x[0], options.x[1], margin.left, width - margin.right);
  const y = linearScale(options.y[0], options.y[1], height - margin.bottom, margin.top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": options.label });
  const showX = options.showX || tick, showY = options.showY || tick;
  const yTicks = options.yTicks || y.ticks(4).map((value) => [value, showY(value)]);
  for (const [value, text] of yTicks) {
    root.append(svg("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) }));
    root.append(svg("text", { x: margin.left - 8, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  for (const value of x.ticks(Math.max(3, Math.floor(width / 95)))) {
    root.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: margin.top, y2: height - margin.bottom }));
    root.append(svg("text", { x: x(value), y: height - margin.bottom + 17, "text-anchor": "middle" }, showX(value)));
  }
  root.append(svg("line", { class: "base", x1: margin.left, x2: width - margin.right, y1: height - margin.bottom, y2: height - margin.bottom }));
  if (options.xTitle) root.append(svg("text", { x: (margin.left + width - margin.right) / 2, y: height - 5, "text-anchor": "middle" }, options.xTitle));
  return { root, x, y, margin, left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
}
const path = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
