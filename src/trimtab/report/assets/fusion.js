"use strict";
/* Lines over epochs: one per modality, dashes at the target. */
(function () {
  for (const spec of data.charts) {
    const node = byId(spec.id);
    live(node, (width) => {
      const [low, high] = spec.y, last = most(spec.x), room = 0.05 * (high - low);
      const chart = frame(width, 190, { x: [Math.min(1, least(spec.x)), Math.max(last, 2)], y: [low < 0 ? low - room : low, high + room], xTitle: "epoch", label: `${spec.what} over epochs`, margin: { left: 52 } });
      for (const value of spec.dashes) chart.root.append(svg("line", { x1: chart.left, x2: chart.right, y1: chart.y(value), y2: chart.y(value), stroke: "var(--muted)", "stroke-dasharray": "4 4" }));
      spec.lines.forEach((line, index) => {
        const points = line.values.map((value, at) => [chart.x(spec.x[at]), chart.y(value)]);
        chart.root.append(svg("path", { d: path(points), fill: "none", stroke: colour(index), "stroke-width": 1.8, "stroke-linejoin": "round" }));
      });
      const cross = chart.root.appendChild(svg("g", {}));
      chart.root.addEventListener("pointermove", (event) => {
        const box = chart.root.getBoundingClientRect();
        const epoch = chart.x.inverse(((event.clientX - box.left) / box.width) * width);
        let at = 0;
        spec.x.forEach((value, index) => { if (Math.abs(value - epoch) < Math.abs(spec.x[at] - epoch)) at = index; });
        const place = chart.x(spec.x[at]);
        cross.replaceChildren(svg("line", { x1: place, x2: place, y1: chart.top, y2: chart.bottom, stroke: "var(--muted)", "stroke-dasharray": "3 4" }));
        tell(event, el("b", {}, `epoch ${spec.x[at]}`), ...spec.lines.map((line) => el("div", {}, `${line.name}: ${figures(line.values[at])}`)));
      });
      chart.root.addEventListener("pointerleave", () => { cross.replaceChildren(); hush(); });
      node.replaceChildren(chart.root);
    });
  }
})();
