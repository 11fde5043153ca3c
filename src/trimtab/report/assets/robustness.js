"use strict";
/* The robustness matrix: colours, two metrics, sorting by router, grouping by factor, figures on hover. */
(function () {
  const table = byId("matrix"), body = table.tBodies[0], lines = [...body.rows];
  const labels = data.cells.length ? data.cells[0].factors.length : 0;
  const order = [["60", 0], ["80", 1], ["95", 2], ["uniform", 0], ["mixed", 1], ["poisson", 0], ["gamma", 1], ["burst", 2],
    ["plain", 0], ["sessions", 1], ["shared", 2], ["fresh", 0], ["1s", 1], ["15s", 2], ["", 0], ["failure", 1]];
  const rank = new Map(order);
  const base = data.routers.findIndex((router) => router.name === data.baseline);
  const METRICS = {
    ttft: { title: "p99 TTFT", better: -1, ratio: (row) => row.ratio },
    good: { title: "Goodput", better: 1, ratio: (row, cell) => goodput(row, cell) },
    hits: { title: "Cache hits", better: 1, share: (row) => row.hit_rate },
  };
  function goodput(row, cell) {
    if (row.goodput_relative) return row.goodput_difference.map((x) => (x === null ? null : 1 + x));
    const other = cell.rows[base].goodput;
    return other > 0 && row.goodput !== null ? [row.goodput / other, null, null] : [null, null, null];
  }
  let metric = "ttft", by = null, up = true;

  /* Blue is better, red is worse; full strength at a factor of four either way. */
  const dark = () => schemes.matches;
  function paint(ratio, better, faint) {
    if (ratio === null || !(ratio > 0)) return ["transparent", "var(--muted)"];
    const depth = (faint ? 0.22 : 1) * Math.max(-1, Math.min(1, (better * Math.log(ratio)) / Math.log(4)));
    return shade(depth > 0 ? [222, 74] : [12, 78], Math.abs(depth));
  }
  function shade([hue, saturation], depth) {
    const strength = Math.pow(depth, 0.75);
    const light = dark() ? 15 + 36 * strength : 98 - 48 * strength;
    const ink = dark() ? "#f4f7fb" : strength > 0.62 ? "#ffffff" : "#171c26";
    return [`hsl(${hue} ${Math.round(saturation * (dark() ? 0.75 : 1) * Math.min(1, 0.25 + strength))}% ${light.toFixed(0)}%)`, ink];
  }
  const short = (value) => (value === null ? "\u2013" : value < 9.95 ? value.toFixed(2) : figures(value));
  const sure = (three) => three[1] !== null && (three[1] > 1 || three[2] < 1);

  function draw() {
    const chosen = METRICS[metric];
    lines.forEach((line) => {
      const cell = data.cells[+line.dataset.cell];
      cell.rows.forEach((row, index) => {
        const square = line.cells[labels + index];
        if (chosen.share) {
          const value = chosen.share(row);
          const [fill, ink] = value ? shade([168, 60], value) : ["transparent", "var(--muted)"];
          square.textContent = value === null ? "\u2013" : `${Math.round(100 * value)}`;
          square.className = "square";
          square.style.background = fill; square.style.color = ink;
          return;
        }
        const three = chosen.ratio(row, cell);
        const [fill, ink] = paint(three[0], chosen.better, !sure(three));
        const same = index === base;
        square.textContent = short(three[0]);
        square.className = `square${same ? " base" : sure(three) ? "" : " unsure"}${metric === "ttft" && row.unbeaten ? " best" : ""}`;
        square.style.background = fill; square.style.color = sure(three) ? ink : "";
      });
    });
    legend();
  }
  function detail(cell, row, router) {
    const pair = (name, value) => el("div", { class: "pair" }, el("span", {}, name), el("b", {}, value));
    const range = (low, high, unit) => (low === null ? "" : ` (${show(low, unit)} to ${show(high, unit)})`);
    const times = (three) => (three[0] === null ? "\u2013" : `${short(three[0])} \u00d7${three[1] === null ? "" : ` (${short(three[1])} to ${short(three[2])})`}`);
    const ms = (value) => (value === null ? null : value * 1000);
    return [
      el("b", {}, router.name), el("div", { class: "where" }, cell.name),
      pair("p99 TTFT", show(ms(row.p99_ttft_s), "ms") + range(ms(row.low), ms(row.high), "ms")),
      router.name === data.baseline ? null : pair(`to ${data.baseline}`, times(row.ratio)),
      pair("mean TTFT", show(ms(row.mean_ttft_s), "ms")), pair("mean E2E", show(ms(row.mean_e2e_s), "ms")),
      pair("goodput", show(row.goodput, "requests/s") + range(row.goodput_interval[0], row.goodput_interval[1], "requests/s")),
      pair("in the SLO", show(row.attainment, "share")),
      row.hit_rate ? pair("cache hits", show(row.hit_rate, "share")) : null,
      row.failed ? pair("not served", figures(row.failed)) : null,
    ].filter(Boolean);
  }
  const square = (event) => {
    const target = event.target.closest("td.square");
    if (!target) return null;
    const cell = data.cells[+target.parentNode.dataset.cell], index = target.cellIndex - labels;
    return [cell, cell.rows[index], data.routers[index]];
  };
  body.addEventListener("pointermove", (event) => { const found = square(event); if (found) tell(event, ...detail(...found)); else hush(); });
  body.addEventListener("pointerleave", hush);

  function sort() {
    const chosen = METRICS[metric];
    const value = (line) => {
      const cell = data.cells[+line.dataset.cell];
      if (by.factor !== undefined) { const text = cell.factors[by.factor]; return rank.has(text) ? rank.get(text) : text; }
      const row = cell.rows[by.router];
      const found = chosen.share ? chosen.share(row) : chosen.ratio(row, cell)[0];
      return found === null ? Infinity : found;
    };
    const sorted = [...body.rows].sort((a, b) => { const x = value(a), y = value(b); return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
    body.append(...sorted);
  }
  for (const button of table.tHead.querySelectorAll("button")) {
    const own = button.dataset.router !== undefined ? { router: +button.dataset.router } : { factor: +button.dataset.factor };
    button.addEventListener("click", () => {
      const head = button.closest("th");
      up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      by = own;
      sort();
    });
    if (own.router !== undefined) explain(button, `${data.routers[own.router].name}: ${data.routers[own.router].summary}`);
  }

  const key = el("span", { class: "scale" });
  function legend() {
    const chosen = METRICS[metric];
    const stops = [-1, -0.5, 0, 0.5, 1].map((depth) => (chosen.share ? shade([168, 60], (depth + 1) / 2) : paint(4 ** (depth * chosen.better), chosen.better))[0]);
    const ends = chosen.share ? ["0 %", "100 %"] : chosen.better < 0 ? ["4 \u00d7, worse", "\u00bc \u00d7, better"] : ["\u00bc \u00d7, worse", "4 \u00d7, better"];
    key.replaceChildren(ends[0], el("i", { style: `background:linear-gradient(90deg,${stops.join(",")})` }), ends[1]);
  }
  byId("matrix-controls").append(
    segments("figure", Object.entries(METRICS).map(([name, entry]) => [name, entry.title]), metric, (name) => { metric = name; draw(); }), key);
  schemes.addEventListener("change", draw);
  draw();
})();
