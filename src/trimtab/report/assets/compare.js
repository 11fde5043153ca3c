"use strict";
/* The comparison page: dots with whiskers, curves, load maps, a table to sort. */
(function () {
  const routers = data.routers.map((router, index) => ({ ...router, index, colour: colour(index) }));

  /* Cards: where every router stands on the metrics that matter most. */
  for (const node of document.querySelectorAll("svg.strip[data-metric]")) {
    const metric = data.metrics.find((entry) => entry.key === node.dataset.metric);
    live(node, (width) => {
      const values = metric.rows.filter((row) => row.v !== null).map((row) => row.v);
      const low = least(values), high = most(values);
      const x = linearScale(low, high > low ? high : low + 1, 6, width - 6);
      node.replaceChildren(svg("line", { x1: 0, x2: width, y1: 10, y2: 10, stroke: "var(--line)", "stroke-width": 2 }));
      metric.rows.forEach((row, index) => {
        if (row.v === null) return;
        const dot = svg("circle", { cx: x(row.v), cy: 10, r: 5, fill: routers[index].colour, stroke: "var(--panel)", "stroke-width": 1.5 });
        node.append(explain(dot, `${routers[index].name}: ${show(row.v, metric.unit)}`));
      });
    });
  }

  /* Dots and whiskers. */
  const dots = byId("dots");
  let chosen = data.metrics[Math.max(0, data.metrics.findIndex((metric) => metric.key === "p99_ttft_ms"))];
  function drawDots() {
    const sign = chosen.higher ? -1 : 1;
    const order = routers.filter((router) => chosen.rows[router.index].v !== null).sort((a, b) => sign * (chosen.rows[a.index].v - chosen.rows[b.index].v));
    const all = order.flatMap((router) => { const row = chosen.rows[router.index]; return [row.v, ...row.seeds]; });
    const ends = order.flatMap((router) => { const row = chosen.rows[router.index]; return row.lo === null ? [] : [row.lo, row.hi]; });
    const span = most(all) - least(all) || Math.abs(all[0]) * 0.1 || 1;
    /* a whisker of three seeds can be very long: the axis shows the points, whiskers may run out of it */
    const low = Math.max(least([...all, ...ends]), least(all) - 0.6 * span), high = Math.min(most([...all, ...ends]), most(all) + 0.6 * span);
    const axisNode = el("div", { class: "axis" });
    const head = el("div", { class: "head" }, el("span", {}, "router"), axisNode, el("span", { class: "value" }, "mean"), el("span", { class: "delta" }, `against ${data.baseline}`), el("span", { class: "state" }, ""));
    const strips = [];
    const rows = order.map((router) => {
      const row = chosen.rows[router.index];
      const strip = el("div", { class: "strip" });
      strips.push([strip, row, router]);
      return el("div", { class: "row" },
        el("span", { class: "who" }, el("i", { class: "swatch", style: `background:${router.colour}` }), explain(el("span", { tabindex: 0 }, router.name), `${router.summary}${router.formula ? `. Least of: ${router.formula}` : ""}`)),
        strip, el("span", { class: "value" }, show(row.v, chosen.unit)), delta(row, router), state(row, router));
    });
    dots.replaceChildren(head, ...rows);
    const paint = () => {
      const width = strips[0][0].clientWidth;
      const x = linearScale(low, high, 8, width - 8);
      const axis = svg("svg", { viewBox: `0 0 ${width} 24`, "aria-hidden": "true" });
      for (const place of x.ticks(Math.max(2, Math.floor(width / 85)))) axis.append(svg("text", { x: x(place), y: 16, "text-anchor": "middle" }, tick(place, chosen.unit)));
      axisNode.replaceChildren(axis);
      for (const [strip, row, router] of strips) strip.replaceChildren(whisker(row, router, x, width));
    };
    paint();
    drawDots.paint = paint;
    byId("verdict").textContent = chosen.said;
  }
  function whisker(row, router, x, width) {
    const inside = (place) => Math.max(0, Math.min(width, place));
    const picture = svg("svg", { viewBox: `0 0 ${width} 36`, role: "img", "aria-label": `${router.name}: ${show(row.v, chosen.unit)}${row.lo === null ? "" : `, 95 % interval ${show(row.lo, chosen.unit)} to ${show(row.hi, chosen.unit)}`}` });
    for (const place of x.ticks(Math.max(2, Math.floor(width / 85)))) picture.append(svg("line", { x1: x(place), x2: x(place), y1: 0, y2: 36, stroke: "var(--hair)" }));
    if (row.lo !== null) picture.append(svg("line", { x1: inside(x(row.lo)), x2: inside(x(row.hi)), y1: 18, y2: 18, stroke: router.colour, "stroke-width": 4, "stroke-linecap": "round", opacity: 0.35 }));
    for (const value of row.seeds) picture.append(svg("circle", { cx: x(value), cy: 18, r: 2.6, fill: "var(--panel)", stroke: router.colour, "stroke-width": 1.3 }));
    picture.append(svg("circle", { cx: x(row.v), cy: 18, r: 6, fill: router.colour, stroke: "var(--panel)", "stroke-width": 2 }));
    const interval = row.lo === null ? "no interval: one seed" : `95 % interval ${show(row.lo, chosen.unit)} to ${show(row.hi, chosen.unit)}`;
    return explain(picture, `${router.name}: ${show(row.v, chosen.unit)}; ${interval}; seeds ${row.seeds.map((value) => show(value, chosen.unit)).join(", ")}`);
  }
  const gap = (value, row) => (row.rel ? signed(value) : `${value > 0 ? "+" : value < 0 ? "\u2212" : "\u00b1"}${figures(Math.abs(value))}`);
  function delta(row, router) {
    if (router.name === data.baseline) return el("span", { class: "delta base" }, "baseline");
    if (row.d[0] === null) return el("span", { class: "delta base" }, "\u2013");
    if (row.d[0] === 0 && row.d[1] === 0 && row.d[2] === 0) return el("span", { class: "delta base" }, "the same");
    const sure = row.d[1] !== null && (row.d[1] > 0 || row.d[2] < 0);
    const better = chosen.higher ? row.d[0] > 0 : row.d[0] < 0;
    const range = row.d[1] === null ? "" : ` (${gap(row.d[1], row)} to ${gap(row.d[2], row)})`;
    return explain(el("span", { class: "delta" }, el("span", { class: sure ? (better ? "better" : "worse") : "base" }, gap(row.d[0], row)), el("small", {}, range)),
      sure ? "The paired 95 % interval of the difference excludes zero." : "The paired 95 % interval of the difference includes zero: no difference is shown.");
  }
  function state(row, router) {
    if (chosen.winner === router.name) return el("span", { class: "state" }, el("span", { class: "badge win" }, "best"));
    if (chosen.tied.length === routers.length) return el("span", { class: "state" });
    if (chosen.tied.includes(router.name)) return el("span", { class: "state" }, explain(el("span", { class: "badge tie" }, "not beaten"), "The paired interval to the best mean includes zero."));
    return el("span", { class: "state" }, el("span", { class: "badge off" }, row.b[0] === null ? "" : `${gap(row.b[0], row)} to best`));
  }
  byId("dots-controls").append(segments("metric", data.metrics.map((metric) => [metric.key, metric.title, metric.meaning]), chosen.key, (key) => { chosen = data.metrics.find((metric) => metric.key === key); drawDots(); }));
  drawDots();
  live(dots, () => drawDots.paint());

  /* Curves. */
  distribution(byId("curves"), byId("curves-readout"), byId("curves-controls"), {
    metrics: data.curves.metrics, shares: data.curves.shares,
    series: routers.map((router) => ({ name: router.name, colour: router.colour, curves: Object.fromEntries(data.curves.metrics.map((metric) => [metric.key, data.curves.values[metric.key][router.index]])) })),
  });

  /* Load maps. */
  const heat = data.heat, highest = heat.highest || 1;
  loadScale(byId("maps-scale"), highest);
  const tall = Math.max(64, Math.min(150, heat.rows * 14));
  for (const router of routers) {
    const canvas = el("canvas", { role: "img", "aria-label": `Load of each replica over time under ${router.name}` });
    const spread = heat.spread[router.index];
    byId("maps").append(el("div", { class: "map" },
      el("div", { class: "title" }, el("b", {}, router.name), explain(el("span", { tabindex: 0 }, spread === null ? "" : `max / mean ${figures(spread)}`), "The busiest replica against the average, over the time that requests arrive, mean of all seeds.")), canvas));
    loadMap(canvas, heat.load[router.index], highest, heat.seconds[router.index], heat.per_row, tall);
  }

  /* The table sorts by any column and shows values or differences. */
  const table = byId("table"), body = table.tBodies[0];
  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => (column ? parseFloat(row.cells[column].dataset.value) : row.cells[0].textContent);
      const order = [...body.rows].sort((a, b) => { const x = value(a), y = value(b); return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
      body.append(...order);
    });
  }
})();
