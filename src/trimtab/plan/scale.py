"""The same scenario at another load, or on another number of replicas."""

from __future__ import annotations

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.scenario import ReplicaGroup, Scenario, StepArrivals, TraceArrivals
from trimtab.workload import build_requests

STEADY = ("static", "poisson", "gamma", "burst")  # arrivals whose law does not change with time


def mean_rate(scenario: Scenario) -> float:
    """Requests per second that the scenario's arrivals bring in the long run.

    Raises
    ------
    TrimtabError
        for a closed loop, whose rate the cluster decides, and for arrivals all at once.
    """
    workload, arrivals = scenario.workload, scenario.workload.arrivals
    if workload.users is not None:
        raise TrimtabError(
            f"{scenario.name}: a closed loop (workload.users) has no load of its own to vary; give arrivals"
        )
    if arrivals.kind == "static" and arrivals.qps is None:
        raise TrimtabError(f"{scenario.name}: all requests arrive at once; give workload.arrivals a qps")
    if arrivals.kind == "burst":
        share = min(arrivals.burst_s / arrivals.every_s, 1.0)
        return float(arrivals.qps * (1.0 + (arrivals.factor - 1.0) * share))
    if isinstance(arrivals, (TraceArrivals, StepArrivals)):
        times = build_requests(workload, scenario.seed)["arrival"]
        return len(times) / max(float(times[-1] - times[0]), 1e-9)
    return float(arrivals.qps or 0.0)


def at_load(scenario: Scenario, factor: float) -> Scenario:
    """Arrivals ``factor`` times as dense; what is asked, and in which order, stays as it is."""
    arrivals = scenario.workload.arrivals
    if isinstance(arrivals, TraceArrivals):
        change: dict[str, object] = {"time_scale": arrivals.time_scale / factor}
    elif isinstance(arrivals, StepArrivals):
        change = {"steps": [(start, rate * factor) for start, rate in arrivals.steps]}
    else:
        change = {"qps": (arrivals.qps or 0.0) * factor}
    workload = scenario.workload.model_copy(update={"arrivals": arrivals.model_copy(update=change)})
    if workload.num_requests and arrivals.kind in ("diurnal", "step"):  # the same span of time
        workload = workload.model_copy(update={"num_requests": round(factor * workload.num_requests) or 1})
    return scenario.model_copy(update={"workload": workload})


def with_requests(scenario: Scenario, count: int, seed: int) -> Scenario:
    """The first ``count`` requests (0: as many as they are) of another seed."""
    if not count:
        return scenario.model_copy(update={"seed": seed})
    workload = scenario.workload.model_copy(update={"num_requests": count, "duration_s": None})
    return scenario.model_copy(update={"workload": workload, "seed": seed})


def at_size(scenario: Scenario, replicas: int) -> Scenario:
    """``replicas`` in all; several groups keep their proportions as well as whole numbers allow.

    Raises
    ------
    TrimtabError
        where there are fewer replicas than groups.
    """
    counts = split_evenly(replicas, [group.count for group in scenario.replicas])
    groups = [
        group.model_copy(update={"count": count})
        for group, count in zip(scenario.replicas, counts, strict=True)
    ]
    return scenario.model_copy(update={"replicas": groups})


def split_evenly(total: int, shares: list[int]) -> list[int]:
    """Whole numbers that sum to ``total``, in proportion to ``shares``, none of them zero."""
    if total < len(shares):
        raise TrimtabError(f"{len(shares)} groups of replicas need as many replicas; got {total}")
    wanted = np.array(shares, dtype=np.float64) * total / sum(shares)
    counts = np.maximum(1, np.floor(wanted)).astype(int)
    while counts.sum() < total:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > total:
        most = np.where(counts > 1, counts - wanted, -np.inf)
        counts[np.argmax(most)] -= 1
    return [int(count) for count in counts]


def cost_per_hour(groups: list[ReplicaGroup], prices: dict[str, float]) -> float:
    """USD per hour of all devices of ``groups``; ``prices`` by device name."""
    return sum(prices[group.device] * group.tp * group.pp * group.count for group in groups)
