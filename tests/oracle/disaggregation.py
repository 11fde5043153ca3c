"""Prefill here, decode there, in the plainest form: a second routing decision, and KV that travels.

The rules are those of ``docs/background/disaggregation.md``. A replica that only prefills or only decodes
differs from the others in nothing but who is sent to it.
"""

from __future__ import annotations

import heapq
from typing import Any

from oracle.faults import GOLDEN, FaultyCluster, OracleConditions
from oracle.loop import HANDOVER, Cluster, Replica, Router
from oracle.parts import Batch, Iteration, OracleReplica, Request, requests_of
from oracle.schedulers import VllmV1, blocks_for, decode_entry, urgency
from trimtab.engine.dtypes import NONE
from trimtab.workload import Traffic


class SplitCluster(FaultyCluster):
    def __init__(
        self,
        requests: list[Request],
        settings: list[OracleReplica],
        router: str,
        conditions: OracleConditions,
    ):
        super().__init__(requests, settings, router, conditions)
        self.decode_router = Router(conditions.decode_router)
        self.stuck: list[Request] = []  # prefilled, and nobody accepts them who could decode
        self.send_free = [0.0] * len(settings)
        self.receive_free = [0.0] * len(settings)

    # --- the second decision --------------------------------------------------------------------

    def decode_pool(self, request: Request) -> list[int]:
        span = self.conditions.classes[request.klass].decodes
        assert span is not None
        return list(range(*span))

    def end_batch(self, now: float, replica: Replica, batch: Batch) -> None:
        super().end_batch(now, replica, batch)
        for entry in batch.entries:
            request = entry.request
            if not entry.decode and request.decoding and not request.end and request.prefilled_by == NONE:
                self.hand_over(now, replica, request)
        self.take_in(now, replica)

    def hand_over(self, now: float, sender: Replica, request: Request) -> None:
        request.coin = (request.coin + GOLDEN) % 1.0
        request.prefilled_by = sender.index
        self.health[sender.index].failures = 0
        place = sender.scheduler.running.index(request)
        sender.scheduler.running.remove(request)  # it is not to count as load where it is
        receiver = self.choose_decoder(request)
        if receiver == NONE and sender.index in self.decode_pool(request):
            receiver = sender.index
        if receiver == sender.index:
            sender.scheduler.running.insert(place, request)
            return
        request.sent = now
        if receiver == NONE:
            self.stuck.append(request)
        else:
            self.send(now, request, self.replicas[receiver])

    def choose_decoder(self, request: Request) -> int:
        pool = self.decode_pool(request)
        candidates = [index for index in pool if self.health[index].accepting]
        if not candidates:
            return NONE
        return self.decode_router.choose(request, self.replicas, candidates, pool)

    # --- on the way -----------------------------------------------------------------------------

    def send(self, now: float, request: Request, receiver: Replica) -> None:
        sender = self.replicas[request.replica]
        if not self.health[receiver.index].up:
            sender.scheduler.free(request)
            request.replica = receiver.index
            self.fail_attempt(now, request)
            return
        request.bound_for = receiver.index
        receiver.coming.append(request)
        start = max(now, self.send_free[sender.index], self.receive_free[receiver.index])
        end = start + self.conditions.link_latency + request.prompt * sender.settings.send_s
        self.send_free[sender.index] = self.receive_free[receiver.index] = end
        self.push(end, HANDOVER, request.index)

    def go_further(self, now: float, request: Request) -> None:
        sender = self.replicas[request.replica]
        if request in self.stuck:
            chosen = self.choose_decoder(request)
            if chosen == NONE:
                return
            self.stuck.remove(request)
            self.send(now, request, self.replicas[chosen])
        else:
            sender.scheduler.free(request)
            receiver = self.replicas[request.bound_for]
            request.bound_for = NONE
            receiver.coming.remove(request)
            if request.given_up:
                request.end = "aborted"
            else:
                request.replica = receiver.index
                request.transfer = now - request.sent
                receiver.received.append(request)
                if receiver.settings.policy == "priority":
                    receiver.received.sort(key=urgency)
                self.room(now, receiver)
        self.room(now, sender)

    def room(self, now: float, replica: Replica) -> None:
        """Something has left the replica, or come to it."""
        self.take_in(now, replica)
        self.form_later(now, replica)

    def take_in(self, now: float, replica: Replica) -> None:
        """Requests whose KV has come, in order, if there is room for it and for the next step."""
        scheduler = replica.scheduler
        assert isinstance(scheduler, VllmV1)
        if replica.batches_in_flight:
            return
        while replica.received and len(scheduler.running) < replica.settings.max_num_seqs:
            head = replica.received[0]
            size = replica.settings.block_size
            blocks = blocks_for(head.target, size)
            needed = scheduler.cache.needed(head) + blocks_for(head.target + 1, size) - blocks
            for other in scheduler.running:
                if other.decoding:
                    needed += scheduler.blocks_missing(other, decode_entry(other))
            if needed > scheduler.free_blocks:
                return
            replica.received.remove(head)
            head.blocks = scheduler.cache.hits(head)
            scheduler.cache.enter(head)
            scheduler.running.append(head)
            scheduler.allocate(head, blocks - head.blocks)
            scheduler.cache.computed(head, head.target)

    # --- what goes wrong ------------------------------------------------------------------------

    def load(self, request: Request) -> tuple[int, int]:
        """Outstanding and accepting, of both pools together."""
        both = sorted({*self.pool(request), *self.decode_pool(request)})
        outstanding = sum(self.replicas[index].outstanding for index in both)
        outstanding += len(self.held) + len(self.stuck)
        return outstanding, sum(self.health[index].accepting for index in both)

    def admit_held(self, now: float) -> None:
        super().admit_held(now)
        for request in self.stuck:
            if any(self.health[index].accepting for index in self.decode_pool(request)):
                self.push(now, HANDOVER, request.index)

    def stranded(self, now: float) -> list[Request]:
        stuck, self.stuck = sorted(self.stuck, key=lambda request: request.index), []
        for request in stuck:
            sender = self.replicas[request.replica]
            sender.scheduler.free(request)
            self.room(now, sender)
        return [*super().stranded(now), *stuck]

    def crash(self, now: float, replica: Replica) -> None:
        """What it was to send is lost; what was on the way to it comes to nothing."""
        self.send_free[replica.index] = self.receive_free[replica.index] = now
        received, replica.received = replica.received, []
        for request in self.requests:
            cut = request.bound_for != NONE and replica.index in (request.replica, request.bound_for)
            if not cut and not (request in self.stuck and request.replica == replica.index):
                continue
            if cut:
                self.events = [one for one in self.events if one[1:3] != (HANDOVER, request.index)]
                heapq.heapify(self.events)
                self.replicas[request.bound_for].coming.remove(request)
                request.bound_for = NONE
            else:
                self.stuck.remove(request)
            sender = self.replicas[request.replica]
            sender.scheduler.free(request)
            if sender is not replica:
                self.room(now, sender)
            if request.given_up:
                request.end = "aborted"
            else:
                request.replica = replica.index
                self.fail_attempt(now, request)
        for request in received:
            self.fail_attempt(now, request)
        super().crash(now, replica)

    def fail_attempt(self, now: float, request: Request) -> None:
        request.prefilled_by = NONE
        request.transfer = 0.0
        request.assigned = request.replica
        super().fail_attempt(now, request)

    def give_up(self, now: float, request: Request) -> None:
        """What is on the way stays there, and its KV where it is, until it has come."""
        if request.end or request.given_up:
            return
        if request.bound_for != NONE:
            request.given_up = True
            Cluster.end_request(self, now, request)
            return
        replica = self.replicas[request.replica]
        if request in self.stuck:
            self.stuck.remove(request)
            replica.scheduler.free(request)
            self.close(now, request, "aborted")
        elif request in replica.received:
            replica.received.remove(request)
            self.close(now, request, "aborted")
        else:
            super().give_up(now, request)
        if request.replica != NONE:
            self.room(now, replica)


def simulate_split(
    requests: Any,
    replicas: list[OracleReplica],
    router: str,
    conditions: OracleConditions,
    traffic: Traffic | None = None,
) -> tuple[list[Request], list[Iteration]]:
    """``oracle.simulate_faults`` where every class of ``conditions`` says who decodes."""
    if traffic is None:
        served = requests_of(requests)
    else:
        served = requests_of(requests, traffic.path_node, traffic.path_tokens)
    cluster = SplitCluster(served, replicas, router, conditions)
    cluster.run()
    return cluster.requests, cluster.iterations
