"""Lanes: requests that decode in step, kept so that one step costs O(1).

A decode step adds one token to every decode of its lane, so instead of touching each request the
lane counts steps (``epoch``). A slot stores ``offset = processed - epoch`` and the epoch of its
last token. A request at ``processed`` tokens needs a new KV block when ``processed % block == 1``;
``phases[lane, epoch % block]`` counts the decodes for which that is now.

The requests of a replica that are in no batch are its pool. Mostly all of them go on together: then
the pool itself is the batch's lane, and with pipeline stages an empty lane becomes the pool in its
place. Only where some must wait do requests move one by one between the pool and a batch's lane.
"""

from __future__ import annotations

import math

from trimtab.engine.dtypes import NEVER, NONE, Event, Scheduler, Status
from trimtab.engine.heap import push
from trimtab.engine.jit import jit
from trimtab.engine.prefix import leave, publish
from trimtab.engine.queue import requeue
from trimtab.engine.ranking import rank
from trimtab.engine.record import record_gap
from trimtab.engine.signals import count_answer
from trimtab.engine.state import State

FINISHED, ABORTING, ABORTED = int(Status.FINISHED), int(Status.ABORTING), int(Status.ABORTED)
ARRIVAL = int(Event.ARRIVAL)
STATIC = int(Scheduler.FASTER_TRANSFORMER)
INCREMENTAL = int(Scheduler.VLLM_V1)
KEPT_LATENCIES = 9  # for the router that goes by latency


@jit
def lanes_per_replica(state: State) -> int:
    return len(state.lanes) // len(state.replicas)


@jit
def free_lane(state: State, replica: int) -> int:
    """An empty lane that is not the pool: there is always one more than batches in flight.

    (Static batches find their own lanes; for them the answer may be any.)
    """
    lane = replica * lanes_per_replica(state)
    last = lane + lanes_per_replica(state) - 1
    while lane < last and (lane == state.replicas["pool"][replica] or state.lanes["count"][lane] > 0):
        lane += 1
    return lane


@jit
def run_pool(state: State, replica: int, batch: int) -> int:
    """The pool becomes the batch's lane; with pipeline stages an empty lane becomes the pool."""
    lane = state.replicas["pool"][replica]
    if state.batches["lane"][batch] != lane:
        state.replicas["pool"][replica] = state.batches["lane"][batch]
        state.batches["lane"][batch] = lane
    return lane


@jit
def return_to_pool(state: State, replica: int, lane: int) -> None:
    """The requests of a landed batch are available again."""
    pool = state.replicas["pool"][replica]
    if lane == pool:
        return
    if state.lanes["count"][pool] == 0:
        state.replicas["pool"][replica] = lane
    else:
        merge(state, lane, pool)


@jit
def group_of_lane(state: State, lane: int) -> int:
    return state.replicas["group"][lane // lanes_per_replica(state)]


@jit
def blocks_for(tokens: int, block_size: int) -> int:
    return (tokens + block_size - 1) // block_size


@jit
def held_blocks(state: State, group: int, lane: int, slot: int) -> int:
    """KV blocks of a request between two of its iterations."""
    groups, slots = state.groups, state.slots
    if groups["reserve"][group]:
        return groups["reserve"][group]
    block = groups["block_size"][group]
    if slots["finish"][lane, slot] != NEVER:
        return blocks_for(state.lanes["epoch"][lane] + slots["offset"][lane, slot] - 1, block)
    request = slots["request"][lane, slot]
    if groups["scheduler"][group] == INCREMENTAL:
        return blocks_for(state.requests["processed"][request], block)
    return blocks_for(state.requests["target"][request], block)


@jit
def release(state: State, replica: int, lane: int, slot: int) -> None:
    """Free a request's private blocks and unpin its prefix."""
    request = state.slots["request"][lane, slot]
    held = held_blocks(state, state.replicas["group"][replica], lane, slot)
    private = held - state.requests["shared"][request]
    state.replicas["kv_used"][replica] -= private
    leave(state, replica, request, private)


@jit
def copy_slot(state: State, lane: int, source: int, target: int) -> None:
    slots = state.slots
    slots["request"][lane, target] = slots["request"][lane, source]
    slots["offset"][lane, target] = slots["offset"][lane, source]
    slots["finish"][lane, target] = slots["finish"][lane, source]
    slots["fresh"][lane, target] = slots["fresh"][lane, source]


@jit
def open_slot(state: State, lane: int, request: int) -> int:
    """Make room for a request where its order belongs; equal orders stay as they came."""
    slots, order = state.slots, state.requests["order"]
    slot = state.lanes["count"][lane]
    if slot >= slots.shape[1]:
        raise IndexError("lane overflow")
    while slot > 0 and order[slots["request"][lane, slot - 1]] > order[request]:
        copy_slot(state, lane, slot - 1, slot)
        slot -= 1
    state.lanes["count"][lane] += 1
    slots["request"][lane, slot] = request
    slots["offset"][lane, slot] = 0
    slots["finish"][lane, slot] = NEVER
    slots["fresh"][lane, slot] = 0.0
    return slot


@jit
def close_slot(state: State, lane: int, slot: int) -> None:
    """Remove a slot, keeping the order of the others."""
    lanes = state.lanes
    if state.slots["finish"][lane, slot] == NEVER:
        lanes["prefilling"][lane] -= 1
    else:
        forget_decode(state, lane, slot)
    last = lanes["count"][lane] - 1
    for i in range(slot, last):
        copy_slot(state, lane, i + 1, i)
    lanes["count"][lane] = last


@jit
def add_prefill(state: State, lane: int, request: int) -> None:
    """A request joins the lane with its prefill ahead of it."""
    open_slot(state, lane, request)
    state.lanes["prefilling"][lane] += 1


@jit
def add_decode(state: State, lane: int, slot: int, processed: int, finish_in: int, last_token: float) -> None:
    """Turn an open slot into a decode at ``processed`` tokens with ``finish_in`` steps to go."""
    lanes, slots = state.lanes, state.slots
    block = state.groups["block_size"][group_of_lane(state, lane)]
    epoch = lanes["epoch"][lane]
    offset = processed - epoch
    slots["offset"][lane, slot] = offset
    slots["finish"][lane, slot] = epoch + finish_in
    if lanes["decodes"][lane] == 0:
        lanes["last_token"][lane] = last_token
        lanes["next_finish"][lane] = epoch + finish_in
    else:
        lanes["next_finish"][lane] = min(lanes["next_finish"][lane], epoch + finish_in)
    if lanes["last_token"][lane] != last_token:
        slots["fresh"][lane, slot] = last_token
        lanes["fresh"][lane] += 1
    lanes["decodes"][lane] += 1
    lanes["kv_sum"][lane] += processed
    state.phases[lane, (1 - offset) % block] += 1
    state.requests["execution"][slots["request"][lane, slot]] -= lanes["clock"][lane]


@jit
def forget_decode(state: State, lane: int, slot: int) -> None:
    """Take a decode out of the lane's sums (its slot is removed by the caller)."""
    lanes, slots = state.lanes, state.slots
    block = state.groups["block_size"][group_of_lane(state, lane)]
    offset = slots["offset"][lane, slot]
    lanes["decodes"][lane] -= 1
    lanes["kv_sum"][lane] -= lanes["epoch"][lane] + offset
    state.phases[lane, (1 - offset) % block] -= 1
    state.requests["execution"][slots["request"][lane, slot]] += lanes["clock"][lane]
    if slots["fresh"][lane, slot] != 0.0:
        lanes["fresh"][lane] -= 1


@jit
def last_token_of(state: State, lane: int, slot: int) -> float:
    fresh = state.slots["fresh"][lane, slot]
    return fresh if fresh != 0.0 else state.lanes["last_token"][lane]


@jit
def move_slot(state: State, source: int, slot: int, target: int) -> None:
    """Copy a request into another lane; the caller closes the old slot."""
    slots, lanes = state.slots, state.lanes
    request = slots["request"][source, slot]
    at = open_slot(state, target, request)
    if slots["finish"][source, slot] == NEVER:
        lanes["prefilling"][target] += 1
        return
    epoch = lanes["epoch"][source]
    processed = epoch + slots["offset"][source, slot]
    finish_in = slots["finish"][source, slot] - epoch
    add_decode(state, target, at, processed, finish_in, last_token_of(state, source, slot))


@jit
def merge(state: State, source: int, target: int) -> None:
    """Return all requests of a lane to the pool, in order."""
    for slot in range(state.lanes["count"][source]):
        move_slot(state, source, slot, target)
    for slot in range(state.lanes["count"][source]):
        if state.slots["finish"][source, slot] != NEVER:
            forget_decode(state, source, slot)
    state.lanes["count"][source] = 0
    state.lanes["prefilling"][source] = 0


@jit
def first_token(state: State, replica: int, lane: int, request: int, now: float) -> None:
    """The prefill of a request is complete: its next token is out; it decodes on or is done."""
    requests, slots = state.requests, state.slots
    slot = state.lanes["count"][lane] - 1
    while slots["request"][lane, slot] != request:
        slot -= 1
    if requests["target"][request] == requests["prefill_tokens"][request]:
        if math.isnan(requests["first_token"][request]):  # else it starts anew after a crash
            requests["first_token"][request] = now
    else:
        record_gap(state, now - requests["last_token"][request], 1)
    state.control["tokens"][0] += 1
    publish(state, replica, request, requests["target"][request])
    processed = requests["target"][request] + 1
    finish_in = requests["prefill_tokens"][request] + requests["decode_tokens"][request] - processed
    if finish_in == 0:
        finish(state, replica, lane, slot, now)
        close_slot(state, lane, slot)
        return
    state.lanes["prefilling"][lane] -= 1
    add_decode(state, lane, slot, processed, finish_in, now)


@jit
def finish(state: State, replica: int, lane: int, slot: int, now: float) -> None:
    """The last token is out: free the KV, count, and wake the next turn of a closed loop."""
    requests, replicas = state.requests, state.replicas
    group = replicas["group"][replica]
    request = state.slots["request"][lane, slot]
    if requests["status"][request] == ABORTING:
        requests["status"][request] = ABORTED
        replicas["aborting"][replica] -= 1
        state.control["aborted"][0] += 1
    else:
        requests["finished"][request] = now
        requests["status"][request] = FINISHED
        seconds = (now - requests["arrival"][request]) / requests["decode_tokens"][request]
        if replicas["finished"][replica] < KEPT_LATENCIES:
            replicas["latency_first"][replica] += seconds
        else:
            replicas["latency_last"][replica] = seconds
        replicas["finished"][replica] += 1
        replicas["failures"][replica] = 0
        state.control["finished"][0] += 1
        wake_next_turn(state, request, now)
    replicas["running"][replica] -= 1
    replicas["outstanding"][replica] -= 1
    replicas["expected_decode"][replica] -= requests["expected_decode"][request]
    if state.control["ranked"][0]:
        rank(state, replica)
    if state.control["count_answers"][0]:
        count_answer(state, replica, request)
    if state.groups["scheduler"][group] == STATIC:
        state.lanes["held"][lane] += state.groups["reserve"][group]
    else:
        tokens = requests["prefill_tokens"][request] + requests["decode_tokens"][request] - 1
        publish(state, replica, request, tokens)
        release(state, replica, lane, slot)


@jit
def wake_next_turn(state: State, request: int, now: float) -> None:
    """However a request of a closed loop ended, its user asks again after a pause."""
    requests = state.requests
    following = requests["next_turn"][request]
    if following != NONE:
        requests["arrival"][following] = now + requests["think"][request]
        push(state, requests["arrival"][following], ARRIVAL, following)


@jit
def step(state: State, replica: int, lane: int, now: float, seconds: float) -> None:
    """Every decode of the lane gets one token; the ones at their last token leave."""
    lanes = state.lanes
    decodes = lanes["decodes"][lane]
    if lanes["fresh"][lane] > 0:
        record_fresh(state, lane, now)
    steady = decodes - lanes["fresh"][lane]
    if steady > 0:
        record_gap(state, now - lanes["last_token"][lane], steady)
    lanes["fresh"][lane] = 0
    lanes["last_token"][lane] = now
    lanes["epoch"][lane] += 1
    lanes["kv_sum"][lane] += decodes
    lanes["clock"][lane] += seconds
    state.replicas["decode_done"][replica] += decodes
    state.control["tokens"][0] += decodes
    if lanes["epoch"][lane] >= lanes["next_finish"][lane]:
        sweep(state, replica, lane, now)


@jit
def blocks_to_step(state: State, group: int, lane: int, steps: int) -> int:
    """New KV blocks for the next ``steps`` tokens of every decode, or fewer where its answer ends."""
    lanes, slots = state.lanes, state.slots
    block, epoch = state.groups["block_size"][group], lanes["epoch"][lane]
    if steps == 1:
        return state.phases[lane, epoch % block]
    needed = 0
    for ahead in range(steps):
        needed += state.phases[lane, (epoch + ahead) % block]
    if lanes["next_finish"][lane] >= epoch + steps:
        return needed
    for slot in range(lanes["count"][lane]):
        beyond = epoch + steps - slots["finish"][lane, slot]
        if beyond > 0:
            held = epoch + slots["offset"][lane, slot] - 1 + steps
            needed -= blocks_for(held, block) - blocks_for(held - beyond, block)
    return needed


@jit
def record_fresh(state: State, lane: int, now: float) -> None:
    """First decode step of requests that joined with a token time of their own."""
    slots = state.slots
    for slot in range(state.lanes["count"][lane]):
        if slots["fresh"][lane, slot] != 0.0:
            record_gap(state, now - slots["fresh"][lane, slot], 1)
            slots["fresh"][lane, slot] = 0.0


@jit
def sweep(state: State, replica: int, lane: int, now: float) -> None:
    """Finish the decodes whose last token this epoch brought; find the next such epoch."""
    lanes, slots = state.lanes, state.slots
    epoch = lanes["epoch"][lane]
    earliest = NEVER
    kept = 0
    for slot in range(lanes["count"][lane]):
        if slots["finish"][lane, slot] == epoch:
            finish(state, replica, lane, slot, now)
            forget_decode(state, lane, slot)
            continue
        earliest = min(earliest, slots["finish"][lane, slot])
        if kept != slot:
            copy_slot(state, lane, slot, kept)
        kept += 1
    lanes["count"][lane] = kept
    lanes["next_finish"][lane] = earliest


@jit
def preempt(state: State, replica: int, lane: int, slot: int) -> None:
    """Free a request's KV and send it to the front of the queue; all its tokens are recomputed."""
    requests, replicas, slots = state.requests, state.replicas, state.slots
    request = slots["request"][lane, slot]
    release(state, replica, lane, slot)
    if slots["finish"][lane, slot] != NEVER:
        requests["target"][request] = state.lanes["epoch"][lane] + slots["offset"][lane, slot]
        requests["last_token"][request] = last_token_of(state, lane, slot)
        replicas["pending_prefill"][replica] += requests["target"][request]
    else:
        replicas["pending_prefill"][replica] += requests["processed"][request]
    requests["processed"][request] = 0
    requests["preemptions"][request] += 1
    replicas["preemptions"][replica] += 1
    replicas["running"][replica] -= 1
    close_slot(state, lane, slot)
    requeue(state, replica, request)
