"""A run on the terminal: the block that ``vllm bench serve`` prints, and a table per replica."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trimtab.report.metrics import replica_rows, summarize
from trimtab.result import Result

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.comparison import Comparison

WIDTH = 50
COUNTS = (
    ("Successful requests:", "completed"),
    ("Failed requests:", "failed"),
    ("Benchmark duration (s):", "duration"),
    ("Total input tokens:", "total_input_tokens"),
    ("Total generated tokens:", "total_output_tokens"),
    ("Request throughput (req/s):", "request_throughput"),
    ("Request goodput (req/s):", "request_goodput"),
    ("Output token throughput (tok/s):", "output_throughput"),
    ("Total token throughput (tok/s):", "total_token_throughput"),
)
LATENCIES = (
    ("Time to First Token", "TTFT", "ttft_ms"),
    ("Time per Output Token (excl. 1st token)", "TPOT", "tpot_ms"),
    ("Inter-token Latency", "ITL", "itl_ms"),
    ("End-to-end Latency", "E2EL", "e2el_ms"),
)
CLUSTER = (
    ("P99 KV transfer (ms):", "p99_kv_transfer_ms"),
    ("KV link utilisation (%):", "kv_link_utilization"),
    ("Prefix cache hits (%):", "prefix_hit_rate"),
    ("Preemptions:", "preemptions"),
    ("Mean queue length per replica:", "mean_queue_length"),
    ("KV utilisation, mean (%):", "kv_utilization"),
    ("Model FLOPs utilisation (%):", "mfu"),
    ("Tokens per decode step:", "tokens_per_step"),
    ("Busiest replica / mean, over time:", "load_outstanding_max_over_mean"),
)
SCALING = (
    ("Replicas paid for, mean:", "mean_replicas"),
    ("Replicas paid for, most:", "peak_replicas"),
    ("Replicas called:", "scale_ups"),
    ("Replicas sent away:", "scale_downs"),
    ("Cost per hour (USD):", "cost_per_hour"),
    ("Cost per 1M output tokens (USD):", "cost_per_million_output_tokens"),
)
# A comparison's metrics in the order in which they claim room on the terminal; the page has all.
ON_TERMINAL = (
    "p99_ttft_ms",
    "mean_e2el_ms",
    "p99_tpot_ms",
    "request_goodput",
    "p50_ttft_ms",
    "load_outstanding_max_over_mean",
    "p99_e2el_ms",
    "output_throughput",
)
ROUTER_WIDTH, METRIC_WIDTH = 24, 14


def bench_table(summary: dict[str, float]) -> str:
    """The block of ``vllm bench serve``, line for line, with a last section on the cluster.

    Lines without a figure (goodput without an SLO, TPOT of one-token outputs) are left out.
    """
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
    lines += [line for label, key in COUNTS for line in _line(label, key, summary)]
    for title, short, name in LATENCIES:
        rows = [
            line
            for label, statistic in (("Mean", "mean"), ("Median", "median"), ("P99", "p99"))
            for line in _line(f"{label} {short} (ms):", f"{statistic}_{name}", summary)
        ]
        lines += [f"{title:-^{WIDTH}}", *rows] if rows else []
    lines.append(f"{'Cluster':-^{WIDTH}}")
    lines += [line for label, key in CLUSTER for line in _line(label, key, summary)]
    if not math.isnan(summary["scale_ups"]):
        lines.append(f"{'Autoscaling':-^{WIDTH}}")
        lines += [line for label, key in SCALING for line in _line(label, key, summary)]
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def _line(label: str, key: str, summary: dict[str, float]) -> list[str]:
    value = summary[key]
    if math.isnan(value):
        return []
    scaled = value * 100 if "(%)" in label else value
    return [f"{label:<40} {scaled:<10}" if isinstance(value, int) else f"{label:<40} {scaled:<10.2f}"]


def replica_table(result: Result, limit: int = 16) -> Table:
    """One line per replica; of more than ``limit``, the busiest and the least busy half each."""
    from rich.table import Table

    rows = replica_rows(result)
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for heading in (
        "replica",
        "device",
        "requests",
        "share",
        "queue",
        "running",
        "busy",
        "MFU",
        "KV",
        "KV peak",
    ):
        table.add_column(heading, justify="left" if heading == "device" else "right")
    for index in _shown(rows["mean_running"] + rows["mean_queue_length"], limit):
        if index is None:
            table.add_row(*["..."] * 10)
            continue
        table.add_row(
            str(index),
            str(rows["device"][index]),
            f"{rows['requests'][index]:,}",
            f"{rows['request_share'][index]:.1%}",
            f"{rows['mean_queue_length'][index]:.2f}",
            f"{rows['mean_running'][index]:.1f}",
            f"{rows['busy_share'][index]:.1%}",
            f"{rows['mfu'][index]:.1%}",
            f"{rows['kv_utilization'][index]:.1%}",
            f"{rows['kv_peak'][index]:.1%}",
        )
    return table


def _shown(load: object, limit: int) -> list[int | None]:
    import numpy as np

    values = np.asarray(load)
    if len(values) <= limit:
        return list(range(len(values)))
    order = [int(index) for index in np.argsort(-values, kind="stable")]
    half = limit // 2
    return [*order[:half], None, *order[-half:]]


def print_result(result: Result, summary: dict[str, float] | None = None) -> None:
    """Both tables on standard output."""
    from rich.console import Console

    print(bench_table(summary if summary is not None else summarize(result)))
    if len(result.replicas) > 1:
        Console().print(replica_table(result))


def print_comparison(comparison: Comparison) -> None:
    """The answer, then metrics by routers: the best in bold, what is level with it in plain, others dim."""
    from rich.console import Console
    from rich.text import Text

    from trimtab.report.words import headline, notices

    console = Console(highlight=False)
    answer, backing = headline(comparison)
    console.print(Text(answer, style="bold"), Text(backing), sep=" ")
    console.print(comparison_table(comparison, console.width))
    seeds = len(comparison.seeds)
    console.print(
        Text(
            f"Means over {seeds} seed{'s' if seeds != 1 else ''}. * best: beats every other at 95 %;"
            " ~ cannot be told from the best.",
            style="dim",
        )
    )
    for said in notices(comparison):
        console.print(Text(said, style="yellow"))


def comparison_table(comparison: Comparison, width: int = 120) -> Table:
    """Routers down, metrics across: as many as fit ``width`` characters."""
    from rich.table import Table
    from rich.text import Text

    from trimtab.report.definitions import define
    from trimtab.report.digest import METRICS
    from trimtab.report.words import number

    room = max(2, (width - ROUTER_WIDTH) // METRIC_WIDTH)
    fitting = [key for key in ON_TERMINAL if key in comparison.table][:room]
    metrics = [metric for metric in METRICS if metric.key in fitting]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("router", no_wrap=True)
    for metric in metrics:
        table.add_column(metric.title, justify="right")
    for router in comparison.routers:
        cells = []
        for metric in metrics:
            verdict = comparison.verdicts[metric.key]
            said = number(comparison.table[metric.key][router].value.value, define(metric.key).unit)
            if verdict.winner == router:
                cells.append(Text(f"{said} *", style="bold green"))
            elif router in verdict.tied and len(verdict.tied) < len(comparison.routers):
                cells.append(Text(f"{said} ~"))
            else:
                cells.append(Text(f"{said}  ", style="dim"))
        table.add_row(router, *cells)
    return table


__all__ = ["bench_table", "comparison_table", "print_comparison", "print_result", "replica_table"]
