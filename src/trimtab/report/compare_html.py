"""What the comparison page says: the text that stands without scripts, and the data that scripts draw."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.report.definitions import FAMILIES, define
from trimtab.report.digest import CURVE_SHARES, CURVES, HEAT_ROWS, METRICS, Metric
from trimtab.report.html import LOGO, facts, meaning, source_details, tip
from trimtab.report.words import between, headline, listing, notices, number, relative, verdict_sentence
from trimtab.routers import ROUTERS

if TYPE_CHECKING:
    from trimtab.comparison import Comparison, Estimate
    from trimtab.report.bootstrap import Interval

CARDS = (
    "p99_ttft_ms",
    "p99_tpot_ms",
    "mean_e2el_ms",
    "request_goodput",
    "output_throughput",
    "load_outstanding_max_over_mean",
)
MAX_CARDS = 4
SHORT = {"ttft_ms": "First token", "tpot_ms": "Per output token", "e2el_ms": "End to end"}


def compared(comparison: Comparison) -> list[Metric]:
    """The metrics that this comparison has."""
    return [metric for metric in METRICS if metric.key in comparison.table]


def compare_body(comparison: Comparison) -> str:
    """Everything between the body tags but data and scripts."""
    scenario = comparison.scenario
    answer, backing = headline(comparison)
    first = comparison.digests[0]
    requests = int(first.summary["completed"] + first.summary["failed"])
    seeds = listing([str(seed) for seed in comparison.seeds])
    warnings = "".join(f'<p class="notice">{escape(said)}</p>' for said in notices(comparison))
    about = f'<p class="description">{escape(scenario.description)}</p>' if scenario.description else ""
    rest = [("routers", str(len(comparison.routers))), ("seeds", seeds)]
    return f"""<header class="top">
<div class="eyebrow">{LOGO}trimtab compare</div>
<h1>{escape(scenario.name)}</h1>
{about}
<p class="lead"><b>{escape(answer)}</b> {escape(backing)}</p>
{facts(scenario, first.groups, requests, rest)}
{warnings}
</header>
<main>
<section class="bare" aria-label="At a glance"><div class="cards">{_cards(comparison)}</div></section>
<section aria-labelledby="h-dots">
<h2 id="h-dots">Which router is better, and is it sure?</h2>
<p class="see">Large dots are means over seeds, small rings single seeds, bars 95 % intervals. Routers
that share traffic move together, so judge by the differences on the right, not by overlapping bars.</p>
<div class="bar" id="dots-controls"></div>
<p id="verdict" aria-live="polite" style="font-weight:600"></p>
<div class="dots" id="dots"></div>
</section>
<section aria-labelledby="h-curves">
<h2 id="h-curves">Who waits how long?</h2>
<p class="see">The share of requests served within a time. A curve further left is faster; look at the
top right for the unlucky few. Curves are means over seeds.</p>
<div class="bar" id="curves-controls"></div>
<div class="split"><div class="plot" id="curves"></div><div class="readout" id="curves-readout"></div></div>
</section>
<section aria-labelledby="h-maps">
<h2 id="h-maps">Where does the load lie?</h2>
<p class="see">{_map_text(comparison)}</p>
<div class="bar"><span class="scale" id="maps-scale"></span></div>
<div class="maps" id="maps"></div>
</section>
<section aria-labelledby="h-table">
<h2 id="h-table">All figures</h2>
<p class="see">Green: the only best. Amber: not to be told from the best. Below each mean its 95 %
interval. Click a heading to sort; rest on it for the definition.</p>
<div class="scroll">{_table(comparison)}</div>
</section>
<section aria-labelledby="h-method">
<h2 id="h-method">How this was computed</h2>
{_method(comparison)}
{source_details(scenario, first.provenance)}
</section>
</main>
<footer>{_footer(comparison)}</footer>"""


def _cards(comparison: Comparison) -> str:
    chosen = [metric for key in CARDS for metric in METRICS if metric.key == key and key in comparison.table]
    cards = []
    for metric in chosen[:MAX_CARDS]:
        definition = define(metric.key)
        verdict = comparison.verdicts[metric.key]
        best = comparison.table[metric.key][verdict.best]
        level = len(verdict.tied)
        if level == len(comparison.routers):
            who, badge = f"all {level} level", '<span class="badge tie">no winner</span>'
        elif verdict.winner:
            who, badge = verdict.winner, '<span class="badge win">best</span>'
        else:
            who, badge = verdict.best, f'<span class="badge tie">level with {level - 1} more</span>'
        against = _against(comparison, verdict.best, best)
        figure, _, unit = number(best.value.value, definition.unit).partition(" ")
        cards.append(
            f'<div class="card"><div class="name">{tip(definition.title, meaning(definition))}</div>'
            f'<div class="figure">{figure}<small>{unit}</small></div>'
            f'<div class="who">{escape(who)} {badge}</div><div class="note">{escape(against)}</div>'
            f'<svg class="strip" data-metric="{metric.key}" role="img" aria-label="all routers"></svg></div>'
        )
    return "".join(cards)


def _against(comparison: Comparison, best: str, estimate: Estimate) -> str:
    if best == comparison.baseline:
        return "the baseline itself"
    if not estimate.relative:
        return ""
    if not estimate.to_baseline.excludes_zero:
        return f"not to be told from {comparison.baseline}"
    return f"{relative(estimate.to_baseline).partition(' (')[0]} than {comparison.baseline}"


def _map_text(comparison: Comparison) -> str:
    replicas = len(comparison.digests[0].routed)
    rows = (
        "each row a replica"
        if replicas <= HEAT_ROWS
        else f"each row about {replicas / HEAT_ROWS:.2g} replicas"
    )
    return (
        f"Requests waiting or running, {rows}, time from left to right (seed {comparison.seeds[0]}). Rows of"
        " one colour are an even load; a lone streak in one row is a replica that fell behind while others"
        " had room."
    )


def _table(comparison: Comparison) -> str:
    metrics = compared(comparison)
    heads = "".join(
        f'<th scope="col"><button type="button" data-tip="{escape(meaning(define(metric.key)), quote=True)}">'
        f"{escape(metric.title)}</button></th>"
        for metric in metrics
    )
    rows = []
    for router in comparison.routers:
        cells = "".join(_cell(comparison, metric, router) for metric in metrics)
        rows.append(f'<tr><th scope="row">{escape(router)}</th>{cells}</tr>')
    return (
        '<table id="table"><thead><tr><th scope="col"><button type="button">router</button></th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(comparison: Comparison, metric: Metric, router: str) -> str:
    unit = define(metric.key).unit
    value = comparison.table[metric.key][router].value
    verdict = comparison.verdicts[metric.key]
    level = len(verdict.tied) == len(comparison.routers)
    state = "win" if verdict.winner == router else "tie" if router in verdict.tied and not level else ""
    shown = number(value.value, unit)
    ends = f"<small>{_ends(value, shown, unit)}</small>" if math.isfinite(value.low) else ""
    sortable = value.value if math.isfinite(value.value) else 1e300
    return f'<td class="{state}" data-value="{sortable:.6g}">{shown}{ends}</td>'


def _ends(value: Interval, shown: str, unit: str) -> str:
    """The interval below a value; in the value's own unit it needs no unit."""
    said = between(value.low, value.high, unit)
    name = shown.partition(" ")[2]
    parts = said.split(" ")
    return f"{parts[0]} to {parts[2]}" if name and len(parts) == 4 and parts[3] == name else said


def _method(comparison: Comparison) -> str:
    seeds = len(comparison.seeds)
    words = "".join(
        f"<dt>{escape(metric.title)}</dt><dd>{escape(meaning(define(metric.key)))}</dd>"
        for metric in compared(comparison)
    )
    return f"""<div class="method">
<p><b>Same traffic.</b> For each of {seeds} seed{"s" if seeds != 1 else ""} one stream of requests was
made and sent through every router, so that differences are the routers' doing. No warm-up is cut: every
request counts.</p>
<p><b>Intervals.</b> Requests close in time share a queue, so a run is cut into up to 64 blocks of
consecutive requests and blocks are resampled 1,000 times, the same blocks for every router. Where seeds
differ by more than blocks explain, the excess is added as a Student t with {max(seeds - 1, 0)} degrees of
freedom. Figures of a whole run (throughput, inter-token latency, load) have only the seeds to go by, so
their intervals are wide.</p>
<p><b>Verdicts.</b> Differences are ratios to the best (absolute where zeros occur), paired by seed. A router
is called best only if the 95 % interval of the difference to every other router excludes zero; else all that
cannot be told from it are named. With many routers and metrics some difference is found by luck: about one
in twenty where there is none.</p>
</div>
<details><summary>Definitions</summary><dl class="words">{words}</dl></details>"""


def _footer(comparison: Comparison) -> str:
    runs = len(comparison.digests)
    seconds = sum(digest.cpu_seconds for digest in comparison.digests)
    hours = sum(digest.seconds for digest in comparison.digests) / 3600
    return (
        f"{runs} runs, {hours:.2f} hours of cluster time, simulated in {seconds:.1f} CPU-seconds. "
        f"Scenario {comparison.scenario.digest()}."
    )


# --- what scripts draw --------------------------------------------------------------------------


def compare_data(comparison: Comparison) -> dict[str, Any]:
    """The data of the page; times in ms, load maps as (router, replica, bin)."""
    return {
        "baseline": comparison.baseline,
        "routers": [_router(name) for name in comparison.routers],
        "metrics": [_metric(comparison, metric) for metric in compared(comparison)],
        "curves": {
            "shares": [round(float(share), 5) for share in CURVE_SHARES],
            "metrics": [
                {
                    "key": name,
                    "title": FAMILIES[name].title,
                    "short": SHORT.get(name, FAMILIES[name].title.capitalize()),
                    "unit": "ms",
                    "meaning": meaning(FAMILIES[name]),
                }
                for name in CURVES
            ],
            "values": {
                name: [
                    np.mean([digest.curves[name] for digest in comparison.of(router)], axis=0)
                    for router in comparison.routers
                ]
                for name in CURVES
            },
        },
        "heat": _heat(comparison),
    }


def _router(name: str) -> dict[str, str]:
    known = ROUTERS.get(name)
    return {
        "name": name,
        "summary": known.summary if known else "a router in Python",
        "formula": known.formula if known else "",
    }


def _metric(comparison: Comparison, metric: Metric) -> dict[str, Any]:
    definition = define(metric.key)
    verdict = comparison.verdicts[metric.key]
    row = comparison.table[metric.key]
    return {
        "key": metric.key,
        "title": metric.title,
        "unit": definition.unit,
        "meaning": meaning(definition),
        "higher": metric.higher_is_better,
        "winner": verdict.winner,
        "tied": verdict.tied,
        "said": verdict_sentence(comparison, metric),
        "rows": [
            {
                "v": estimate.value.value,
                "lo": estimate.value.low,
                "hi": estimate.value.high,
                "seeds": estimate.per_seed,
                "d": tuple(estimate.to_baseline),
                "b": tuple(estimate.to_best),
                "rel": estimate.relative,
            }
            for estimate in (row[router] for router in comparison.routers)
        ],
    }


def _heat(comparison: Comparison) -> dict[str, Any]:
    firsts = [comparison.of(router)[0] for router in comparison.routers]
    load = [np.round(digest.heat.T).astype(int) for digest in firsts]
    # a single overloaded replica must not bleach all other maps
    highest = max(float(np.quantile(rows, 0.995)) for rows in load)
    rows = len(load[0])
    key = "load_outstanding_max_over_mean"
    return {
        "load": load,
        "rows": rows,
        "per_row": len(firsts[0].routed) / rows,
        "seconds": [digest.seconds for digest in firsts],
        "highest": max(highest, 1.0),
        "spread": [
            float(np.mean([digest.summary[key] for digest in comparison.of(router)]))
            for router in comparison.routers
        ],
    }
