"""The verbs: requests arrive, replicas form batches, batches walk through pipeline stages.

Order of events at the same instant, by decision (they do not coincide in the reference cases):
    1. batches that leave a stage: lower replica first, then the later stage;
    2. KV that has come to who decodes: lower request index first (see ``oracle.disaggregation``);
    3. what comes from outside: faults, breakers, clients that give up (see ``oracle.faults``), autoscaling,
       replicas that it ordered (see ``oracle.scaling``);
    4. arrivals and retries: lower request index first;
    5. replicas form their batches: lower replica first.
So a batch is formed from all that has ended and arrived by then, as in Vidur.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

from oracle.parts import Batch, Iteration, OracleReplica, Request, drafts_accepted, requests_of
from oracle.schedulers import SCHEDULERS, Scheduler
from trimtab.workload import Traffic

(
    STAGE_END,
    HANDOVER,
    FAULT,
    BREAKER,
    TIMEOUT,
    FIRST_TOKEN_TIMEOUT,
    SCALE,
    PROVISIONED,
    ARRIVAL,
    FORM,
) = range(10)


class Deadlock(Exception):
    """Some requests are never served: they do not fit, or preempt each other in circles."""


class Stage:
    """One pipeline stage: serves batches one at a time, first come first served."""

    def __init__(self) -> None:
        self.queue: list[Batch] = []
        self.current: Batch | None = None


class Replica:
    def __init__(self, index: int, settings: OracleReplica):
        self.index = index
        self.settings = settings
        self.scheduler: Scheduler = SCHEDULERS[settings.scheduler](settings)
        self.stages = [Stage() for _ in range(settings.num_stages)]
        self.batches_in_flight = 0
        self.batches_formed = 0
        self.forming = False
        self.slow = 1.0  # iterations last this many times as long
        self.coming: list[Request] = []  # their KV is on the way here, and
        self.received: list[Request] = []  # has come (see ``oracle.disaggregation``)

    @property
    def waiting(self) -> int:
        return len(self.scheduler.waiting) + len(self.received)

    @property
    def outstanding(self) -> int:
        return self.waiting + len(self.scheduler.running) + len(self.coming)


class Router:
    """replay, random, round_robin, least_outstanding, vidur_lor.

    least_outstanding looks round from the replica that the request's coin names (0: the first), so
    that ties fall anywhere; vidur_lor gives ties to the lowest index, as Vidur does.
    """

    def __init__(self, name: str):
        self.name = name
        self.turns: dict[tuple[int, ...], int] = {}  # by pool

    def choose(
        self, request: Request, replicas: list[Replica], candidates: list[int], pool: list[int]
    ) -> int:
        """One of ``candidates``, the replicas of the ``pool`` that accept; they are in order."""
        count = len(pool)
        if self.name == "replay":
            start = request.assigned if request.assigned in pool else pool[0]
            return min(candidates, key=lambda i: (i - start) % count)
        if self.name == "random":
            return candidates[int(request.coin * len(candidates))]
        if self.name == "round_robin":
            turn = self.turns.get(tuple(pool), pool[0])
            chosen = min(candidates, key=lambda i: (i - turn) % count)
            self.turns[tuple(pool)] = pool[0] + (chosen + 1 - pool[0]) % count
            return chosen
        if self.name == "least_outstanding":
            tossed = pool[0] + int(request.coin * count)
            return min(candidates, key=lambda i: (replicas[i].outstanding, (i - tossed) % count))
        if self.name == "vidur_lor":
            return min(candidates, key=lambda i: (replicas[i].waiting, i))
        raise ValueError(f"the oracle knows no router {self.name!r}")


class Cluster:
    def __init__(self, requests: list[Request], settings: list[OracleReplica], router: str):
        self.requests = requests
        self.replicas = [Replica(index, one) for index, one in enumerate(settings)]
        self.router = Router(router)
        self.seed = 0
        self.iterations: list[Iteration] = []
        self.events: list[tuple[float, int, int, int]] = []  # s, kind, replica or request, -stage

    def run(self) -> None:
        for request in self.requests:
            if math.isfinite(request.arrival):
                heapq.heappush(self.events, (request.arrival, ARRIVAL, request.index, 0))
        most = 100 * sum(request.prompt + request.output for request in self.requests)
        while self.events and len(self.iterations) < most:
            now, kind, index, minus_stage = heapq.heappop(self.events)
            if kind == ARRIVAL:
                self.arrive(now, self.requests[index])
            elif kind == FORM:
                self.replicas[index].forming = False
                self.form_batches(now, self.replicas[index])
            else:
                self.leave_stage(now, self.replicas[index], -minus_stage)
        stuck = [request.index for request in self.requests if not request.done]
        if stuck:
            raise Deadlock(f"requests {stuck} are never served")

    def arrive(self, now: float, request: Request) -> None:
        everyone = list(range(len(self.replicas)))
        request.replica = self.router.choose(request, self.replicas, everyone, everyone)
        replica = self.replicas[request.replica]
        replica.scheduler.enqueue(request)
        self.form_later(now, replica)

    def form_later(self, now: float, replica: Replica) -> None:
        """Batches form when all that ends and arrives at this instant is known."""
        if not replica.forming:
            replica.forming = True
            heapq.heappush(self.events, (now, FORM, replica.index, 0))

    def form_batches(self, now: float, replica: Replica) -> None:
        """As many batches as there are stages may be in flight."""
        while replica.batches_in_flight < replica.settings.num_stages:
            speculation = replica.settings.speculation
            if speculation:
                accepted = drafts_accepted(speculation, self.seed, replica.index, replica.batches_formed)
                replica.scheduler.accepted_drafts = accepted
            batch = replica.scheduler.next_batch()
            if batch is None:
                break
            replica.batches_in_flight += 1
            replica.batches_formed += 1
            for entry in batch.entries:
                entry.request.in_flight = True
                if math.isnan(entry.request.scheduled):
                    entry.request.scheduled = now
            batch.slow = replica.slow
            batch.iteration = self.write_down(now, replica, batch)
            self.enter_stage(now, replica, 0, batch)

    def enter_stage(self, now: float, replica: Replica, number: int, batch: Batch) -> None:
        replica.stages[number].queue.append(batch)
        self.start_stage(now, replica, number)

    def start_stage(self, now: float, replica: Replica, number: int) -> None:
        stage = replica.stages[number]
        if stage.current is not None or not stage.queue:
            return
        batch = stage.queue.pop(0)
        stage.current = batch
        last = number == replica.settings.num_stages - 1
        seconds = batch.seconds(replica.settings, last) * batch.slow
        batch.spent += seconds
        assert batch.iteration is not None
        if number == 0:
            batch.iteration.start = now
        if last:
            batch.iteration.stage = seconds
        for entry in batch.entries:
            entry.request.execution += seconds
        heapq.heappush(self.events, (now + seconds, STAGE_END, replica.index, -number))

    def leave_stage(self, now: float, replica: Replica, number: int) -> None:
        stage = replica.stages[number]
        batch = stage.current
        assert batch is not None
        stage.current = None
        self.start_stage(now, replica, number)
        if number < replica.settings.num_stages - 1:
            self.enter_stage(now, replica, number + 1, batch)
        else:
            self.end_batch(now, replica, batch)

    def end_batch(self, now: float, replica: Replica, batch: Batch) -> None:
        replica.batches_in_flight -= 1
        assert batch.iteration is not None
        batch.iteration.end = now
        for entry in batch.entries:
            entry.request.in_flight = False
            entry.request.advance(entry.tokens, now)
        replica.scheduler.end_batch(batch)
        for entry in batch.entries:
            if entry.request.done:
                self.end_request(now, entry.request)
        self.form_later(now, replica)

    def end_request(self, now: float, request: Request) -> None:
        """The next turn of a closed loop follows after a pause."""
        if request.next_turn >= 0:
            follower = self.requests[request.next_turn]
            follower.arrival = now + request.think
            heapq.heappush(self.events, (follower.arrival, ARRIVAL, follower.index, 0))

    def write_down(self, now: float, replica: Replica, batch: Batch) -> Iteration:
        entries = batch.entries
        iteration = Iteration(
            replica=replica.index,
            formed=now,
            requests=[entry.request.index for entry in entries],
            prefill_tokens=sum(entry.tokens for entry in entries if not entry.decode),
            prefills=sum(not entry.decode for entry in entries),
            decodes=sum(entry.decode for entry in entries),
            waiting=replica.waiting,
            running=len(replica.scheduler.running),
            kv_used=replica.scheduler.used_blocks,
            attention_pairs=float(sum(entry.tokens * (entry.tokens + entry.past) for entry in entries)),
        )
        self.iterations.append(iteration)
        return iteration


def simulate(
    requests: Any, replicas: list[OracleReplica], router: str = "replay", traffic: Traffic | None = None
) -> tuple[list[Request], list[Iteration]]:
    """Serve a REQUEST table (N,) on ``replicas``; the table itself is left alone.

    ``traffic`` says what the prompts of that table share; without it they share nothing.

    Returns the requests in table order and the iterations in the order in which they were formed.
    Raises ``Deadlock`` where a request can never be served.
    """
    if traffic is None:
        served = requests_of(requests)
    else:
        served = requests_of(requests, traffic.path_node, traffic.path_tokens)
    cluster = Cluster(served, replicas, router)
    cluster.run()
    return cluster.requests, cluster.iterations
