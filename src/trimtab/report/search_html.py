"""What a search leaves: search.json, a CSV, two plots and an interactive page."""

from __future__ import annotations

import csv
import io
import json
import math
from html import escape
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.plan.search import LABELS, Search, front, router_savings, tied
from trimtab.report.atomic import replacing
from trimtab.report.canvas import INK, MUTED, Box, Canvas, Chart
from trimtab.report.html import LOGO, page
from trimtab.report.plots import PALETTE

MARKER = "search.json"
FIGURES = ("replicas", "low", "high", "ideal", "gpus", "cost_per_hour", "cost_low", "cost_high",
           "cost_per_million", "qps_per_dollar", "ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "tpot_p99",
           "e2e_p50", "busy", "kv_peak", "preemptions", "rung", "binding")  # fmt: skip
PLOTS = (
    ("ttft_p90", "TTFT p90", "Up and left is better: more requests per dollar, and sooner."),
    ("tpot_p99", "TBT p99", "Steady streams cost money: what is far left carries less per dollar."),
)
Json = dict[str, Any]


def search_data(found: Search) -> Json:
    """What search.json holds."""
    plain = [
        {name: row.get(name) for name in (*LABELS, "status", *FIGURES, "message", "tried")}
        for row in found.rows
    ]
    return {
        "name": found.scenario.name,
        "digest": found.scenario.digest(),
        "bounds": [str(bound) for bound in found.bounds],
        "prices": {device: found.prices[device] for device in found.space.devices},
        "headline": headline(found),
        "configurations": len(found.rows),
        "fresh": found.fresh,
        "seconds": found.seconds,
        "simulated_requests": found.simulated,
        "best": {name: (found.best or {}).get(name) for name in (*LABELS, *FIGURES)},
        "fronts": {figure: front(found.rows, figure) for figure in ("ttft_p90", "tpot_p99")},
        "sensitivity": sensitivity(found.rows),
        "rows": plain,
    }


def label_of(row: Json) -> str:
    """``2 x h100 tp 2, vllm_v1 4096/256, learned``."""
    split = f" tp {row['tp']}" + (f" pp {row['pp']}" if row["pp"] > 1 else "")
    roles = "" if row["roles"] == "colocated" else f", prefill:decode {row['roles']}"
    limits = f"{row['scheduler']} {row['token_budget']}/{row['max_num_seqs']}"
    return f"{row['replicas']} x {row['device']}{split}, {limits}, {row['router']}{roles}"


def headline(found: Search) -> list[str]:
    """The answer, how sure it is, what binds it, and what routers are worth."""
    best = found.best
    if best is None:
        return ["No configuration is in reach."]
    levels = ", ".join(str(bound) for bound in found.bounds)
    lines = [
        f"Cheapest for {best['load']:.4g} requests/s within {levels}: {label_of(best)},"
        f" {best['cost_per_hour']:.2f} USD per hour,"
        f" {best['cost_per_million']:.3f} USD per million output tokens.",
        f"At 95 % confidence {best['low']} to {best['high']} replicas; a perfect system needs"
        f" {best['ideal']}. What gives way first: {best['binding']}; {best['resource']}.",
    ]
    others = tied(found)
    ok = sum(row["status"] == "ok" for row in found.rows)
    lines.append(
        f"{len(found.rows)} configurations, {ok} in reach; {len(others)} of the finalists cannot be told"
        f" from the best by cost. {found.simulated:,} requests simulated."
    )
    routers = router_savings(found)
    if len(routers) > 1:
        said = ", ".join(f"{row['router']} {_spread(row, best['rung'])}" for row in routers)
        lines.append(f"Replicas there by router: {said}.")
    return lines


def _spread(row: Json, last: int) -> str:
    """``3 (3 to 4)``; what dropped out before the last rung has no interval."""
    if row["rung"] < last:
        return f"about {row['replicas']}"
    return f"{row['replicas']} ({row['low']} to {row['high']})"


def sensitivity(rows: list[Json]) -> Json:
    """Per choice and value: the lowest cost per million tokens of the configurations that have it."""
    found: Json = {}
    for name in LABELS:
        best: dict[str, float] = {}
        for row in rows:
            if row["status"] == "ok":
                value = str(row[name])
                best[value] = min(best.get(value, math.inf), row["cost_per_million"])
        if len(best) > 1:
            found[name] = dict(sorted(best.items(), key=lambda item: item[1]))
    return found


def save_search(found: Search, folder: str | Path) -> Json:
    """Write the folder, whole or not at all; returns what search.json holds."""
    data = json.loads(
        json.dumps(search_data(found), default=str).replace("NaN", "null").replace("Infinity", "null")
    )
    write(data, folder)
    return dict(data)


def rebuild(folder: str | Path, out: str | Path | None = None) -> Path:
    """The page, plots and table of a search folder again, from its search.json."""
    try:
        data = json.loads((Path(folder) / MARKER).read_text())
        data["rows"], data["best"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        raise TrimtabError(f"{folder} holds no readable {MARKER}") from None
    write(data, out or folder)
    return Path(out or folder)


def write(data: Json, folder: str | Path) -> None:
    """search.json, table.csv, two PNGs and index.html."""
    with replacing(folder, MARKER) as draft:
        (draft / MARKER).write_text(json.dumps(data, indent=1) + "\n")
        (draft / "table.csv").write_text(_csv(data["rows"]))
        for figure, title, see in PLOTS:
            _plot(data, figure, title, see).save(draft / f"{figure}.png")
        (draft / "index.html").write_text(search_page(data), encoding="utf-8")


def _csv(rows: list[Json]) -> str:
    text = io.StringIO()
    names = (*LABELS, "status", *FIGURES, "message")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow("" if row.get(name) is None else row[name] for name in names)
    return text.getvalue()


def _plot(data: Json, figure: str, title: str, see: str) -> Canvas:
    """Requests/s per dollar against a latency, a colour per device; the best is ringed."""
    rows = [row for row in data["rows"] if row["status"] == "ok" and row[figure] is not None]
    canvas = Canvas(900, 640)
    canvas.text(30, 44, f"{data['name']}: what a dollar carries", 20, INK)
    right = 1.05 * max(1e3 * row[figure] for row in rows)
    top = 1.15 * max(row["qps_per_dollar"] for row in rows)
    titles = (f"Requests per second per USD/hour against {title}", see, "milliseconds")
    chart = Chart(canvas, Box(80, 128, 860, 560), titles, (0, right), (0, top), False)
    devices = list(dict.fromkeys(row["device"] for row in rows))
    colour = {device: PALETTE[index % len(PALETTE)] for index, device in enumerate(devices)}
    for row in reversed(rows):
        canvas.dot(chart.across(1e3 * row[figure]), chart.up(row["qps_per_dollar"]), 4, colour[row["device"]])
    best = data["best"]
    x, y = chart.across(1e3 * best[figure]), chart.up(best["qps_per_dollar"])
    canvas.dot(x, y, 7, colour[best["device"]])
    canvas.text(x + 12, y - 8, "cheapest", 13, MUTED)
    chart.legend([(device, colour[device]) for device in devices])
    return canvas


# --- the page -----------------------------------------------------------------------------------


def search_page(data: Json) -> str:
    """One HTML file: charts that answer to the pointer, a filter, tables."""
    charts = "".join(
        f"<section><h2>Requests/s per dollar against {title}</h2>"
        f'<p class="see">{escape(see)}</p>'
        f'<svg class="scatter" data-figure="{figure}" viewBox="0 0 860 380" role="img"></svg></section>'
        for figure, title, see in PLOTS
    )
    prices = ", ".join(f"{escape(name)} {price:g}" for name, price in data["prices"].items())
    body = f"""<header class="top">
<div class="eyebrow">{LOGO}trimtab search</div>
<h1>{escape(data["name"])}: the cheapest cluster</h1>
<p class="lead"><b>{escape(data["headline"][0])}</b> {escape(" ".join(data["headline"][1:]))}</p>
<ul class="facts"><li>USD per hour and device: <b>{prices}</b></li></ul>
<p>Show <select id="choice"></select> <select id="value"></select></p>
</header>
<main>
{charts}
<section><h2>Sensitivity</h2><p class="see">The lowest cost per million output tokens with each choice: where
the values differ little, the choice does not matter.</p>{_sensitivity(data["sensitivity"])}</section>
<section><h2>Pareto fronts</h2><p class="see">Nothing is cheaper and faster than these; also sizes
that miss the levels are among them.</p>
<div class="scroll">{_front(data["fronts"]["ttft_p90"], "ttft_p90", "TTFT p90")}</div>
<div class="scroll">{_front(data["fronts"]["tpot_p99"], "tpot_p99", "TPOT p99")}</div></section>
<section><h2>Configurations</h2><p class="see">Cheapest first; in brackets what 95 % tests leave open, where a
configuration came to the last rung.</p><div class="scroll"><table id="rows"></table></div></section>
</main>"""
    keys = (*LABELS, "replicas", "low", "high", "cost_per_hour", "cost_per_million", "qps_per_dollar",
            "ttft_p90", "tpot_p99", "binding")  # fmt: skip
    rows = [{name: row[name] for name in keys} for row in data["rows"] if row["status"] == "ok"]
    content = {"rows": rows, "labels": list(LABELS), "palette": list(PALETTE)}
    return page(f"{data['name']}: the cheapest cluster", body, content, ("search.js",))


def _sensitivity(found: Json) -> str:
    lines = []
    for name, values in found.items():
        low = min(values.values())
        cells = "".join(
            f"<td>{escape(value)}<br><b>{cost:.3f}</b> ({cost / low:.2f}x)</td>"
            for value, cost in values.items()
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _front(points: list[Json], figure: str, title: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(label_of(point))}</td><td>{point['cost_per_million']:.3f}</td>"
        f"<td>{1e3 * point[figure]:.1f} ms</td></tr>"
        for point in points
    )
    return f"<table><tr><th>configuration</th><th>USD per million</th><th>{title}</th></tr>{rows}</table>"
