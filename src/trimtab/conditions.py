"""From a scenario's faults, admission, classes and autoscaling to what the engine acts on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import CLASS, FAULT, NONE, SCALER, Fault, ScaleBy
from trimtab.engine.state import Conditions
from trimtab.errors import TrimtabError
from trimtab.pools import pool_of_classes
from trimtab.scenario import Autoscale, FaultEvent, ReplicaGroup, RequestClass, Scenario

CLASS_STREAM, FAULT_STREAM = 100, 101  # of the scenario's seed; the workload's own are the first few
MOST_ADVICE = 100_000  # recommendations that a scaler can keep
MOST_CRASHES = 1000  # of one replica by mtbf_s, beyond what twice the arrivals' time needs


def assign_classes(requests: NDArray[Any], scenario: Scenario) -> None:
    """Toss each request's class by share, one for all of a session, and give it the class's priority;
    in place.

    Raises
    ------
    TrimtabError
        for two classes of one name.
    """
    classes = scenario.classes
    if not classes:
        return
    names = [one.name for one in classes]
    for name in names:
        if names.count(name) > 1:
            raise TrimtabError(f"classes: two are named {name!r}; names must differ")
    shares = np.cumsum([one.share for one in classes])
    rng = np.random.default_rng(np.random.SeedSequence(scenario.seed, spawn_key=(CLASS_STREAM,)))
    tossed = np.searchsorted(shares / shares[-1], rng.random(len(requests)), side="right")
    _, first, of = np.unique(requests["session"], return_index=True, return_inverse=True)
    tossed = np.where(requests["session"] == NONE, tossed, tossed[first][of])
    requests["klass"] = np.minimum(tossed, len(classes) - 1)
    requests["priority"] = np.array([one.priority for one in classes])[requests["klass"]]


def build_conditions(scenario: Scenario, requests: NDArray[Any]) -> Conditions:
    """Faults in order of time (given ones first at one instant), limits per class.

    Raises
    ------
    TrimtabError
        for a fault on a replica that does not exist, and settings that contradict each other.
    """
    faults, admission = scenario.faults, scenario.admission
    events = [_checked(event, index, scenario.num_replicas) for index, event in enumerate(faults.events)]
    events += _random_crashes(scenario, requests)
    if faults.health_delay_s > 0:
        events += [
            (at + faults.health_delay_s, int(Fault.CHECK), replica, 1.0)
            for at, kind, replica, _ in events
            if kind in (Fault.CRASH, Fault.RECOVER)
        ]
    events.sort(key=lambda event: event[0])
    classes = scenario.classes or [RequestClass(name="all", share=1.0)]
    for one in classes:
        if one.shed_at < 1 and admission.max_outstanding_per_replica is None:
            raise TrimtabError(
                f"class {one.name!r}: shed_at {one.shed_at:g} is a share of "
                "admission.max_outstanding_per_replica, which is not set"
            )
    limits = [
        (
            one.timeout_s or admission.timeout_s or math.inf,
            one.ttft_timeout_s or admission.ttft_timeout_s or math.inf,
            one.shed_at * (admission.max_outstanding_per_replica or math.inf),
            pool,
            ((one.slo or scenario.slo).ttft_ms or math.inf) / 1e3,
        )
        for one, pool in zip(classes, pool_of_classes(scenario), strict=True)
    ]
    scalers, starts = _scalers(scenario)
    return Conditions(
        faults=np.array(events, FAULT),
        classes=np.array(limits, CLASS),
        max_retries=faults.retries,
        backoff=faults.backoff_s,
        health_delay=faults.health_delay_s,
        breaker_failures=faults.breaker_failures or 0,
        breaker_open=faults.breaker_open_s,
        rate=admission.rate_qps or math.inf,
        burst=admission.burst,
        scalers=scalers,
        starts=starts,
        link_latency=scenario.disaggregation.latency_ms / 1e3 if scenario.disaggregation else 0.0,
    )


def _scalers(scenario: Scenario) -> tuple[NDArray[Any], tuple[int, ...]]:
    """(S,) SCALER, one per group with ``autoscale``, and the replicas that each starts with."""
    rows, starts = [], []
    first = 0
    for index, group in enumerate(scenario.replicas):
        if group.autoscale:
            config = _checked_autoscale(scenario, group, group.autoscale, f"replicas.{index}")
            row = np.zeros((), SCALER)
            row["first"], row["last"], row["least"] = first, first + group.slots, config.min
            row["metric"], row["target"] = int(ScaleBy[config.metric.upper()]), config.target
            row["interval"], row["provision"] = config.interval_s, config.provision_s
            row["window"] = config.window_s
            row["keep"] = int(config.scale_down_delay_s / config.interval_s + 1e-9) + 1
            rows.append(row)
            starts.append(group.count)
        first += group.slots
    return np.array(rows, SCALER), tuple(starts)


def _checked_autoscale(scenario: Scenario, group: ReplicaGroup, config: Autoscale, where: str) -> Autoscale:
    if config.min > config.max:
        raise TrimtabError(f"{where}.autoscale: min {config.min} is more than max {config.max}")
    if not config.min <= group.count <= config.max:
        raise TrimtabError(
            f"{where}: count {group.count} is where autoscale starts; allowed: its min {config.min} to its "
            f"max {config.max}"
        )
    if config.metric in ("kv", "slo") and config.target >= 1:
        raise TrimtabError(
            f"{where}.autoscale: target {config.target:g} of metric {config.metric} is a share; "
            f"allowed: above 0, below 1"
        )
    slos = [one.slo or scenario.slo for one in scenario.classes] or [scenario.slo]
    if config.metric == "slo" and all(slo.ttft_ms is None for slo in slos):
        raise TrimtabError(
            f"{where}.autoscale: metric slo needs slo.ttft_ms, the time in which first tokens should come"
        )
    if config.scale_down_delay_s > MOST_ADVICE * config.interval_s:
        raise TrimtabError(
            f"{where}.autoscale: scale_down_delay_s must be at most {MOST_ADVICE:,} times "
            f"interval_s = {config.interval_s:g}, got {config.scale_down_delay_s:g}"
        )
    return config


def _checked(event: FaultEvent, index: int, num_replicas: int) -> tuple[float, int, int, float]:
    where = f"faults.events.{index}"
    if event.replica >= num_replicas:
        raise TrimtabError(
            f"{where}: there is no replica {event.replica}; there are {num_replicas}, counted from 0"
        )
    if (event.kind == "slow") != (event.factor is not None):
        wrong = "needs a factor" if event.kind == "slow" else f"takes no factor, got {event.factor:g}"
        raise TrimtabError(f"{where}: kind {event.kind} {wrong}")
    return event.at_s, int(Fault[event.kind.upper()]), event.replica, event.factor or 1.0


def _random_crashes(scenario: Scenario, requests: NDArray[Any]) -> list[tuple[float, int, int, float]]:
    """Up and down in turn, exponential, each replica from its own stream of the seed."""
    faults = scenario.faults
    if faults.mtbf_s is None or faults.mttr_s is None:
        if faults.mtbf_s is not None or faults.mttr_s is not None:
            given, missing = ("mtbf_s", "mttr_s") if faults.mttr_s is None else ("mttr_s", "mtbf_s")
            raise TrimtabError(f"faults: {given} needs {missing} beside it")
        return []
    arrival = requests["arrival"][np.isfinite(requests["arrival"])]
    last = scenario.time_limit_s or 2.0 * float(arrival.max(initial=0.0))
    count = MOST_CRASHES + int(min(last / (faults.mtbf_s + faults.mttr_s), 100 * MOST_CRASHES))
    events: list[tuple[float, int, int, float]] = []
    for replica in range(scenario.num_replicas):
        stream = np.random.SeedSequence(scenario.seed, spawn_key=(FAULT_STREAM, replica))
        drawn = np.random.default_rng(stream).standard_exponential((count, 2))
        times = np.cumsum(drawn * [faults.mtbf_s, faults.mttr_s])
        kinds = np.tile([int(Fault.CRASH), int(Fault.RECOVER)], count)
        events += [(at, kind, replica, 1.0) for at, kind in zip(times.tolist(), kinds.tolist(), strict=True)]
    return events
