"""A fleet that follows its load: how many replicas when; what a perfect system and a fixed fleet need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.plan.bounds import Bound, figure_of
from trimtab.plan.capacity import FEWEST_REQUESTS, Size, fewest_replicas, ideal_load
from trimtab.plan.trial import simulate_lean
from trimtab.report.load import binned_mean
from trimtab.report.metrics import paid_over_time, paid_share, span
from trimtab.result import Result
from trimtab.scenario import DiurnalArrivals, Scenario

WINDOWS = 96  # of the series: a quarter of an hour each, of a day


@dataclass(frozen=True)
class FleetOverTime:
    """Replicas paid for, per seed: ``mean`` and ``peak`` (seeds,), ``hours`` of replicas.

    ``edges`` (WINDOWS + 1,) s; ``paid`` (WINDOWS,) replicas of the first seed, the mean in each window;
    ``perfect`` (WINDOWS,) whole replicas of a perfect system for what arrives in it. ``reached`` holds, per
    bound, the mean over seeds and whether every seed met it. ``fixed`` is the fleet that carries the peak
    rate without scaling, None where none does.
    """

    scenario: Scenario
    bounds: tuple[Bound, ...]
    mean: NDArray[np.float64]
    peak: NDArray[np.float64]
    hours: NDArray[np.float64]
    edges: NDArray[np.float64]
    rate: NDArray[np.float64]
    paid: NDArray[np.float64]
    perfect: NDArray[np.float64]
    reached: tuple[tuple[float, bool], ...]
    fixed: Size | None


def follow(
    scenario: Scenario,
    bounds: tuple[Bound, ...],
    seeds: Sequence[int] = (0, 1, 2),
    workers: int | None = None,
) -> FleetOverTime:
    """Simulate an autoscaled scenario whole, once per seed.

    Raises
    ------
    TrimtabError
        where several groups of replicas leave open which of them a perfect system would use.
    """
    if len(scenario.replicas) > 1:
        raise TrimtabError(
            f"{scenario.name}: capacity over time knows one group of replicas, not {len(scenario.replicas)}"
        )
    chosen = [scenario.model_copy(update={"seed": scenario.seed + seed}) for seed in seeds]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        results = list(pool.map(simulate_lean, chosen))
    hours = np.array([_hours(result) for result in results])
    edges, rate, paid = _series(results[0])
    per_replica = ideal_load(_alone(scenario), bounds)
    reached = []
    for bound in bounds:
        values = [figure_of(result, bound, np.ones(len(result.requests), bool)) for result in results]
        met = [
            value >= (bound.share or 0) if bound.metric == "goodput" else value <= bound.limit_s
            for value in values
        ]
        reached.append((float(np.mean(values)), all(met)))
    return FleetOverTime(
        scenario, bounds,
        mean=np.array([paid_share(result).sum() for result in results]),
        peak=np.array([paid_over_time(result)[1].max() for result in results], dtype=float),
        hours=hours, edges=edges, rate=rate, paid=paid, perfect=np.ceil(rate / per_replica - 1e-9),
        reached=tuple(reached), fixed=_fixed(scenario, bounds, workers),
    )  # fmt: skip


def _hours(result: Result) -> float:
    start, end = span(result)
    return float(paid_share(result).sum()) * (end - start) / 3600


def _series(result: Result) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(edges, requests/s, replicas paid for), the latter two mean per window while requests arrive."""
    start, _ = span(result)
    arrivals = result.requests["arrival"]
    edges = np.linspace(start, float(arrivals.max()), WINDOWS + 1)
    rate = np.histogram(arrivals, edges)[0] / np.diff(edges)
    times, count = paid_over_time(result)
    grid = np.linspace(start, edges[-1], 16 * WINDOWS, endpoint=False)
    held = count[np.maximum(np.searchsorted(times, grid, side="right") - 1, 0)]
    return edges, rate, binned_mean(grid, held, edges)


def _alone(scenario: Scenario) -> Scenario:
    """One replica that stays."""
    groups = [scenario.replicas[0].model_copy(update={"count": 1, "autoscale": None})]
    return scenario.model_copy(update={"replicas": groups})


def _fixed(scenario: Scenario, bounds: tuple[Bound, ...], workers: int | None) -> Size | None:
    """For the highest rate as if it stayed; only a day with a law has one."""
    arrivals = scenario.workload.arrivals
    if not isinstance(arrivals, DiurnalArrivals):
        return None
    steady = {"kind": "poisson", "qps": arrivals.qps * (1 + arrivals.amplitude)}
    workload = scenario.workload.model_dump(mode="json") | {
        "arrivals": steady, "num_requests": FEWEST_REQUESTS, "duration_s": None,
    }  # fmt: skip
    data = _alone(scenario).model_dump(mode="json", exclude_unset=True) | {"workload": workload}
    try:
        return fewest_replicas(Scenario.model_validate(data), bounds, workers=workers)
    except TrimtabError:
        return None
