"""What the robustness matrix says: the standing of each router, one page with a heat map, a CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.report.html import LOGO, page
from trimtab.report.words import listing, number
from trimtab.robustness import BASELINE, write_atomically
from trimtab.routers import ROUTERS

MARKER = "robustness.json"
FACTORS = ("fleet", "arrivals", "load", "prompts", "signals", "failure")
Json = dict[str, Any]


class Standing(NamedTuple):
    """One router over all cells; ratios are of p99 TTFT to the baseline's."""

    router: str
    mean_ratio: float  # geometric
    worst_ratio: float
    worst_cell: str
    unbeaten: int  # cells in which no router is shown to be better
    attainment: float  # share of requests that meet the SLO, mean over cells


def standings(found: Json) -> list[Standing]:
    """Every router, the lowest mean ratio first; cells in which nothing was completed are left out."""
    rows = []
    for router in found["routers"]:
        known = [
            (cell["routers"][router]["ratio"][0], cell["name"])
            for cell in found["cells"]
            if cell["routers"][router]["ratio"][0] is not None
        ]
        if not known:
            continue
        own = [cell["routers"][router] for cell in found["cells"]]
        rows.append(
            Standing(
                router,
                math.exp(sum(math.log(max(ratio, 1e-9)) for ratio, _ in known) / len(known)),
                *max(known),
                sum(bool(row["unbeaten"]) for row in own),
                sum(row["attainment"] or 0.0 for row in own) / len(own),
            )
        )
    return sorted(rows, key=lambda row: row.mean_ratio)


def is_sure(row: Json) -> bool:
    """Whether the paired interval of the ratio to the baseline excludes 1."""
    _, low, high = row["ratio"]
    return low is not None and (low > 1 or high < 1)


def save_suite(found: Json, folder: Path) -> None:
    """Write robustness.json, table.csv and index.html into ``folder``, each whole or not at all."""
    write_atomically(folder / MARKER, json.dumps(found, indent=1) + "\n")
    if found["cells"]:
        write_atomically(folder / "table.csv", _csv(found))
        write_atomically(folder / "index.html", suite_page(found))


def _csv(found: Json) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = "p99_ttft_s low high ratio ratio_low ratio_high goodput goodput_low goodput_high"
    heads += " mean_ttft_s mean_e2e_s attainment hit_rate failed unbeaten"
    writer.writerow(("cell", "router", *heads.split()))
    for cell in found["cells"]:
        for router, row in cell["routers"].items():
            figures = [row["p99_ttft_s"], row["low"], row["high"], *row["ratio"], row["goodput"]]
            figures += [*row["goodput_interval"], row["mean_ttft_s"], row["mean_e2e_s"], row["attainment"]]
            figures += [row["hit_rate"], row["failed"]]
            shown = ["" if x is None else f"{x:.6g}" for x in figures]
            writer.writerow((cell["name"], router, *shown, row["unbeaten"]))
    return text.getvalue()


def headline(found: Json) -> tuple[str, str]:
    """(the answer, what backs it)."""
    ranks = standings(found)
    if not ranks:
        return "No request was completed in any cell.", ""
    best = ranks[0]
    safest = min(ranks, key=lambda row: row.worst_ratio)
    cells = len(found["cells"])
    answer = (
        f"{best.router} has the shortest tails over {cells} cells: its p99 TTFT is {times(best.mean_ratio)}"
        f" that of {BASELINE} (geometric mean)."
    )
    if best.router == BASELINE:
        answer = f"Nothing beats {BASELINE} on the whole: every other router's mean p99 TTFT is longer."
    backing = f"Its worst cell is {best.worst_cell} with {times(best.worst_ratio)}."
    if safest.router == best.router:
        backing += " No router has a better worst cell."
    else:
        backing += (
            f" {safest.router} is the safest choice: {times(safest.worst_ratio)} in its worst cell,"
            f" {times(safest.mean_ratio)} in the mean."
        )
    return answer, backing


def times(ratio: float) -> str:
    """``0.62 times``."""
    return f"{number(ratio)} times"


# --- the page -----------------------------------------------------------------------------------


def suite_page(found: Json) -> str:
    """The page of a suite, complete HTML; routers with the shortest tails come first."""
    ranked = [row.router for row in standings(found)]
    order = [*ranked, *(name for name in found["routers"] if name not in ranked)]
    cells = [{**cell, "routers": {name: cell["routers"][name] for name in order}} for cell in found["cells"]]
    found = {**found, "routers": order, "cells": cells}
    return page("Robustness of routers", _body(found), _data(found), ("base.js", "robustness.js"))


def _body(found: Json) -> str:
    answer, backing = headline(found)
    cells, routers, seeds = found["cells"], found["routers"], found["seeds"]
    runs = len(cells) * len(routers) * len(seeds)
    partial = "" if found["complete"] else '<p class="notice">Interrupted: not all cells are here.</p>'
    few = "" if len(seeds) > 2 else '<p class="notice">Fewer than three seeds: differences may be luck.</p>'
    millions = runs * found["requests"] / 1e6
    facts = (
        f"<b>{len(cells)}</b> cells",
        f"<b>{len(routers)}</b> routers",
        f"seeds <b>{listing([str(seed) for seed in seeds])}</b>",
        f"<b>{found['requests']:,}</b> requests a run, <b>{millions:.1f}</b> million in all",
        "SLO <b>TTFT 1 s, TPOT 100 ms</b>",
    )
    return f"""<header class="top">
<div class="eyebrow">{LOGO}trimtab compare --suite robustness</div>
<h1>Robustness of routers</h1>
<p class="lead"><b>{escape(answer)}</b> {escape(backing)}</p>
<ul class="facts">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>
{partial}{few}
</header>
<main>
<section class="bare" aria-label="At a glance"><div class="cards">{_cards(found)}</div></section>
<section aria-labelledby="h-matrix">
<h2 id="h-matrix">Which router holds up where?</h2>
<p class="see">Each row is a cluster and its traffic, each column a router; the figure is the ratio to
{BASELINE}. Blue is better than it, red is worse, on a logarithmic scale; pale squares with grey figures
cannot be told from
1. A column without red is a router that you can trust. A frame marks what no other router beats. Click a
router to sort by it, a factor to group by it, and rest on a square for its figures.</p>
<div class="bar" id="matrix-controls"></div>
<div class="scroll">{_table(found)}</div>
</section>
<section aria-labelledby="h-standing">
<h2 id="h-standing">Over all cells</h2>
<p class="see">Ratios of p99 TTFT to {BASELINE}. Unbeaten: cells in which no router is shown to be better
(paired 95 % intervals). In the SLO: share of requests, mean over cells.</p>
<div class="scroll">{_standing_table(found)}</div>
</section>
<section aria-labelledby="h-method">
<h2 id="h-method">How this was computed</h2>
{_method(found)}
</section>
</main>
<footer>{runs:,} runs with trimtab {escape(found["trimtab"])}. Every figure is in robustness.json and
table.csv beside this page.</footer>"""


def _cards(found: Json) -> str:
    ranks = standings(found)
    if not ranks:
        return ""
    best, safest = ranks[0], min(ranks, key=lambda row: row.worst_ratio)
    often = max(ranks, key=lambda row: row.unbeaten)
    served = max(ranks, key=lambda row: row.attainment)
    share, _, unit = number(served.attainment, "share").partition(" ")
    cards = (
        ("Shortest tails, mean", number(best.mean_ratio), "x", best.router, f"p99 TTFT against {BASELINE}"),
        ("Best worst cell", number(safest.worst_ratio), "x", safest.router, safest.worst_cell),
        ("Most often unbeaten", str(often.unbeaten), f"of {len(found['cells'])}", often.router, "cells"),
        ("Most requests in the SLO", share, unit, served.router, "mean over cells"),
    )
    return "".join(
        f'<div class="card"><div class="name">{escape(name)}</div>'
        f'<div class="figure">{figure}<small>{unit}</small></div>'
        f'<div class="who">{escape(who)}</div><div class="note">{escape(note)}</div></div>'
        for name, figure, unit, who, note in cards
    )


def factors(found: Json, name: str) -> list[str]:
    """The factors of a cell's name, as many as any cell has."""
    parts = name.split("/")
    most = max(cell["name"].count("/") + 1 for cell in found["cells"])
    return parts + [""] * (most - len(parts))


def _table(found: Json) -> str:
    """The ratios as text; the script colours them."""
    heads = "".join(
        f'<th scope="col" class="factor"><button type="button" data-factor="{index}">{factor}</button></th>'
        for index, factor in enumerate(FACTORS[: len(factors(found, found["cells"][0]["name"]))])
    )
    heads += "".join(
        f'<th scope="col" class="router"><button type="button" data-router="{index}">'
        f"<span>{escape(router)}</span></button></th>"
        for index, router in enumerate(found["routers"])
    )
    rows = []
    for index, cell in enumerate(found["cells"]):
        labels = "".join(f'<td class="factor">{escape(part)}</td>' for part in factors(found, cell["name"]))
        squares = "".join(
            f'<td class="square{"" if is_sure(row) else " unsure"}">{_ratio(row["ratio"][0])}</td>'
            for row in cell["routers"].values()
        )
        rows.append(f'<tr data-cell="{index}">{labels}{squares}</tr>')
    return (
        f'<table id="matrix" class="matrix"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def _standing_table(found: Json) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(row.router)}</th><td>{number(row.mean_ratio)}</td>'
        f'<td>{number(row.worst_ratio)}</td><td class="text">{escape(row.worst_cell)}</td>'
        f"<td>{row.unbeaten}</td><td>{number(row.attainment, 'share')}</td></tr>"
        for row in standings(found)
    )
    heads = "".join(
        f'<th scope="col"{" class=text" if name == "worst cell" else ""}>{name}</th>'
        for name in ("router", "mean ratio", "worst ratio", "worst cell", "unbeaten", "in the SLO")
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _method(found: Json) -> str:
    rates = "".join(
        f"<dt>{escape(name)}</dt><dd>{rate:.1f} requests per second</dd>"
        for name, rate in found["saturation"].items()
    )
    return f"""<div class="method">
<p><b>Load.</b> Saturation is measured first: the rate at which each fleet completes requests while all its
replicas are busy, behind {BASELINE}. Loads are 60, 80 and 95 % of it. A router that finds more cached
prefixes saturates later, so the same traffic loads it less.</p>
<p><b>Same traffic.</b> Within a cell and seed, every router gets the same requests. Ratios are paired by
seed, their 95 % intervals from resampled blocks of requests; where seeds differ by more than blocks explain,
that is added.</p>
<p><b>Many comparisons.</b> With {len(found["cells"]) * (len(found["routers"]) - 1)} ratios, about one in
twenty of those that are truly 1 looks sure by luck. Trust patterns along a column, not single squares.</p>
</div>
<details><summary>Saturation that was found</summary><dl class="words">{rates}</dl></details>"""


def _data(found: Json) -> Json:
    return {
        "baseline": BASELINE,
        "routers": [
            {"name": name, "summary": ROUTERS[name].summary if name in ROUTERS else "a router in Python"}
            for name in found["routers"]
        ],
        "cells": [
            {
                "name": cell["name"],
                "factors": factors(found, cell["name"]),
                "rows": list(cell["routers"].values()),
            }
            for cell in found["cells"]
        ],
    }
