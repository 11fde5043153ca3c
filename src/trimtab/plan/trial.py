"""One simulation for planning: no record of iterations, and only what the answers need is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trimtab.cluster import Fleet
from trimtab.cluster.run import run
from trimtab.conditions import assign_classes
from trimtab.engine.dtypes import Status
from trimtab.fleet import build_fleets
from trimtab.plan.bounds import Bound, figure_of, measure, order_statistic, seconds_of
from trimtab.plan.scale import STEADY, at_load, at_size, with_requests
from trimtab.result import Group, Result
from trimtab.scenario import Scenario
from trimtab.simulation import collect, start
from trimtab.workload import build_traffic

ROUND = 1024  # tokens
WARM_UP = 0.25  # of the requests: they find the cluster emptier than those after them
FIGURES = {  # quantiles that are kept of every trial, in seconds
    "ttft": (0.5, 0.9, 0.99),
    "tpot": (0.5, 0.9, 0.99),
    "e2e": (0.5, 0.99),
}
BUSY, FULL = 0.9, 0.95  # shares from which on a resource is said to bind


@dataclass(frozen=True)
class Trial:
    """What one simulation found. ``sums`` (bounds, 2) is ``bounds.measure``'s; figures by name, seconds,
    shares and counts."""

    sums: NDArray[np.float64]
    figures: dict[str, float]


def run_trial(
    scenario: Scenario,
    bounds: tuple[Bound, ...],
    requests: int,
    seed: int,
    load: float = 1.0,
    replicas: int = 0,
) -> Trial:
    """Simulate ``requests`` at ``load`` times the scenario's arrivals on ``replicas`` (0: as they are).

    The first quarter of the requests warms the cluster up and is not counted, where arrivals have one law
    throughout; a trace or a day counts as a whole.
    """
    chosen = with_requests(at_load(scenario, load), requests, seed)
    if replicas:
        chosen = at_size(chosen, replicas)
    result = simulate_lean(chosen)
    steady = chosen.workload.arrivals.kind in STEADY
    kept = np.arange(len(result.requests)) >= (WARM_UP * len(result.requests) if steady else 0)
    figures = {str(bound): figure_of(result, bound, kept) for bound in bounds}
    return Trial(measure(result, bounds, kept), figures | _figures(result, kept))


def simulate_lean(scenario: Scenario) -> Result:
    """As ``simulate``, without a record of iterations, and with replicas built once per process."""
    traffic = build_traffic(scenario.workload, scenario.seed)
    assign_classes(traffic.requests, scenario)
    fleets, groups = fleets_of(scenario, traffic.requests)
    state = start(scenario, traffic, fleets, max_iterations=0)
    seconds = run(state, None, scenario.time_limit_s or np.inf)
    return collect(scenario, groups, state, seconds)


def fleets_of(scenario: Scenario, requests: NDArray[np.void]) -> tuple[list[Fleet], list[Group]]:
    """As ``fleet.build_fleets``, built once for all requests of the same greatest length."""
    if len({klass.model for klass in scenario.classes}) > 1:
        return build_fleets(scenario, requests)  # each class has a greatest length of its own
    longest = planned_length(scenario, requests)
    shape = scenario.model_dump(mode="json", include={"replicas", "disaggregation", "classes"})
    counts = [group.slots for group in scenario.replicas]
    for group in shape["replicas"]:
        group["count"], group["autoscale"] = 1, None
    fleets, groups = _built(json.dumps(shape, sort_keys=True), longest)
    return [replace(fleet, count=count) for fleet, count in zip(fleets, counts, strict=True)], groups


def planned_length(scenario: Scenario, requests: NDArray[np.void]) -> int:
    """Tokens of the longest request that replicas are built for: the longest that the workload allows, else
    the longest there is, up to whole ROUND."""
    workload = scenario.workload
    allowed = workload.max_tokens or (workload.sessions.max_context if workload.sessions else 0)
    longest = int((requests["prefill_tokens"] + requests["decode_tokens"]).max())
    return allowed if longest <= allowed else -(-longest // ROUND) * ROUND


@lru_cache(maxsize=64)
def _built(shape: str, longest: int) -> tuple[list[Fleet], list[Group]]:
    scenario = Scenario.model_validate(json.loads(shape))
    request = build_traffic(scenario.workload.model_copy(update={"num_requests": 1}), 0).requests
    request["prefill_tokens"], request["decode_tokens"] = max(longest - 1, 1), 1
    return build_fleets(scenario, request)


def _figures(result: Result, kept: NDArray[np.bool_]) -> dict[str, float]:
    table, replicas = result.requests[kept], result.replicas
    figures: dict[str, float] = {}
    for metric, shares in FIGURES.items():
        seconds = seconds_of(table, metric)
        for share in shares:
            figures[f"{metric}_p{100 * share:g}"] = order_statistic(seconds, share)
    all_of_it = result.requests
    end = max(float(replicas["last_change"].max(initial=0.0)), float(all_of_it["arrival"][-1]))
    stages = np.array([result.groups[index].pp for index in replicas["group"]])
    return figures | {
        "unserved": float((table["status"] != Status.FINISHED).sum()),
        "busy": float((replicas["busy"] / stages).max() / end) if end > 0 else 0.0,
        "kv_peak": float((replicas["kv_peak"] / np.maximum(replicas["kv_total"], 1)).max()),
        "preemptions": float(replicas["preemptions"].sum()) / len(all_of_it),
    }


def what_binds(figures: dict[str, float]) -> str:
    """The resource that is spent, in words."""
    if figures.get("preemptions", 0.0) > 0.01 or figures.get("kv_peak", 0.0) >= FULL:
        return f"KV cache is full at times ({100 * figures['kv_peak']:.0f} % at the peak)"
    if figures.get("busy", 0.0) >= BUSY:
        return f"replicas are never idle (the busiest computes {100 * figures['busy']:.0f} % of the time)"
    share = 100 * figures.get("busy", 0.0)
    return f"no resource is spent (the busiest replica computes {share:.0f} % of the time): latency binds"
