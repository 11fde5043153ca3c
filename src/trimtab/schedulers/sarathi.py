"""Sarathi-Serve (OSDI'24) as Vidur models it: decodes first, prompts in chunks fill the budget."""

from __future__ import annotations

from trimtab.engine.batches import add_chunk
from trimtab.engine.dtypes import NEVER, NONE
from trimtab.engine.jit import jit
from trimtab.engine.lanes import add_prefill, blocks_for, move_slot
from trimtab.engine.queue import dequeue
from trimtab.engine.state import State
from trimtab.schedulers.common import (
    decode_width,
    drop_moved,
    free_blocks,
    mark_moved,
    sequences,
    sort_pool,
    swap_slots,
    take_decodes,
)


@jit
def form_sarathi(state: State, replica: int, batch: int, now: float) -> None:
    """All decodes, then prompts under way, then new prompts, within ``token_budget`` tokens."""
    seen = take_decodes(state, replica, batch)
    pool = state.replicas["pool"][replica]
    lane = state.batches["lane"][batch]
    if lane == pool or state.lanes["count"][lane] > state.lanes["decodes"][lane]:
        continue_prefills_in_place(state, replica, batch, seen)
    elif state.lanes["prefilling"][pool] > 0:
        continue_prefills(state, replica, batch, seen)
    if lane != pool:
        sort_pool(state, pool)
    admit_chunks(state, replica, batch, now)


@jit
def room(state: State, replica: int, batch: int) -> int:
    """Tokens of the budget that the batch has not used."""
    group = state.replicas["group"][replica]
    decodes = state.batches["decodes"][batch] * decode_width(state, group)
    used = state.batches["prefill_tokens"][batch] + decodes
    return max(0, state.groups["token_budget"][group] - used)


@jit
def remaining(state: State, request: int) -> int:
    return state.requests["target"][request] - state.requests["processed"][request]


@jit
def continue_prefills(state: State, replica: int, batch: int, seen: int) -> None:
    """The next chunk of each prompt under way among the first ``seen`` of the pool."""
    pool = state.replicas["pool"][replica]
    group = state.replicas["group"][replica]
    for slot in range(seen):
        if state.slots["finish"][pool, slot] != NEVER:
            continue
        request = state.slots["request"][pool, slot]
        tokens = min(remaining(state, request), room(state, replica, batch))
        if tokens == 0:
            continue
        add_chunk(state, group, batch, request, tokens)
        move_slot(state, pool, slot, state.batches["lane"][batch])
        mark_moved(state, pool, slot)
    drop_moved(state, pool)


@jit
def continue_prefills_in_place(state: State, replica: int, batch: int, seen: int) -> None:
    """The same where the pool itself is the batch: nothing moves, but the order becomes that of the
    batch: prompts without budget first, then decodes, then prompts under way."""
    pool = state.batches["lane"][batch]
    if state.lanes["prefilling"][pool] == 0:
        return
    group = state.replicas["group"][replica]
    slot = 0
    skipped = 0
    for _ in range(seen):
        if state.slots["finish"][pool, slot] != NEVER:
            slot += 1
            continue
        request = state.slots["request"][pool, slot]
        tokens = min(remaining(state, request), room(state, replica, batch))
        if tokens == 0:
            for at in range(slot, skipped, -1):
                swap_slots(state, pool, at - 1, at)
            skipped += 1
            slot += 1
        else:
            add_chunk(state, group, batch, request, tokens)
            for at in range(slot, state.lanes["count"][pool] - 1):
                swap_slots(state, pool, at, at + 1)


@jit
def admit_chunks(state: State, replica: int, batch: int, now: float) -> None:
    """New prompts in order; KV for the whole prompt is taken at once."""
    group = state.replicas["group"][replica]
    groups, replicas = state.groups, state.replicas
    while replicas["queue_head"][replica] != NONE:
        if replicas["running"][replica] == groups["max_seqs"][group]:
            break
        if sequences(state, batch) >= groups["micro_seqs"][group]:
            break
        request = replicas["queue_head"][replica]
        blocks = blocks_for(state.requests["target"][request], groups["block_size"][group])
        if free_blocks(state, replica) - blocks < groups["watermark"][group]:
            break
        tokens = min(state.requests["target"][request], room(state, replica, batch))
        if tokens == 0:
            break
        dequeue(state, replica, now)
        replicas["kv_used"][replica] += blocks
        add_prefill(state, state.batches["lane"][batch], request)
        add_chunk(state, group, batch, request, tokens)
