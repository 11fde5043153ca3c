"""What a comparison keeps of a run: figures, blocks for the bootstrap, curves and a load map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import Status
from trimtab.report import bootstrap
from trimtab.report.bootstrap import Blocks
from trimtab.report.load import binned_mean
from trimtab.report.metrics import meets_slo, request_columns, span, summarize
from trimtab.result import Group, Result

Floats = NDArray[np.float64]


class Metric(NamedTuple):
    """A compared figure: a key of ``summarize`` and how its uncertainty is found.

    ``source`` is a distribution over requests and ``share`` the quantile (None: the mean); without a
    source the figure is one per run, and only seeds tell how sure it is.
    """

    key: str
    title: str
    higher_is_better: bool = False
    source: str = ""
    share: float | None = None


METRICS: tuple[Metric, ...] = (
    Metric("mean_ttft_ms", "TTFT mean", source="ttft_ms"),
    Metric("p50_ttft_ms", "TTFT p50", source="ttft_ms", share=0.5),
    Metric("p99_ttft_ms", "TTFT p99", source="ttft_ms", share=0.99),
    Metric("p50_tpot_ms", "TPOT p50", source="tpot_ms", share=0.5),
    Metric("p99_tpot_ms", "TPOT p99", source="tpot_ms", share=0.99),
    Metric("p99_itl_ms", "ITL p99"),
    Metric("mean_e2el_ms", "E2E mean", source="e2el_ms"),
    Metric("p99_e2el_ms", "E2E p99", source="e2el_ms", share=0.99),
    Metric("request_goodput", "Goodput", higher_is_better=True, source="good"),
    Metric("output_throughput", "Output tokens/s", higher_is_better=True),
    Metric("load_outstanding_max_over_mean", "Load max/mean"),
    Metric("preemptions_per_request", "Preemptions", source="restarts"),
)
CURVES = ("ttft_ms", "tpot_ms", "e2el_ms", "scheduling_delay_ms")
# Where quantile curves are taken: evenly up to 90 %, then ever finer towards 99.95 %, and where people look.
CURVE_SHARES = np.unique(
    np.round([*np.linspace(0, 0.9, 121), *(1 - np.geomspace(0.1, 5e-4, 80)[1:]), 0.95, 0.99, 0.999], 5)
)
HEAT_ROWS = 64


@dataclass(frozen=True)
class Digest:
    """One run, reduced. ``heat`` (bins, rows): requests waiting or running, mean per span of time."""

    router: str
    seed: int
    summary: dict[str, float]
    blocks: dict[str, Blocks]
    curves: dict[str, Floats]  # (len(CURVE_SHARES),) each, ms
    routed: NDArray[np.int64]  # (R,) requests
    heat: Floats
    seconds: float  # of simulated time
    lengths: tuple[int, int]  # sums of prompt and output tokens: what was asked
    arrivals: float  # s, mean arrival
    groups: tuple[Group, ...]
    provenance: dict[str, Any]
    cpu_seconds: float


def digest_run(result: Result, heat_bins: int = 160) -> Digest:
    """Reduce a run to a few hundred kilobytes, whatever its length."""
    columns = request_columns(result)
    requests = result.requests
    start, end = span(result)
    return Digest(
        router=result.scenario.router.name,
        seed=result.scenario.seed,
        summary=summarize(result),
        blocks=_blocks(result, columns),
        curves={name: _curve(columns[name]) for name in CURVES},
        routed=result.replicas["routed"].astype(np.int64),
        heat=load_map(result, heat_bins),
        seconds=end - start,
        lengths=(
            int(requests["prefill_tokens"].sum(dtype=np.int64)),
            int(requests["decode_tokens"].sum(dtype=np.int64)),
        ),
        arrivals=float(requests["arrival"].mean()) if len(requests) else 0.0,
        groups=result.groups,
        provenance=result.provenance,
        cpu_seconds=result.cpu_seconds,
    )


def _blocks(result: Result, columns: dict[str, Floats]) -> dict[str, Blocks]:
    requests = result.requests
    block = bootstrap.block_of(len(requests))
    count = int(block[-1]) + 1 if len(block) else 1
    done = requests["status"] == Status.FINISHED
    several = done & (requests["decode_tokens"] > 1)
    kept = {"ttft_ms": done, "tpot_ms": several, "e2el_ms": done, "restarts": done}
    blocks = {
        name: bootstrap.reduce_to_blocks(columns[name], block[rows], count) for name, rows in kept.items()
    }
    good = meets_slo(result).astype(np.float64)
    return blocks | {"good": bootstrap.reduce_to_blocks(good, block, count)}


def _curve(values: Floats) -> Floats:
    return np.quantile(values, CURVE_SHARES) if len(values) else np.full(len(CURVE_SHARES), np.nan)


def load_map(result: Result, bins: int) -> Floats:
    """(bins, rows) requests waiting or running, mean per span of time; at most HEAT_ROWS rows."""
    start, end = span(result)
    load = (result.samples["waiting"] + result.samples["running"]).astype(np.float64)
    if load.shape[1] > HEAT_ROWS:  # rows become means of neighbours
        edges = np.arange(HEAT_ROWS) * load.shape[1] // HEAT_ROWS
        load = np.add.reduceat(load, edges, axis=1) / np.diff([*edges, load.shape[1]])
    return binned_mean(result.sample_times, load, np.linspace(start, max(end, start + 1e-9), bins + 1))
