"""vLLM v1: one token budget for everything, prompts chunked, KV taken as tokens are computed.

Running requests come first, in the order they were admitted; then waiting ones while budget, KV and
``max_num_seqs`` last, and only if KV did not run short in this step. When it does the last running
request is preempted (policy "priority": the one of largest priority value, then latest arrival). A
victim in flight in another pipeline batch is waited for (vLLM takes its blocks at once). With
speculation a decode takes one more than its drafts of the budget, all or none (vLLM cuts its drafts
down). Source: vllm/v1/core/sched/scheduler.py.
"""

from __future__ import annotations

from trimtab.engine.batches import add_chunk, add_decodes, drop_chunk
from trimtab.engine.dtypes import NEVER, NONE
from trimtab.engine.jit import jit
from trimtab.engine.lanes import (
    add_prefill,
    blocks_for,
    blocks_to_step,
    free_lane,
    move_slot,
    preempt,
    run_pool,
)
from trimtab.engine.prefix import enter, hit_blocks
from trimtab.engine.queue import dequeue, goes_before
from trimtab.engine.speculation import tokens_of_step
from trimtab.engine.state import State
from trimtab.schedulers.common import (
    decode_width,
    drop_moved,
    free_blocks,
    make_room,
    mark_moved,
    sequences,
)
from trimtab.schedulers.sarathi import remaining, room


@jit
def form_vllm_v1(state: State, replica: int, batch: int, now: float) -> None:
    """Running first, then waiting; a step that only preempted is followed by the next at once."""
    batches = state.batches
    if state.groups["draft_tokens"][state.replicas["group"][replica]] > 0:
        batches["emits"][batch] = tokens_of_step(state, replica)
    while True:
        batches["preempted"][batch] = 0
        batches["short"][batch] = 0
        continue_running(state, replica, batch)
        if batches["short"][batch] == 0:
            admit_waiting(state, replica, batch, now)
            return
        if sequences(state, batch) > 0 or batches["preempted"][batch] == 0:
            return


@jit
def continue_running(state: State, replica: int, batch: int) -> None:
    """All decodes in one step where all can go on; else one request at a time."""
    pool = state.replicas["pool"][replica]
    group = state.replicas["group"][replica]
    if state.lanes["count"][pool] == 0:
        return
    in_place = state.batches["lane"][batch] == pool
    needed = blocks_to_step(state, group, pool, state.batches["emits"][batch])
    spare = free_blocks(state, replica) - needed
    if (
        spare >= 0
        and steps_together(state, group, pool)
        and (in_place or tail_fits(state, group, pool, spare))
    ):
        state.replicas["kv_used"][replica] += needed
        run_pool(state, replica, batch)
        add_decodes(state, batch)
        continue_tail(state, replica, batch)
        return
    if in_place:
        state.batches["lane"][batch] = free_lane(state, replica)
    walk_running(state, replica, batch)


@jit
def tail_fits(state: State, group: int, pool: int, spare: int) -> bool:
    """Whether what is behind the decodes, if anything, is one prompt whose next chunk has room."""
    lanes = state.lanes
    if lanes["prefilling"][pool] == 0:
        return True
    slot = lanes["count"][pool] - 1
    budget = state.groups["token_budget"][group] - lanes["decodes"][pool] * decode_width(state, group)
    if lanes["prefilling"][pool] > 1 or budget <= 0:
        return False
    tokens = min(remaining(state, state.slots["request"][pool, slot]), budget)
    return blocks_needed(state, group, pool, slot, tokens) <= spare


@jit
def steps_together(state: State, group: int, pool: int) -> bool:
    """Whether every decode certainly gets its token: none behind a prompt, budget for all."""
    lanes = state.lanes
    prompts = lanes["prefilling"][pool]
    if lanes["decodes"][pool] * decode_width(state, group) > state.groups["token_budget"][group]:
        return False
    if prompts > 0 and state.groups["priority"][group]:
        return False  # a prompt may preempt a decode
    for slot in range(lanes["count"][pool] - prompts, lanes["count"][pool]):
        if state.slots["finish"][pool, slot] != NEVER:
            return False
    return True


@jit
def continue_tail(state: State, replica: int, batch: int) -> None:
    """The prompts under way behind the decodes, in place; short of KV the last running one goes."""
    pool = state.batches["lane"][batch]
    group = state.replicas["group"][replica]
    slot = state.lanes["decodes"][pool]
    while slot < state.lanes["count"][pool] and room(state, replica, batch) > 0:
        request = state.slots["request"][pool, slot]
        tokens = min(remaining(state, request), room(state, replica, batch))
        blocks = blocks_needed(state, group, pool, slot, tokens)
        if not make_room(state, replica, batch, slot, blocks):
            return
        state.replicas["kv_used"][replica] += blocks
        add_chunk(state, group, batch, request, tokens)
        slot += 1


@jit
def walk_running(state: State, replica: int, batch: int) -> None:
    """One running request after the other moves from the pool into the batch's lane."""
    pool = state.replicas["pool"][replica]
    group = state.replicas["group"][replica]
    lane = state.batches["lane"][batch]
    budget = state.groups["token_budget"][group]
    slot = 0
    while slot < state.lanes["count"][pool] and budget > 0:
        request = state.slots["request"][pool, slot]
        decoding = state.slots["finish"][pool, slot] != NEVER
        tokens = decode_width(state, group) if decoding else min(remaining(state, request), budget)
        if tokens > budget:
            break
        kept = state.batches["emits"][batch] if decoding else tokens
        blocks = blocks_needed(state, group, pool, slot, kept)
        returned = make_room_v1(state, replica, batch, slot, blocks)
        if returned == NONE:
            break
        budget += returned - tokens
        state.replicas["kv_used"][replica] += blocks
        if not decoding:
            add_chunk(state, group, batch, request, tokens)
        move_slot(state, pool, slot, lane)
        mark_moved(state, pool, slot)
        slot += 1
    drop_moved(state, pool)
    add_decodes(state, batch)


@jit
def blocks_needed(state: State, group: int, pool: int, slot: int, tokens: int) -> int:
    """New KV blocks for the next ``tokens`` of a running request, or fewer where its answer ends."""
    block, epoch = state.groups["block_size"][group], state.lanes["epoch"][pool]
    finish = state.slots["finish"][pool, slot]
    if finish != NEVER:
        held = epoch + state.slots["offset"][pool, slot] - 1
        return blocks_for(held + min(tokens, finish - epoch), block) - blocks_for(held, block)
    processed = state.requests["processed"][state.slots["request"][pool, slot]]
    return blocks_for(processed + tokens, block) - blocks_for(processed, block)


@jit
def make_room_v1(state: State, replica: int, batch: int, slot: int, blocks: int) -> int:
    """Preempt until ``blocks`` are free. Returns the tokens of requests that leave the batch for it,
    or NONE if the step ends here: the request at ``slot`` went itself, or the victim is in flight."""
    batches, slots = state.batches, state.slots
    pool = state.replicas["pool"][replica]
    lane = batches["lane"][batch]
    by_priority = state.groups["priority"][state.replicas["group"][replica]]
    returned = 0
    while free_blocks(state, replica) < blocks:
        batches["short"][batch] = 1
        victim_lane = pool
        victim = least_urgent(state, pool, slot) if by_priority else state.lanes["count"][pool] - 1
        if by_priority and state.lanes["count"][lane] > 0:
            other = least_urgent(state, lane, 0)
            if goes_before(state, slots["request"][pool, victim], slots["request"][lane, other]):
                victim_lane, victim = lane, other
        if waits_for_flight(state, replica, slots["request"][victim_lane, victim]):
            return NONE
        batches["preempted"][batch] += 1
        if victim_lane == lane:
            returned += take_back(state, replica, batch, victim)
            continue
        preempt(state, replica, pool, victim)
        if victim == slot:
            return NONE
    return returned


@jit
def waits_for_flight(state: State, replica: int, victim: int) -> bool:
    """Whether a request in flight would be the victim instead: it cannot be preempted, so wait."""
    replicas, requests = state.replicas, state.requests
    ring = len(state.batches) // len(state.replicas)
    by_priority = state.groups["priority"][replicas["group"][replica]]
    for index in range(replicas["in_flight"][replica]):
        cell = (replicas["batch_head"][replica] + index) % ring
        lane = state.batches["lane"][replica * ring + cell]
        for slot in range(state.lanes["count"][lane]):
            other = state.slots["request"][lane, slot]
            if by_priority:
                if goes_before(state, victim, other):
                    return True
            elif requests["order"][other] > requests["order"][victim]:
                return True
    return False


@jit
def least_urgent(state: State, lane: int, start: int) -> int:
    """The slot, from ``start`` on, whose request comes last in order of priority."""
    worst = start
    for slot in range(start + 1, state.lanes["count"][lane]):
        if goes_before(state, state.slots["request"][lane, worst], state.slots["request"][lane, slot]):
            worst = slot
    return worst


@jit
def take_back(state: State, replica: int, batch: int, slot: int) -> int:
    """Preempt a request that is already in the batch being formed; returns its tokens."""
    lane = state.batches["lane"][batch]
    group = state.replicas["group"][replica]
    tokens, kept = decode_width(state, group), state.batches["emits"][batch]
    if state.slots["finish"][lane, slot] == NEVER:
        tokens = drop_chunk(state, group, batch, state.slots["request"][lane, slot])
        kept = tokens
    state.replicas["kv_used"][replica] -= blocks_needed(state, group, lane, slot, kept)
    preempt(state, replica, lane, slot)
    return tokens


@jit
def admit_waiting(state: State, replica: int, batch: int, now: float) -> None:
    """Waiting requests in order, each if all its tokens so far would fit; KV for the chunk only."""
    group = state.replicas["group"][replica]
    groups, replicas = state.groups, state.replicas
    while replicas["queue_head"][replica] != NONE:
        budget = room(state, replica, batch)
        if budget == 0 or replicas["running"][replica] == groups["max_seqs"][group]:
            break
        request = replicas["queue_head"][replica]
        block, target = groups["block_size"][group], state.requests["target"][request]
        hits = hit_blocks(state, replica, request, 0)
        needed = blocks_for(target, block) - hit_blocks(state, replica, request, 1)
        if free_blocks(state, replica) < needed:
            break
        tokens = min(target - hits * block, budget)
        dequeue(state, replica, now)
        enter(state, replica, request)
        replicas["kv_used"][replica] += blocks_for(tokens, block)
        add_prefill(state, state.batches["lane"][batch], request)
        add_chunk(state, group, batch, request, tokens)
