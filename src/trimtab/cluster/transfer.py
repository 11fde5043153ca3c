"""KV on its way from the replica that prefilled a request to the one that decodes it.

A transfer takes the link's latency and the time for the prompt's KV; a replica sends one at a time and
receives one at a time, in the order in which they were booked. The sender holds the blocks until the end.
Then the request waits at the receiver, ahead of those with prompts to compute, and is taken into service
when there is room. ``docs/background/disaggregation.md``.
"""

from __future__ import annotations

from trimtab.engine.dtypes import NONE, Event, Status
from trimtab.engine.heap import push
from trimtab.engine.jit import jit
from trimtab.engine.lanes import add_decode, blocks_for, close_slot, open_slot
from trimtab.engine.prefix import enter, hit_blocks, leave, publish
from trimtab.engine.queue import goes_before, place_in_pool
from trimtab.engine.record import touch
from trimtab.engine.signals import count_answer, kept
from trimtab.engine.state import State
from trimtab.schedulers.common import free_blocks

HANDOVER, FORM = int(Event.HANDOVER), int(Event.FORM)
RUNNING, SENDING, RECEIVED = int(Status.RUNNING), int(Status.SENDING), int(Status.RECEIVED)


# --- at the sender ------------------------------------------------------------------------------


@jit
def detach(state: State, sender: int, request: int, now: float) -> None:
    """A prefilled request leaves its replica's batches; its KV stays there for now."""
    lane = state.replicas["pool"][sender]
    slot = state.lanes["count"][lane] - 1
    while state.slots["request"][lane, slot] != request:
        slot -= 1
    close_slot(state, lane, slot)
    state.requests["status"][request] = SENDING
    state.requests["last_token"][request] = now
    if state.control["count_answers"][0]:
        count_answer(state, sender, request)


@jit
def free_kv(state: State, sender: int, request: int, now: float) -> None:
    """The sender gives up the KV that it held for a request; what others can hit stays cached."""
    touch(state, sender, now)
    block = state.groups["block_size"][state.replicas["group"][sender]]
    private = blocks_for(state.requests["target"][request], block) - state.requests["shared"][request]
    state.replicas["kv_used"][sender] -= private
    leave(state, sender, request, private)


@jit
def book(state: State, request: int, receiver: int, now: float) -> None:
    """The KV goes as soon as both links have done what was booked before."""
    replicas, requests = state.replicas, state.requests
    sender = requests["replica"][request]
    requests["bound_for"][request] = receiver
    replicas["routed"][receiver] += 1
    replicas["coming"][receiver] += 1
    replicas["outstanding"][receiver] += 1
    replicas["expected_decode"][receiver] += requests["expected_decode"][request]
    if state.control["count_own"][0]:
        count_coming(state, receiver, request)
    start = max(now, replicas["send_free"][sender], replicas["receive_free"][receiver])
    end = start + transfer_seconds(state, sender, request)
    replicas["send_free"][sender] = end
    replicas["receive_free"][receiver] = end
    push(state, end, HANDOVER, request)


@jit
def transfer_seconds(state: State, sender: int, request: int) -> float:
    per_token = state.groups["send_s"][state.replicas["group"][sender]]
    return state.control["link_latency"][0] + state.requests["prefill_tokens"][request] * per_token


# --- at the receiver ----------------------------------------------------------------------------


@jit
def count_coming(state: State, receiver: int, request: int) -> None:
    """The router that was asked adds a request on its way to its snapshots."""
    first = state.control["view"][0] * kept(state) * len(state.replicas) + receiver
    for number in range(kept(state)):
        row = first + number * len(state.replicas)
        state.seen["outstanding"][row] += 1
        state.seen["expected_decode"][row] += state.requests["expected_decode"][request]


@jit
def uncount_coming(state: State, receiver: int, request: int) -> None:
    """A request on its way will not be served there."""
    replicas = state.replicas
    state.requests["bound_for"][request] = NONE
    replicas["coming"][receiver] -= 1
    replicas["outstanding"][receiver] -= 1
    replicas["expected_decode"][receiver] -= state.requests["expected_decode"][request]
    if state.control["count_answers"][0]:
        count_answer(state, receiver, request)


@jit
def receive(state: State, request: int, receiver: int, now: float) -> None:
    """The KV is there: the request waits behind those that came before, or by priority."""
    replicas, requests = state.replicas, state.requests
    touch(state, receiver, now)
    requests["bound_for"][request] = NONE
    requests["replica"][request] = receiver
    requests["status"][request] = RECEIVED
    requests["transfer"][request] = now - requests["last_token"][request]
    replicas["coming"][receiver] -= 1
    replicas["waiting"][receiver] += 1
    by_priority = state.groups["priority"][replicas["group"][receiver]]
    before, after = replicas["received_tail"][receiver], NONE
    if by_priority:
        before, after = NONE, replicas["received_head"][receiver]
        while after != NONE and not goes_before(state, request, after):
            before, after = after, requests["next_waiting"][after]
    requests["next_waiting"][request] = after
    if after == NONE:
        replicas["received_tail"][receiver] = request
    if before == NONE:
        replicas["received_head"][receiver] = request
    else:
        requests["next_waiting"][before] = request


@jit
def drop_received(state: State, receiver: int, request: int) -> None:
    """Take a request out of those whose KV has come."""
    links = state.requests["next_waiting"]
    before = NONE
    at = state.replicas["received_head"][receiver]
    while at != request:
        before, at = at, links[at]
    if before == NONE:
        state.replicas["received_head"][receiver] = links[request]
    else:
        links[before] = links[request]
    if links[request] == NONE:
        state.replicas["received_tail"][receiver] = before
    links[request] = NONE
    state.replicas["waiting"][receiver] -= 1


@jit
def admit_received(state: State, replica: int, now: float) -> None:
    """Those whose KV has come, in order, while KV and ``max_num_seqs`` last; they decode at once.

    Room is kept for the blocks that the step about to be formed needs, their own included.
    """
    replicas, requests, groups = state.replicas, state.requests, state.groups
    group, lane = replicas["group"][replica], replicas["pool"][replica]
    block = groups["block_size"][group]
    while replicas["received_head"][replica] != NONE:
        request = replicas["received_head"][replica]
        target = requests["target"][request]
        needed = blocks_for(target + 1, block) - hit_blocks(state, replica, request, 1)
        needed += state.phases[lane, state.lanes["epoch"][lane] % block]
        if replicas["running"][replica] == groups["max_seqs"][group] or free_blocks(state, replica) < needed:
            return
        touch(state, replica, now)
        drop_received(state, replica, request)
        take_in(state, replica, lane, request, blocks_for(target, block))


@jit
def take_in(state: State, replica: int, lane: int, request: int, blocks: int) -> None:
    """A request whose KV has come gets blocks for it and joins the decodes."""
    replicas, requests = state.replicas, state.requests
    target, hits = requests["target"][request], requests["hit_tokens"][request]
    computed, pending = replicas["hit_tokens"][replica], replicas["pending_prefill"][replica]
    replicas["running"][replica] += 1
    requests["status"][request] = RUNNING
    requests["order"][request] = place_in_pool(state, replica, request)
    enter(state, replica, request)
    # No prefill is spared by what is cached here: only its blocks are shared.
    replicas["kv_used"][replica] += blocks - requests["shared"][request]
    requests["hit_tokens"][request] = hits
    requests["processed"][request] = target
    replicas["hit_tokens"][replica], replicas["pending_prefill"][replica] = computed, pending
    publish(state, replica, request, target)
    left = requests["prefill_tokens"][request] + requests["decode_tokens"][request] - target - 1
    slot = open_slot(state, lane, request)
    add_decode(state, lane, slot, target + 1, left, requests["last_token"][request])


@jit
def go_on(state: State, replica: int, now: float) -> None:
    """Something has left the replica or come to it: who waited with its KV is taken in first. Batches form
    when all that happens at this instant is known, for one event may free KV of several requests.
    """
    if state.replicas["received_head"][replica] != NONE and state.replicas["in_flight"][replica] == 0:
        admit_received(state, replica, now)
    if not state.replicas["forming"][replica]:
        state.replicas["forming"][replica] = 1
        push(state, now, FORM, replica)
