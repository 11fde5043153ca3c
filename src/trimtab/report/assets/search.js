"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const choice = document.getElementById("choice"), value = document.getElementById("value");
  const devices = [...new Set(data.rows.map((row) => row.device))];
  const colour = (row) => data.palette[devices.indexOf(row.device) % data.palette.length];
  const say = (row) =>
    `${row.replicas} x ${row.device} tp ${row.tp} pp ${row.pp}, ${row.scheduler} ` +
    `${row.token_budget}/${row.max_num_seqs}, ${row.router}, ${row.roles}`;
  const escapeText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");

  const options = (select, names) => {
    select.innerHTML = names.map((name) => `<option>${escapeText(name)}</option>`).join("");
  };
  const values = () => {
    options(value, choice.value === "all" ? ["-"] : [...new Set(data.rows.map((row) => row[choice.value]))]);
  };
  const kept = () =>
    choice.value === "all" ? data.rows : data.rows.filter((row) => String(row[choice.value]) === value.value);

  const ticks = (top) => {
    const raw = top / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((each) => each >= raw);
    return Array.from({ length: Math.floor(top / step) + 1 }, (_, index) => index * step);
  };

  const draw = (svg, rows) => {
    const figure = svg.dataset.figure, box = { left: 60, right: 840, top: 14, bottom: 320 };
    const all = data.rows.filter((row) => row[figure] !== null);
    const right = 1.05 * Math.max(...all.map((row) => 1e3 * row[figure]));
    const top = 1.1 * Math.max(...all.map((row) => row.qps_per_dollar));
    const x = (v) => box.left + (v / right) * (box.right - box.left);
    const y = (v) => box.bottom - (v / top) * (box.bottom - box.top);
    let out = "";
    for (const tick of ticks(right)) {
      out += `<line x1="${x(tick)}" x2="${x(tick)}" y1="${box.top}" y2="${box.bottom}" stroke="currentColor" opacity=".1"/>`;
      out += `<text x="${x(tick)}" y="${box.bottom + 18}" text-anchor="middle">${+tick.toPrecision(3)}</text>`;
    }
    for (const tick of ticks(top)) {
      out += `<line x1="${box.left}" x2="${box.right}" y1="${y(tick)}" y2="${y(tick)}" stroke="currentColor" opacity=".1"/>`;
      out += `<text x="${box.left - 8}" y="${y(tick) + 4}" text-anchor="end">${+tick.toPrecision(3)}</text>`;
    }
    for (const row of [...rows].reverse()) {
      if (row[figure] === null) continue;
      const tip = `${say(row)}\n${(1e3 * row[figure]).toPrecision(3)} ms, ${row.qps_per_dollar.toPrecision(3)} ` +
        `requests/s per USD/h, ${row.cost_per_hour.toFixed(2)} USD/h\ngives way first: ${row.binding}`;
      out += `<circle cx="${x(1e3 * row[figure])}" cy="${y(row.qps_per_dollar)}" r="5" fill="${colour(row)}" ` +
        `opacity=".75"><title>${escapeText(tip)}</title></circle>`;
    }
    devices.forEach((device, index) => {
      const at = box.left + (index % 8) * 98;
      out += `<circle cx="${at}" cy="362" r="5" fill="${data.palette[index % data.palette.length]}"/>`;
      out += `<text x="${at + 9}" y="366">${escapeText(device)}</text>`;
    });
    out += `<text x="${box.right}" y="${box.bottom + 34}" text-anchor="end">milliseconds</text>`;
    svg.innerHTML = `<g font-size="12" fill="currentColor">${out}</g>`;
  };

  const table = (rows) => {
    const head = ["configuration", "replicas", "USD/h", "USD per M tokens", "TTFT p90", "TPOT p99", "gives way first"];
    const body = rows.slice(0, 200).map((row) =>
      `<tr><td>${escapeText(say(row))}</td><td>${row.replicas}${row.low < row.high ? ` (${row.low} to ${row.high})` : ""}</td>` +
      `<td>${row.cost_per_hour.toFixed(2)}</td><td>${row.cost_per_million.toFixed(3)}</td>` +
      `<td>${(1e3 * row.ttft_p90).toFixed(0)} ms</td><td>${(1e3 * row.tpot_p99).toFixed(1)} ms</td>` +
      `<td>${escapeText(row.binding)}</td></tr>`);
    document.getElementById("rows").innerHTML =
      `<tr>${head.map((name) => `<th>${name}</th>`).join("")}</tr>${body.join("")}`;
  };

  const show = () => {
    const rows = kept();
    document.querySelectorAll("svg.scatter").forEach((svg) => draw(svg, rows));
    table(rows);
  };
  options(choice, ["all", ...data.labels]);
  choice.onchange = () => { values(); show(); };
  value.onchange = show;
  values();
  show();
})();
