"""Autoscaling in the plainest form. The rules are those of ``docs/background/autoscaling.md``.

A replica is on, leaving (it finishes what it has), provisioning (ordered) or off; all but off is paid for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from oracle.faults import FaultyCluster, OracleConditions, OracleFault
from oracle.loop import PROVISIONED, SCALE, Replica
from oracle.parts import Iteration, OracleReplica, Request, requests_of
from oracle.schedulers import SCHEDULERS
from trimtab.workload import Traffic


@dataclass(frozen=True)
class OracleScaler:
    """Scales replicas ``first`` to before ``last``, of which the first ``start`` are on at the start.

    ``metric``: queue, outstanding, kv or slo. ``keep`` recommendations bound scaling down.
    """

    first: int
    last: int
    start: int
    least: int = 1
    metric: str = "queue"
    target: float = 5.0
    interval: float = 15.0
    provision: float = 120.0
    window: float = 60.0
    keep: int = 21


class ScaledCluster(FaultyCluster):
    def __init__(
        self,
        requests: list[Request],
        settings: list[OracleReplica],
        router: str,
        conditions: OracleConditions,
        scalers: list[OracleScaler],
    ):
        super().__init__(requests, settings, router, conditions)
        self.scalers = scalers
        self.start = min(request.arrival for request in requests)
        self.power = ["on"] * len(settings)
        for scaler in scalers:
            for index in range(scaler.first + scaler.start, scaler.last):
                self.power[index] = "off"
        self.history: list[tuple[float, int, str]] = []  # every change of power
        self.advice = [[scaler.start] * scaler.keep for scaler in scalers]
        self.evaluations = [0] * len(scalers)
        self.idle: set[int] = set()

    def run(self) -> None:
        for index, scaler in enumerate(self.scalers):
            self.push(self.start + scaler.interval, SCALE, index)
        super().run()

    def autoscale(self, now: float, kind: int, index: int) -> None:
        if kind == PROVISIONED:
            self.set_power(now, index, "on")
            self.admit_held(now)
        else:
            self.evaluate(now, index)

    def evaluate(self, now: float, index: int) -> None:
        scaler = self.scalers[index]
        group = range(scaler.first, scaler.last)
        present = sum(self.active(replica) or self.power[replica] == "provisioning" for replica in group)
        advised = min(max(self.recommend(now, scaler, present), scaler.least), len(group))
        self.advice[index] = [*self.advice[index][1:], advised]
        wanted = max(self.advice[index])
        called = 0
        if advised > present:
            called = self.call(now, scaler, advised - present)
        elif wanted < present:
            self.send_away(now, scaler, present - wanted)
        self.evaluations[index] += 1
        self.push(self.start + (self.evaluations[index] + 1) * scaler.interval, SCALE, index)
        self.idle.add(index)
        if called or any(kind != SCALE for _, kind, *_ in self.events):
            self.idle.clear()
        if len(self.idle) == len(self.scalers):  # nobody will ever come for those who wait
            held, self.held = self.held, []
            for request in sorted(held, key=lambda request: request.index):
                self.close(now, request, "failed")

    def recommend(self, now: float, scaler: OracleScaler, present: int) -> int:
        active = [self.replicas[i] for i in range(scaler.first, scaler.last) if self.active(i)]
        held = sum(scaler.first in self.pool(request) for request in self.held)
        if scaler.metric == "slo":
            ratio = self.late_share(now, scaler) / (1.0 - scaler.target)
            if abs(ratio - 1.0) <= 0.1:
                advised = present
            elif ratio < 1.0:
                advised = present - 1
            else:
                advised = max(present, math.ceil(len(active) * min(ratio, 2.0)))
        else:
            load = sum(self.load_of(replica, scaler.metric) for replica in active)
            load += 0 if scaler.metric == "kv" else held
            close = present > 0 and abs(load / (scaler.target * present) - 1.0) <= 0.1
            advised = present if close else math.ceil(load / scaler.target)
        return max(advised, 1) if held else advised

    def load_of(self, replica: Replica, metric: str) -> float:
        if metric == "queue":
            return len(replica.scheduler.waiting)
        if metric == "outstanding":
            return replica.outstanding
        return replica.scheduler.used_blocks / replica.settings.num_blocks

    def late_share(self, now: float, scaler: OracleScaler) -> float:
        came = [
            request
            for request in self.requests
            if request.first_token > now - scaler.window and scaler.first <= request.replica < scaler.last
        ]
        late = [
            request
            for request in came
            if request.first_token - request.arrival > self.conditions.classes[request.klass].bound
        ]
        return len(late) / len(came) if came else 0.0

    def call(self, now: float, scaler: OracleScaler, count: int) -> int:
        group = range(scaler.first, scaler.last)
        leaving = [index for index in group if self.power[index] == "leaving"][:count]
        for index in leaving:
            self.set_power(now, index, "on")
        ordered = [index for index in group if self.power[index] == "off"][: count - len(leaving)]
        for index in ordered:
            self.set_power(now, index, "provisioning")
            self.push(now + scaler.provision, PROVISIONED, index)
        self.admit_held(now)
        return len(leaving) + len(ordered)

    def send_away(self, now: float, scaler: OracleScaler, count: int) -> None:
        newest_first = range(scaler.last - 1, scaler.first - 1, -1)
        ordered = [index for index in newest_first if self.power[index] == "provisioning"][:count]
        for index in ordered:
            self.events = [event for event in self.events if event[1:3] != (PROVISIONED, index)]
            self.events.sort()
            self.set_power(now, index, "off")
        active = [index for index in newest_first if self.active(index)][: count - len(ordered)]
        for index in active:
            self.set_power(now, index, "leaving")

    # --- power ----------------------------------------------------------------------------------

    def set_power(self, now: float, index: int, power: str) -> None:
        self.power[index] = power
        self.history.append((now, index, power))

    def active(self, index: int) -> bool:
        health = self.health[index]
        return self.power[index] == "on" and health.seen_up and not health.draining

    def accepting(self, request: Request) -> list[int]:
        return [index for index in super().accepting(request) if self.power[index] == "on"]

    def befall(self, now: float, fault: OracleFault) -> None:
        """Where there is no replica none can crash."""
        if fault.kind != "crash" or self.power[fault.replica] in ("on", "leaving"):
            super().befall(now, fault)

    def after_event(self, now: float) -> None:
        """Who was leaving and has nothing left is off; another machine will be up, healthy and
        know no prefix."""
        for index, power in enumerate(self.power):
            if power == "leaving" and self.replicas[index].outstanding == 0:
                self.set_power(now, index, "off")
                health = self.health[index]
                health.up = health.seen_up = True
                health.failures = 0
                replica = self.replicas[index]
                replica.scheduler = SCHEDULERS[replica.settings.scheduler](replica.settings)


def simulate_scaled(
    requests: Any,
    replicas: list[OracleReplica],
    router: str,
    conditions: OracleConditions,
    scalers: list[OracleScaler],
    traffic: Traffic | None = None,
) -> tuple[list[Request], list[Iteration], list[tuple[float, int, str]]]:
    """``oracle.simulate_faults`` with autoscaled replicas; also every change of power (s, replica, power)."""
    if traffic is None:
        served = requests_of(requests)
    else:
        served = requests_of(requests, traffic.path_node, traffic.path_tokens)
    cluster = ScaledCluster(served, replicas, router, conditions, scalers)
    cluster.run()
    return cluster.requests, cluster.iterations, cluster.history
