"""What the page of one run says: the text that stands without scripts, and the data that scripts draw."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import Status
from trimtab.report.definitions import FAMILIES, MEASURES, REPLICA_COLUMNS, SCALARS, define
from trimtab.report.digest import CURVE_SHARES, CURVES, load_map
from trimtab.report.html import LOGO, facts, meaning, source_details, tip
from trimtab.report.metrics import has_slo, replica_rows, request_columns, span
from trimtab.report.one_request import phases_ms
from trimtab.report.series import replicas_over_time, time_series
from trimtab.report.words import number, run_headline
from trimtab.result import Result

if TYPE_CHECKING:
    from trimtab.plan.regret import Decision

BINS = 160
HISTOGRAM_BARS = 64
MAX_LINES = 8  # replicas drawn one by one
SLOWEST = 10  # requests drawn one by one
MAX_ROWS = 128  # replicas in the table
SHOWN = ("mean", "p50", "p90", "p95", "p99")
SHORT = {"ttft_ms": "First token", "tpot_ms": "Per output token", "e2el_ms": "End to end"}
SHARES = ("busy_share", "mfu", "kv_utilization", "kv_peak")  # of the table of replicas
CARDS = (
    ("p99_ttft_ms", "p50_ttft_ms"),
    ("p99_tpot_ms", "p50_tpot_ms"),
    ("p99_e2el_ms", "p50_e2el_ms"),
    ("output_throughput", "request_throughput"),
    ("kv_utilization", "kv_peak"),
    ("load_outstanding_max_over_mean", "mean_queue_length"),
    ("mfu", "busy_share"),
)


def run_body(result: Result, summary: dict[str, float], decisions: Sequence[Decision] = ()) -> str:
    """Everything between the body tags but data and scripts."""
    scenario = result.scenario
    answer, backing = run_headline(result, summary)
    about = f'<p class="description">{escape(scenario.description)}</p>' if scenario.description else ""
    rest = [("router", scenario.router.name), ("seed", str(scenario.seed))]
    return f"""<header class="top">
<div class="eyebrow">{LOGO}trimtab simulate</div>
<h1>{escape(scenario.name)}</h1>
{about}
<p class="lead"><b>{escape(answer)}</b> {escape(backing)}</p>
{facts(scenario, result.groups, len(result.requests), rest)}
</header>
<main>
<section class="bare" aria-label="At a glance"><div class="cards">{_cards(result, summary)}</div></section>
<section aria-labelledby="h-curves">
<h2 id="h-curves">Who waits how long?</h2>
<p class="see">The share of requests served within a time; the top right are the unlucky few.</p>
<div class="bar" id="curves-controls"></div>
<div class="split"><div class="plot" id="curves"></div><div class="readout" id="curves-readout"></div></div>
</section>
<section aria-labelledby="h-phases">
<h2 id="h-phases">Where does the time go?</h2>
<p class="see">End-to-end latency by phase. If the slowest requests spend their time in the queue, add
capacity or route better; if in decoding, they are merely long.</p>
<div id="phases"></div>
<details><summary>The {SLOWEST} slowest requests, one by one</summary>
<p class="see">Any other request is a row of requests.parquet and a bar of trace.json.</p>
<div id="slowest"></div></details>
</section>
{_times(result)}<section aria-labelledby="h-maps">
<h2 id="h-maps">Where does the load lie?</h2>
<p class="see">Requests waiting or running, a row per replica, time from left to right. Rows of one
colour are an even load; a lone streak is a replica that fell behind.</p>
<div class="bar"><span class="scale" id="maps-scale"></span></div>
<div class="map"><canvas id="map" role="img" aria-label="Load of each replica over time"></canvas></div>
<div class="scroll" style="margin-top:18px">{_replicas(result)}</div>
</section>
{_regret(result, decisions)}<section aria-labelledby="h-batches">
<h2 id="h-batches">How full are the batches?</h2>
<p class="see">Sequences per iteration. Small batches leave the device idle; a spike on the right is
the cap.</p>
<div class="plot" id="batches"></div>
</section>
<section aria-labelledby="h-table">
<h2 id="h-table">All figures</h2>
<p class="see">Rest on a name for its definition. summary.json holds the same figures under the keys of
<code>vllm bench serve</code>.</p>
<div class="scroll">{_distributions(summary)}</div>
<details><summary>Totals and load</summary><div class="scroll">{_totals(summary)}</div></details>
</section>
<section aria-labelledby="h-files">
<h2 id="h-files">Beside this page</h2>
{_files()}
{source_details(scenario, result.provenance)}
</section>
</main>
<footer>Simulated in {result.cpu_seconds:.2f} CPU-seconds. Scenario {scenario.digest()}.</footer>"""


def _times(result: Result) -> str:
    return f"""<section aria-labelledby="h-times">
<h2 id="h-times">What happened when?</h2>
<p class="see">All charts share the time axis, in seconds since the first arrival.</p>
<div class="times">
{_time_chart("flow", "In and out, requests/s", "Completions below arrivals: the cluster falls behind.")}
{_time_chart("queue", "Queue, requests", "Requests waiting at all replicas; growth without end is overload.")}
{_time_chart("tokens", "Output, tokens/s", "Tokens generated; a plateau is the cluster's capacity.")}
{_time_chart("memory", "KV cache in use", "Share of blocks; near 100 % requests queue or are preempted.")}
{_fleet_chart(result)}
</div>
</section>
"""


def _regret(result: Result, decisions: Sequence[Decision]) -> str:
    if not decisions:  # planning is not loaded for a plain page
        return ""
    from trimtab.report.regret import regret_section

    return regret_section(result, decisions)


def _time_chart(name: str, title: str, see: str) -> str:
    return f'<div><h3>{title}</h3><p class="see">{see}</p><div class="plot" id="{name}"></div></div>'


def _fleet_chart(result: Result) -> str:
    see = "Replicas paid for: on their way, serving or leaving. Late against arrivals is queueing."
    return _time_chart("fleet", "Replicas", see) if result.autoscaled else ""


def _cards(result: Result, summary: dict[str, float]) -> str:
    pairs = list(CARDS)
    slo = ("slo_attainment", "request_goodput")
    pairs.insert(3, slo if has_slo(result) else ("cost_per_million_output_tokens", "cost"))
    cards = []
    for key, second in pairs:
        definition, other = define(key), define(second)
        figure, _, unit = number(summary[key], definition.unit).partition(" ")
        note = f"{other.title} {number(summary[second], other.unit)}"
        cards.append(
            f'<div class="card"><div class="name">{tip(definition.title, meaning(definition))}</div>'
            f'<div class="figure">{figure}<small>{unit}</small></div>'
            f'<div class="note">{escape(note)}</div></div>'
        )
    return "".join(cards)


def _replicas(result: Result) -> str:
    columns = ("requests", "request_share", "token_share", "mean_queue_length", "mean_running", *SHARES)
    rows = replica_rows(result)
    heads = "".join(
        f'<th scope="col">{tip(REPLICA_COLUMNS[name].title, meaning(REPLICA_COLUMNS[name]))}</th>'
        for name in columns
    )
    lines = [
        f'<tr><th scope="row">replica {index} <small>{escape(str(rows["device"][index]))}</small></th>'
        + "".join(
            f"<td>{number(float(rows[name][index]), REPLICA_COLUMNS[name].unit)}</td>" for name in columns
        )
        + "</tr>"
        for index in range(min(len(rows["replica"]), MAX_ROWS))
    ]
    more = len(rows["replica"]) - MAX_ROWS
    note = f'<p class="see">{more} more in replicas.csv.</p>' if more > 0 else ""
    return f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>{note}"


def _distributions(summary: dict[str, float]) -> str:
    heads = "".join(f'<th scope="col">{name}</th>' for name in SHOWN)
    rows = "".join(
        f'<tr><th scope="row">{tip(family.title, meaning(family))}</th>'
        + "".join(f"<td>{number(summary[f'{name}_{key}'], family.unit)}</td>" for name in SHOWN)
        + "</tr>"
        for key, family in FAMILIES.items()
    )
    return f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _totals(summary: dict[str, float]) -> str:
    keys = [*SCALARS, *(key for key in summary if key.startswith("load_"))]
    assert len(keys) > len(MEASURES)
    rows = "".join(
        f'<tr><th scope="row">{tip(define(key).title, meaning(define(key)))}</th>'
        f"<td>{number(float(summary[key]), define(key).unit)}</td>"
        f'<td class="text"><code>{key}</code></td></tr>'
        for key in keys
    )
    return f'<table style="width:auto"><tbody>{rows}</tbody></table>'


def _files() -> str:
    files = (
        ("trace.json", "every iteration and request: open it at ui.perfetto.dev or chrome://tracing"),
        ("requests.parquet", "a row per request: pandas.read_parquet, or trimtab.load(folder).requests"),
        ("iterations.parquet", "a row per iteration, up to the recording limit"),
        ("samples.parquet", "load of every replica over time"),
        ("scalings.parquet", "with autoscaling: when which replica came and went"),
        ("summary.json", "all figures of this page"),
        ("replicas.csv", "a row per replica"),
        ("regret.csv", "with trimtab report --regret N: the judged routing decisions"),
        ("scenario.yaml", "run it again: trimtab simulate scenario.yaml"),
        ("plots/", "PNG pictures, where they were asked for"),
    )
    items = "".join(f'<dt><a href="{name}">{name}</a></dt><dd>{escape(text)}</dd>' for name, text in files)
    return f'<dl class="words">{items}</dl>'


# --- what scripts draw --------------------------------------------------------------------------


def run_data(result: Result, summary: dict[str, float], decisions: Sequence[Decision] = ()) -> dict[str, Any]:
    """The data of the page; times in ms for latencies, in s for the time axis."""
    regret = None
    if decisions:
        from trimtab.report.regret import regret_data

        regret = regret_data(result, decisions)
    columns = request_columns(result)
    start, end = span(result)
    series = time_series(result, BINS)
    load = np.round(load_map(result, BINS).T, 1)
    return {
        "name": result.scenario.router.name,
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
            "values": {name: _curve(columns[name]) for name in CURVES},
        },
        "phases": _phases(columns),
        "seconds": max(end - start, 1e-9),
        "time": series["time"],
        "series": {
            "arrivals": series["arrivals"],
            "completions": series["completions"],
            "waiting": series["waiting"].sum(axis=1),
            "decode_tokens": series["decode_tokens"],
            "kv_used": _replica_lines(series["kv_used"]),
            "replicas": replicas_over_time(result, BINS) if result.autoscaled else None,
        },
        "heat": {
            "load": load,
            "rows": len(load),
            "per_row": len(result.replicas) / max(len(load), 1),
            "highest": max(float(load.max(initial=0.0)), 1.0),
        },
        "batches": _histogram(result),
        "slowest": _slowest(result),
        "regret": regret,
    }


def _curve(values: NDArray[np.float64]) -> Any:
    return np.quantile(values, CURVE_SHARES) if len(values) else [None] * len(CURVE_SHARES)


def _phases(columns: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Mean ms per phase, of all completed requests and of the slowest hundredth of them."""
    total = columns["e2el_ms"]
    if not len(total):
        return []
    found = []
    for title, kept in (
        ("All requests", np.ones(len(total), dtype=bool)),
        ("Slowest 1 % end to end", total >= np.quantile(total, 0.99)),
        ("Latest 1 % to their first token", columns["ttft_ms"] >= np.quantile(columns["ttft_ms"], 0.99)),
    ):
        queue = float(columns["scheduling_delay_ms"][kept].mean())
        prefill = float(columns["prefill_ms"][kept].mean())
        decode = float(total[kept].mean()) - queue - prefill
        found.append({"title": title, "queue": queue, "prefill": prefill, "decode": max(decode, 0.0)})
    return found


def _slowest(result: Result) -> list[dict[str, Any]]:
    """ms per phase of the requests with the longest way from arrival to last token."""
    table = result.requests
    done = np.flatnonzero(table["status"] == Status.FINISHED)
    total = table["finished"][done] - table["arrival"][done]
    start, _ = span(result)
    found = []
    for request in done[np.argsort(-total, kind="stable")[:SLOWEST]].tolist():
        row = table[request]
        found.append(
            {
                "title": f"request {request} at {number(float(row['arrival']) - start, 's')}, replica"
                f" {row['replica']}: {row['prefill_tokens']} + {row['decode_tokens']} tokens",
                **phases_ms(row),
            }
        )
    return found


def _replica_lines(values: NDArray[np.float64]) -> dict[str, Any]:
    if values.shape[1] <= MAX_LINES:
        return {f"replica {index}": values[:, index] for index in range(values.shape[1])}
    return {
        "fullest replica": values.max(axis=1),
        "mean": values.mean(axis=1),
        "emptiest replica": values.min(axis=1),
    }


def _histogram(result: Result) -> dict[str, Any]:
    """Share of iterations by sequences, in at most HISTOGRAM_BARS bars of equal width."""
    size = (result.iterations["prefills"] + result.iterations["decodes"]).astype(np.int64)
    if not len(size):
        return {"width": 1, "share": []}
    width = -(-int(size.max()) // HISTOGRAM_BARS)
    counts = np.bincount((size - 1) // width)
    return {"width": width, "share": counts / len(size)}
