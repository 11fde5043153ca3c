"""Faults in the plainest form: replicas crash and recover, slow down and drain; clients give up.

A replica accepts while the last health check found it up, it is not draining and its breaker is
closed. The rules are those of ``docs/background/faults.md``.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

from oracle.loop import (
    ARRIVAL,
    BREAKER,
    FAULT,
    FIRST_TOKEN_TIMEOUT,
    FORM,
    HANDOVER,
    PROVISIONED,
    SCALE,
    STAGE_END,
    TIMEOUT,
    Cluster,
    Replica,
    Stage,
)
from oracle.parts import Batch, Iteration, OracleReplica, Request, requests_of
from oracle.schedulers import SCHEDULERS
from trimtab.workload import Traffic

GOLDEN = 0.618033988749895


@dataclass(frozen=True)
class OracleFault:
    """``kind``: crash, recover, slow, drain, undrain or check (the health check looks)."""

    at: float
    kind: str
    replica: int
    factor: float = 1.0


@dataclass(frozen=True)
class OracleClass:
    """Seconds from arrival to the first and to the last token; outstanding requests per replica;
    ``replicas`` (first, one past the last) that may serve it, or None: all; seconds to the first token that
    its SLO allows; ``decodes``: those among which it goes on when it is prefilled, or None: where it is."""

    timeout: float = math.inf
    ttft_timeout: float = math.inf
    limit: float = math.inf
    replicas: tuple[int, int] | None = None
    bound: float = math.inf
    decodes: tuple[int, int] | None = None


@dataclass(frozen=True)
class OracleConditions:
    faults: list[OracleFault] = field(default_factory=list)
    classes: list[OracleClass] = field(default_factory=lambda: [OracleClass()])
    max_retries: int = 2
    backoff: float = 0.5
    health_delay: float = 0.0
    breaker_failures: int = 0
    breaker_open: float = 10.0
    rate: float = math.inf
    burst: float = 1.0
    link_latency: float = 0.0
    decode_router: str = "least_outstanding"


class Health:
    """What befell one replica, and what routers know of it."""

    def __init__(self) -> None:
        self.up = True
        self.seen_up = True
        self.draining = False
        self.breaker_open = False
        self.failures = 0

    @property
    def accepting(self) -> bool:
        return self.seen_up and not self.draining and not self.breaker_open


class FaultyCluster(Cluster):
    def __init__(
        self,
        requests: list[Request],
        settings: list[OracleReplica],
        router: str,
        conditions: OracleConditions,
    ):
        super().__init__(requests, settings, router)
        self.conditions = conditions
        self.health = [Health() for _ in settings]
        self.held: list[Request] = []
        self.bucket = conditions.burst
        self.bucket_filled = 0.0

    def run(self) -> None:
        for request in self.requests:
            if math.isfinite(request.arrival):
                self.push(request.arrival, ARRIVAL, request.index)
        for index, fault in enumerate(self.conditions.faults):
            self.push(fault.at, FAULT, index)
        now = 0.0
        while not all(request.end for request in self.requests):
            if not self.events:
                held = self.stranded(now)
                assert held, "requests were lost"
                for request in held:
                    self.close(now, request, "failed")
                continue
            now, kind, index, minus_stage = heapq.heappop(self.events)
            if kind == ARRIVAL:
                self.enter(now, self.requests[index])
            elif kind == FORM:
                self.replicas[index].forming = False
                self.form_batches(now, self.replicas[index])
            elif kind == STAGE_END:
                self.leave_stage(now, self.replicas[index], -minus_stage)
            elif kind == HANDOVER:
                self.go_further(now, self.requests[index])
            elif kind == FAULT:
                self.befall(now, self.conditions.faults[index])
            elif kind == BREAKER:
                self.health[index].breaker_open = False
                self.admit_held(now)
            elif kind in (PROVISIONED, SCALE):
                self.autoscale(now, kind, index)
            elif kind == TIMEOUT or math.isnan(self.requests[index].first_token):
                self.give_up(now, self.requests[index])
            self.after_event(now)

    def autoscale(self, now: float, kind: int, index: int) -> None:
        raise AssertionError("nothing scales here: see oracle.scaling")

    def after_event(self, now: float) -> None:
        """For ``oracle.scaling``."""

    def stranded(self, now: float) -> list[Request]:
        """Nothing will ever happen again: who waits for a replica waits in vain."""
        held, self.held = self.held, []
        return held

    def go_further(self, now: float, request: Request) -> None:
        raise NotImplementedError("oracle.disaggregation does this")

    def push(self, at: float, kind: int, index: int) -> None:
        heapq.heappush(self.events, (at, kind, index, 0))

    # --- at the router --------------------------------------------------------------------------

    def pool(self, request: Request) -> list[int]:
        """The replicas that may serve the request."""
        first, last = self.conditions.classes[request.klass].replicas or (0, len(self.replicas))
        return list(range(first, last))

    def accepting(self, request: Request) -> list[int]:
        return [index for index in self.pool(request) if self.health[index].accepting]

    def enter(self, now: float, request: Request) -> None:
        if request.end:
            return  # given up while it waited for its retry
        if request.retries == 0 and not request.pausing:
            if not self.admitted(now, request):
                self.close(now, request, "rejected")
                return
            patience = self.conditions.classes[request.klass]
            if math.isfinite(patience.timeout):
                self.push(now + patience.timeout, TIMEOUT, request.index)
            if math.isfinite(patience.ttft_timeout):
                self.push(now + patience.ttft_timeout, FIRST_TOKEN_TIMEOUT, request.index)
        candidates = self.accepting(request)
        if not candidates:
            self.held.append(request)
            return
        request.pausing = False
        if request.retries > 0 and len(candidates) > 1:
            candidates = [index for index in candidates if index != request.replica]
        request.replica = self.router.choose(request, self.replicas, candidates, self.pool(request))
        request.assigned = request.replica
        if not self.health[request.replica].up:
            self.fail_attempt(now, request)
            return
        self.replicas[request.replica].scheduler.enqueue(request)
        self.form_later(now, self.replicas[request.replica])

    def admitted(self, now: float, request: Request) -> bool:
        limit = self.conditions.classes[request.klass].limit
        outstanding, accepting = self.load(request)
        if outstanding >= limit * max(1, accepting):
            return False
        if math.isinf(self.conditions.rate):
            return True
        gained = (now - self.bucket_filled) * self.conditions.rate
        self.bucket = min(self.conditions.burst, self.bucket + gained)
        self.bucket_filled = now
        if self.bucket < 1.0:
            return False
        self.bucket -= 1.0
        return True

    def load(self, request: Request) -> tuple[int, int]:
        """Outstanding requests where it may go, those that wait to go there included; who accepts."""
        pool = self.pool(request)
        outstanding = sum(self.replicas[index].outstanding for index in pool)
        outstanding += sum(self.pool(other) == pool for other in self.held)
        return outstanding, len(self.accepting(request))

    def admit_held(self, now: float) -> None:
        """As soon as a replica accepts, the requests that waited for one come again."""
        for request in list(self.held):
            if self.accepting(request):
                self.held.remove(request)
                request.pausing = True
                self.push(now, ARRIVAL, request.index)

    # --- at the replicas ------------------------------------------------------------------------

    def befall(self, now: float, fault: OracleFault) -> None:
        health, replica = self.health[fault.replica], self.replicas[fault.replica]
        at_once = self.conditions.health_delay == 0.0
        if fault.kind == "crash" and health.up:
            health.up = False
            if at_once:
                health.seen_up = False
            self.crash(now, replica)
        elif fault.kind == "recover" and not health.up:
            health.up = True
            if at_once:
                health.seen_up = True
        elif fault.kind == "slow":
            replica.slow = fault.factor
        elif fault.kind in ("drain", "undrain"):
            health.draining = fault.kind == "drain"
        elif fault.kind == "check":
            health.seen_up = health.up
        self.admit_held(now)

    def crash(self, now: float, replica: Replica) -> None:
        """Everything on the replica is lost."""
        for stage in replica.stages:
            for batch in [*stage.queue, *([stage.current] if stage.current else [])]:
                assert batch.iteration is not None
                batch.iteration.end = now
                if math.isnan(batch.iteration.start):
                    batch.iteration.start = now
                for entry in batch.entries:
                    entry.request.execution -= batch.spent
        self.events = [event for event in self.events if event[1:3] != (STAGE_END, replica.index)]
        heapq.heapify(self.events)
        replica.stages = [Stage() for _ in replica.stages]
        replica.batches_in_flight = 0
        lost = [*replica.scheduler.running, *replica.scheduler.waiting]
        replica.scheduler = SCHEDULERS[replica.settings.scheduler](replica.settings)
        for request in lost:
            request.in_flight = False
            request.blocks = request.private = 0
            if request.given_up:
                request.end = "aborted"
            else:
                self.fail_attempt(now, request)

    def fail_attempt(self, now: float, request: Request) -> None:
        """Again from the prompt, after a pause that doubles each time; the coin is tossed anew."""
        request.target = request.prompt
        request.processed = 0
        health = self.health[request.replica]
        health.failures += 1
        if 0 < self.conditions.breaker_failures <= health.failures and not health.breaker_open:
            health.breaker_open = True
            self.push(now + self.conditions.breaker_open, BREAKER, request.replica)
        if request.retries == self.conditions.max_retries:
            self.close(now, request, "failed")
            return
        pause = self.conditions.backoff * 2**request.retries
        request.retries += 1
        request.pausing = True
        request.coin = (request.coin + GOLDEN) % 1.0
        self.push(now + pause, ARRIVAL, request.index)

    def give_up(self, now: float, request: Request) -> None:
        """The client goes: at once, but what is in flight stays until its batch ends."""
        if request.end or request.given_up:
            return
        if request.pausing or request in self.held:
            if request in self.held:
                self.held.remove(request)
            self.close(now, request, "aborted")
            return
        request.given_up = True
        super().end_request(now, request)
        replica = self.replicas[request.replica]
        if not request.in_flight:
            self.leave(request, replica)
        self.form_later(now, replica)

    def leave(self, request: Request, replica: Replica) -> None:
        request.end = "aborted"
        replica.scheduler.leave(request)

    def end_batch(self, now: float, replica: Replica, batch: Batch) -> None:
        super().end_batch(now, replica, batch)
        for entry in batch.entries:
            if entry.request.given_up and not entry.request.end:
                self.leave(entry.request, replica)

    def end_request(self, now: float, request: Request) -> None:
        if request.given_up:
            request.end = "aborted"
            request.finished = math.nan
            return
        request.end = "finished"
        self.health[request.replica].failures = 0
        super().end_request(now, request)

    def close(self, now: float, request: Request, end: str) -> None:
        """Unserved, and holding nothing; its user's next turn still comes."""
        request.end = end
        super().end_request(now, request)


def simulate_faults(
    requests: Any,
    replicas: list[OracleReplica],
    router: str,
    conditions: OracleConditions,
    traffic: Traffic | None = None,
) -> tuple[list[Request], list[Iteration]]:
    """``oracle.simulate`` under ``conditions``; every request ends one way or another."""
    if traffic is None:
        served = requests_of(requests)
    else:
        served = requests_of(requests, traffic.path_node, traffic.path_tokens)
    cluster = FaultyCluster(served, replicas, router, conditions)
    cluster.run()
    return cluster.requests, cluster.iterations
