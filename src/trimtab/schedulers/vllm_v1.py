"""vLLM v1: one token budget for everything, prompts chunked, KV taken as tokens are computed.

Running requests come first, in the order they were admitted; then waiting ones while budget, KV and
``max_num_seqs`` last, and only if nothing was preempted in this step. When KV runs short the last
running request is preempted (policy "priority": the one of largest priority value, then latest
arrival). Source: vllm/v1/core/sched/scheduler.py.
"""

from __future__ import annotations

from trimtab.engine.batches import add_chunk, add_decodes
from trimtab.engine.dtypes import NEVER, NONE
from trimtab.engine.jit import jit
from trimtab.engine.lanes import add_prefill, blocks_for, move_slot, pool_of, preempt
from trimtab.engine.queue import dequeue, goes_before
from trimtab.engine.state import State
from trimtab.schedulers.common import drop_moved, free_blocks, mark_moved, needs_block
from trimtab.schedulers.sarathi import remaining, room


@jit
def form_vllm_v1(state: State, replica: int, batch: int, now: float) -> None:
    """Running first, then waiting."""
    pool = pool_of(state, replica)
    lanes, batches = state.lanes, state.batches
    start = 0
    if batches["lane"][batch] == pool and lanes["decodes"][pool] > 0:
        block = state.groups["block_size"][state.replicas["group"][replica]]
        needed = state.phases[pool, lanes["epoch"][pool] % block]
        if free_blocks(state, replica) >= needed:
            state.replicas["kv_used"][replica] += needed
            add_decodes(state, batch)
            start = lanes["count"][pool] - lanes["prefilling"][pool]
    if start < lanes["count"][pool]:
        walk_running(state, replica, batch, start)
    if batches["preempted"][batch] == 0:
        admit_waiting(state, replica, batch, now)


@jit
def walk_running(state: State, replica: int, batch: int, start: int) -> None:
    """Running requests from slot ``start`` on, one at a time; the decodes before it are in."""
    pool = pool_of(state, replica)
    group = state.replicas["group"][replica]
    lane = state.batches["lane"][batch]
    budget = state.groups["token_budget"][group] - start
    slot = start
    while slot < state.lanes["count"][pool] and budget > 0:
        request = state.slots["request"][pool, slot]
        decoding = state.slots["finish"][pool, slot] != NEVER
        tokens = 1 if decoding else min(remaining(state, request), budget)
        if not make_room_v1(state, replica, batch, slot, blocks_needed(state, group, pool, slot, tokens)):
            continue
        budget -= tokens
        state.replicas["kv_used"][replica] += blocks_needed(state, group, pool, slot, tokens)
        if not decoding:
            add_chunk(state, group, batch, request, tokens)
        if lane != pool:
            move_slot(state, pool, slot, lane)
            mark_moved(state, pool, slot)
        slot += 1
    if lane != pool:
        drop_moved(state, pool)
    if start == 0:
        add_decodes(state, batch)


@jit
def blocks_needed(state: State, group: int, pool: int, slot: int, tokens: int) -> int:
    """New KV blocks for the next ``tokens`` of a running request."""
    block = state.groups["block_size"][group]
    if state.slots["finish"][pool, slot] != NEVER:
        return 1 if needs_block(state, pool, slot, block) else 0
    processed = state.requests["processed"][state.slots["request"][pool, slot]]
    return blocks_for(processed + tokens, block) - blocks_for(processed, block)


@jit
def make_room_v1(state: State, replica: int, batch: int, slot: int, blocks: int) -> bool:
    """Preempt until ``blocks`` are free; False if the request itself went."""
    pool = pool_of(state, replica)
    while free_blocks(state, replica) < blocks:
        victim = choose_victim(state, replica, pool, slot)
        preempt(state, replica, pool, victim)
        state.batches["preempted"][batch] += 1
        if victim == slot:
            return False
    return True


@jit
def choose_victim(state: State, replica: int, pool: int, slot: int) -> int:
    """The last running request, or by policy the least urgent one that is not in the batch yet."""
    last = state.lanes["count"][pool] - 1
    if not state.groups["priority"][state.replicas["group"][replica]]:
        return last
    victim = last
    for other in range(slot, last):
        if goes_before(
            state, state.slots["request"][pool, victim], state.slots["request"][pool, other]
        ):
            victim = other
    return victim


@jit
def admit_waiting(state: State, replica: int, batch: int, now: float) -> None:
    """Waiting requests in order; KV for the first chunk only."""
    group = state.replicas["group"][replica]
    groups, replicas = state.groups, state.replicas
    while replicas["queue_head"][replica] != NONE:
        budget = room(state, replica, batch)
        if budget == 0 or replicas["running"][replica] == groups["max_seqs"][group]:
            break
        request = replicas["queue_head"][replica]
        tokens = min(state.requests["target"][request], budget)
        blocks = blocks_for(tokens, groups["block_size"][group])
        if free_blocks(state, replica) < blocks:
            break
        dequeue(state, replica, now)
        replicas["kv_used"][replica] += blocks
        add_prefill(state, state.batches["lane"][batch], request)
        add_chunk(state, group, batch, request, tokens)
