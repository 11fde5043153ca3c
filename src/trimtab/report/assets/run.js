"use strict";
/* The page of one run: curves, phases, time series, a load map, batch sizes. */
(function () {
  distribution(byId("curves"), byId("curves-readout"), byId("curves-controls"), {
    metrics: data.curves.metrics, shares: data.curves.shares,
    series: [{ name: data.name, colour: colour(0), curves: data.curves.values }],
  });

  /* The usual percentiles beside the curve, one row per metric. */
  const levels = [0.5, 0.9, 0.99];
  const at = (curve, share) => { const index = data.curves.shares.findIndex((other) => other >= share - 1e-9); return curve[index]; };
  byId("curves-readout").append(el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}), ...levels.map((share) => el("th", { scope: "col" }, `p${share * 100}`)))),
    el("tbody", {}, ...data.curves.metrics.map((metric) => el("tr", {}, el("th", { scope: "row" }, metric.short),
      ...levels.map((share) => el("td", {}, show(at(data.curves.values[metric.key], share), "ms"))))))));

  /* Phases as stacked bars on one scale. */
  const parts = [["queue", "waiting for a first batch", colour(1)], ["prefill", "prefill", colour(0)], ["decode", "decode, pauses included", colour(2)]];
  function stacks(node, rows) {
    const longest = most(rows.map((row) => row.queue + row.prefill + row.decode)) || 1;
    for (const row of rows) {
      const total = row.queue + row.prefill + row.decode;
      const stack = el("div", { class: "stack", role: "img", style: `width:${(100 * total) / longest}%`, "aria-label": parts.map(([key, name]) => `${name} ${show(row[key], "ms")}`).join(", ") });
      for (const [key, name, paint] of parts) stack.append(explain(el("i", { style: `flex:${row[key] / total} 0 0;background:${paint}` }), `${name}: ${show(row[key], "ms")}, ${figures((100 * row[key]) / total)} %`));
      node.append(el("div", { style: "display:flex;justify-content:space-between;font-size:14px;margin-bottom:3px" }, el("span", {}, row.title), el("b", {}, show(total, "ms"))), stack);
    }
    node.append(el("div", { class: "legend" }, ...parts.map(([, name, paint]) => el("span", {}, el("i", { class: "swatch", style: `background:${paint}` }), name))));
  }
  stacks(byId("phases"), data.phases);
  stacks(byId("slowest"), data.slowest);

  /* Time series. */
  const series = data.series, shared = { time: data.time, seconds: data.seconds };
  const legend = (node, lines) => { if (lines.length > 1) node.before(el("div", { class: "legend" }, ...lines.map((line) => el("span", {}, el("i", { class: "swatch", style: `background:${line.colour}` }), line.name)))); };
  const charts = [
    ["flow", [{ name: "arrivals", colour: "var(--c9)", values: series.arrivals }, { name: "completions", colour: colour(0), values: series.completions }], "requests/s"],
    ["queue", [{ name: "waiting", colour: colour(1), values: series.waiting }], ""],
    ["tokens", [{ name: "output", colour: colour(2), values: series.decode_tokens }], "tokens/s"],
    ["memory", Object.entries(series.kv_used).map(([name, values], index) => ({ name, colour: colour(index), values })), "share"],
  ];
  if (series.replicas) charts.push(["fleet", [{ name: "replicas", colour: colour(3), values: series.replicas }], ""]);
  for (const [id, lines, unit] of charts) {
    legend(byId(id), lines);
    timeline(byId(id), { ...shared, lines, unit, label: `${id} over time: ${lines.map((line) => `${line.name} up to ${show(most(line.values), unit)}`).join(", ")}` });
  }

  /* Load map. */
  loadScale(byId("maps-scale"), data.heat.highest);
  loadMap(byId("map"), data.heat.load, data.heat.highest, data.seconds, data.heat.per_row, Math.max(90, Math.min(420, data.heat.rows * 24)));

  /* Judged decisions: a stem each, grey where none was better. */
  const regret = data.regret;
  if (regret) live(byId("regret"), (width) => {
    const chart = frame(width, 220, { x: [0, data.seconds], y: [0, (most(regret.regret) || 1) * 1.08], label: `Regret of ${regret.time.length} decisions over time, up to ${show(most(regret.regret), "ms")}`, xTitle: "time of the decision", showX: (value) => tick(value, "s"), showY: (value) => tick(value, "ms"), margin: { left: 62 } });
    regret.time.forEach((time, index) => {
      const x = chart.x(time), y = chart.y(regret.regret[index]), better = regret.best[index] !== regret.chosen[index];
      const said = better ? `replica ${regret.best[index]} would have saved ${show(regret.regret[index], "ms")} of waiting` : "no replica would have been better";
      chart.root.append(svg("line", { x1: x, x2: x, y1: chart.bottom, y2: y, stroke: colour(1), "stroke-width": 1, opacity: 0.5 }),
        explain(svg("circle", { cx: x, cy: y, r: better ? 3.5 : 2.5, fill: better ? colour(1) : "var(--c9)", tabindex: 0 }), `request ${regret.request[index]} at ${show(time, "s")} went to replica ${regret.chosen[index]}: ${said}`));
    });
    byId("regret").replaceChildren(chart.root);
  });

  /* Batch sizes. */
  const batches = data.batches;
  live(byId("batches"), (width) => {
    if (!batches.share.length) { byId("batches").replaceChildren(el("p", { class: "see" }, "No iterations were recorded.")); return; }
    const count = batches.share.length, top = most(batches.share);
    const chart = frame(width, 220, { x: [0.5, count * batches.width + 0.5], y: [0, top * 1.05], label: "Share of iterations by batch size", xTitle: "sequences in the iteration", showY: (value) => tick(value, "share"), margin: { left: 52 } });
    batches.share.forEach((share, index) => {
      const from = index * batches.width + 0.5, left = chart.x(from), right = chart.x(from + batches.width);
      const name = batches.width > 1 ? `${index * batches.width + 1} to ${(index + 1) * batches.width} sequences` : `${index + 1} sequence${index ? "s" : ""}`;
      chart.root.append(explain(svg("rect", { x: left + 0.5, width: Math.max(right - left - 1, 0.5), y: chart.y(share), height: chart.bottom - chart.y(share), fill: colour(0), rx: 1.5 }), `${name}: ${figures(share * 100)} % of iterations`));
    });
    byId("batches").replaceChildren(chart.root);
  });
})();
