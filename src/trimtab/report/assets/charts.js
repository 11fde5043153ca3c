"use strict";
/* The charts that both pages use: a distribution with a readout, a load map, a line chart. */

/* Quantile curves. series: [{name, colour, curves: {metric: [value per share]}}]. */
function distribution(node, readout, controls, spec) {
  const state = { metric: spec.metrics[0].key, log: true, tail: false, share: 0.99, hidden: new Set(), focus: null };
  const metric = () => spec.metrics.find((entry) => entry.key === state.metric);
  const depth = (share) => -Math.log10(Math.max(1 - share, 10 ** -3.31));
  const height = (share) => (state.tail ? depth(share) : share);
  const at = (curve, share) => {
    let index = spec.shares.findIndex((other) => other >= share - 1e-9);
    if (index <= 0) return curve[Math.max(index, 0)];
    const low = spec.shares[index - 1], high = spec.shares[index];
    return curve[index - 1] + ((share - low) / (high - low)) * (curve[index] - curve[index - 1]);
  };
  const known = () => spec.series.filter((line) => line.curves[state.metric][0] !== null);
  const shown = () => known().filter((line) => !state.hidden.has(line.name));
  const percent = (share) => `p${+(share * 100).toFixed(share > 0.989 ? 2 : share > 0.9 ? 1 : 0)}`;
  let chart = null, cross = null;

  const draw = (width) => {
    const lines = shown().length ? shown() : known();
    if (!lines.length) { node.replaceChildren(el("p", { class: "see" }, "No request has this figure.")); return; }
    const tall = Math.max(250, Math.min(390, width * 0.55));
    const first = state.log ? spec.shares.findIndex((share) => share >= 0.005) : 0;
    const low = least(lines.map((line) => line.curves[state.metric][first]));
    const high = most(lines.map((line) => line.curves[state.metric][state.tail || state.log ? spec.shares.length - 1 : spec.shares.findIndex((share) => share >= 0.995)]));
    const marks = [0, 0.5, 0.9, 0.99, 0.999];
    chart = frame(width, tall, {
      x: [state.log ? Math.max(low, 1e-6) : 0, high], y: state.tail ? [0, depth(0.9995)] : [0, 1], log: state.log && low > 0, margin: { left: 52 },
      label: `Distribution of ${metric().title}: ${lines.map((line) => `${line.name} p50 ${show(at(line.curves[state.metric], 0.5), metric().unit)}, p99 ${show(at(line.curves[state.metric], 0.99), metric().unit)}`).join("; ")}`,
      showX: (value) => tick(value, metric().unit), xTitle: metric().title,
      yTicks: state.tail ? marks.map((share) => [depth(share), share ? `${+(share * 100).toFixed(1)} %` : "0 %"]) : [0, 0.25, 0.5, 0.75, 1].map((share) => [share, `${share * 100} %`]),
    });
    const clip = svg("clipPath", { id: "inside" }, svg("rect", { x: chart.left, y: chart.top - 3, width: chart.right - chart.left + 3, height: chart.bottom - chart.top + 3 }));
    chart.root.append(clip);
    for (const line of lines) {
      const points = spec.shares.map((share, index) => [chart.x(line.curves[state.metric][index]), chart.y(height(share))]);
      const quiet = state.focus && state.focus !== line.name;
      chart.root.append(svg("path", { d: path(points), fill: "none", stroke: line.colour, "stroke-width": state.focus === line.name ? 3 : 2, "stroke-linejoin": "round", opacity: quiet ? 0.2 : 0.95, "clip-path": "url(#inside)" }));
    }
    cross = chart.root.appendChild(svg("g", {}));
    const follow = (event) => {
      const box = chart.root.getBoundingClientRect();
      const value = chart.y.inverse(((event.clientY - box.top) / box.height) * tall);
      state.share = Math.max(0.005, Math.min(0.9995, state.tail ? 1 - 10 ** -value : value));
      mark(); list();
    };
    chart.root.addEventListener("pointermove", follow);
    chart.root.addEventListener("pointerdown", follow);
    node.replaceChildren(chart.root);
    mark();
  };
  const mark = () => {
    const level = chart.y(height(state.share));
    cross.replaceChildren(svg("line", { x1: chart.left, x2: chart.right, y1: level, y2: level, stroke: "var(--muted)", "stroke-dasharray": "3 4" }));
    cross.append(svg("text", { class: "mark", x: chart.right, y: level - 6, "text-anchor": "end" }, percent(state.share)));
    for (const line of shown()) {
      const place = chart.x(at(line.curves[state.metric], state.share));
      if (place <= chart.right + 2) cross.append(svg("circle", { cx: place, cy: level, r: 4.5, fill: line.colour, stroke: "var(--panel)", "stroke-width": 1.5 }));
    }
  };
  const slider = el("input", { type: "range", min: 0, max: 1000, "aria-label": "percentile to read" });
  /* half of the slider for the body, half for the tail: equal steps of depth */
  slider.addEventListener("input", () => { state.share = Math.max(0.005, 1 - 10 ** -((slider.value / 1000) * 3.3)); mark(); list(true); });
  const title = el("b", {});
  const rows = el("ol", {});
  readout.append(el("div", { class: "at" }, el("span", {}, "Read at percentile"), title), slider, rows);
  if (spec.series.length > 1) readout.append(el("p", { class: "hint" }, "Move over the chart to read any percentile. Click a name to hide or show it."));
  const list = (fromSlider) => {
    title.textContent = percent(state.share);
    if (!fromSlider) slider.value = (depth(state.share) / 3.3) * 1000;
    slider.setAttribute("aria-valuetext", percent(state.share));
    const order = known().map((line) => [at(line.curves[state.metric], state.share), line]).sort((a, b) => a[0] - b[0]);
    if (rows.children.length !== order.length) rows.replaceChildren(...order.map(() => el("li", {}, el("button", { type: "button" }, el("i", { class: "swatch" }), el("span", {}), el("span", { class: "num" })))));
    order.forEach(([value, line], index) => {
      const button = rows.children[index].firstChild;
      button.children[0].style.background = line.colour;
      button.children[1].textContent = line.name;
      button.children[2].textContent = show(value, metric().unit);
      button.setAttribute("aria-pressed", String(!state.hidden.has(line.name)));
      button.onclick = () => {
        if (spec.series.length < 2) return;
        state.hidden.has(line.name) ? state.hidden.delete(line.name) : state.hidden.add(line.name);
        state.focus = null; redraw(); list();
      };
      button.onpointerenter = button.onfocus = () => { if (spec.series.length > 1) { state.focus = line.name; redraw(); } };
      button.onpointerleave = button.onblur = () => { if (state.focus) { state.focus = null; redraw(); } };
    });
  };
  const toggle = (text, key, tip) => explain(el("label", { class: "check" }, el("input", { type: "checkbox", ...(state[key] ? { checked: "" } : {}), onchange: (event) => { state[key] = event.target.checked; redraw(); } }), text), tip);
  controls.append(
    segments("latency", spec.metrics.map((entry) => [entry.key, entry.short, entry.meaning]), state.metric, (key) => { state.metric = key; redraw(); list(); }),
    toggle("logarithmic", "log", "A logarithmic axis shows milliseconds and minutes together."),
    toggle("stretch the tail", "tail", "Each nine gets the same height: 90 %, 99 %, 99.9 %."),
  );
  const redraw = live(node, draw);
  list();
}

/* Load maps share one colour scale: darker (brighter at night) is more. */
const RAMPS = { light: ["#eef3fb", "#bcd3f6", "#6f9fe9", "#2f6fdb", "#1d3f92", "#101d48"], dark: ["#1b2230", "#20406f", "#2f6fdb", "#62a8ff", "#b5dcff", "#f2faff"] };
function ramp(share) {
  const stops = RAMPS[schemes.matches ? "dark" : "light"];
  const place = Math.max(0, Math.min(0.9999, share)) * (stops.length - 1), index = Math.floor(place), part = place - index;
  const channel = (hex, at) => parseInt(hex.slice(1 + 2 * at, 3 + 2 * at), 16);
  return [0, 1, 2].map((at) => Math.round(channel(stops[index], at) * (1 - part) + channel(stops[index + 1], at) * part));
}
function loadScale(node, highest) {
  const draw = () => {
    const stops = RAMPS[schemes.matches ? "dark" : "light"];
    node.replaceChildren("0", el("i", { style: `background: linear-gradient(90deg, ${stops.join(",")})` }), `${figures(highest)} requests`);
  };
  schemes.addEventListener("change", draw);
  draw();
}
/* rows: [replica][bin] requests; a bin is `seconds / bins` long. */
function loadMap(canvas, rows, highest, seconds, perRow, tall) {
  const bins = rows[0].length;
  canvas.width = bins; canvas.height = rows.length;
  canvas.style.height = `${tall}px`;
  live(canvas, () => {
    const context = canvas.getContext("2d"), image = context.createImageData(bins, rows.length);
    rows.forEach((row, r) => row.forEach((value, b) => {
      const at = 4 * (r * bins + b), [red, green, blue] = ramp(value / highest);
      image.data[at] = red; image.data[at + 1] = green; image.data[at + 2] = blue; image.data[at + 3] = 255;
    }));
    context.putImageData(image, 0, 0);
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const bin = Math.min(bins - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * bins)));
    const row = Math.min(rows.length - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows.length)));
    const who = perRow > 1 ? `replicas around ${Math.round(row * perRow)}` : `replica ${row}`;
    tell(event, `${who}, ${figures(((bin + 0.5) / bins) * seconds)} s: ${figures(rows[row][bin])} requests`);
  });
  canvas.addEventListener("pointerleave", hush);
}

/* Lines over time with one crosshair. lines: [{name, colour, values}]. */
function timeline(node, spec) {
  live(node, (width) => {
    const top = most(spec.lines.flatMap((line) => line.values)) || 1;
    const chart = frame(width, 190, { x: [0, spec.seconds], y: [0, top * 1.08], margin: { bottom: 24, left: 52 }, label: spec.label, showX: (value) => tick(value, "s"), showY: (value) => tick(value, spec.unit === "share" ? "share" : "") });
    spec.lines.forEach((line) => {
      const points = line.values.map((value, index) => [chart.x(spec.time[index]), chart.y(value)]);
      if (spec.lines.length === 1) chart.root.append(svg("path", { d: `${path(points)}L${points[points.length - 1][0]} ${chart.bottom}L${points[0][0]} ${chart.bottom}Z`, fill: line.colour, opacity: 0.13 }));
      chart.root.append(svg("path", { d: path(points), fill: "none", stroke: line.colour, "stroke-width": spec.lines.length > 4 ? 1.3 : 1.8, "stroke-linejoin": "round" }));
    });
    const cross = chart.root.appendChild(svg("g", {}));
    chart.root.addEventListener("pointermove", (event) => {
      const box = chart.root.getBoundingClientRect();
      const second = chart.x.inverse(((event.clientX - box.left) / box.width) * width);
      const index = Math.max(0, Math.min(spec.time.length - 1, Math.floor((second / spec.seconds) * spec.time.length)));
      const place = chart.x(spec.time[index]);
      cross.replaceChildren(svg("line", { x1: place, x2: place, y1: chart.top, y2: chart.bottom, stroke: "var(--muted)", "stroke-dasharray": "3 4" }));
      for (const line of spec.lines) cross.append(svg("circle", { cx: place, cy: chart.y(line.values[index]), r: 3.5, fill: line.colour }));
      tell(event, el("b", {}, `${figures(spec.time[index])} s`), ...spec.lines.slice(0, 12).map((line) => el("div", {}, `${line.name}: ${show(line.values[index], spec.unit)}`)));
    });
    chart.root.addEventListener("pointerleave", () => { cross.replaceChildren(); hush(); });
    node.replaceChildren(chart.root);
  });
}
