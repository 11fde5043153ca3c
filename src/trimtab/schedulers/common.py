"""What several schedulers share: letting the running decodes go on, and making room for them."""

from __future__ import annotations

from trimtab.engine.batches import add_decodes
from trimtab.engine.dtypes import NEVER
from trimtab.engine.jit import jit
from trimtab.engine.lanes import copy_slot, forget_decode, move_slot, preempt, run_pool
from trimtab.engine.state import State

HOLE = -2  # marks a pool slot whose request has moved into the batch being formed


@jit
def free_blocks(state: State, replica: int) -> int:
    return state.replicas["kv_total"][replica] - state.replicas["kv_used"][replica]


@jit
def sequences(state: State, batch: int) -> int:
    return state.batches["prefills"][batch] + state.batches["decodes"][batch]


@jit
def decode_width(state: State, group: int) -> int:
    """Tokens of the budget that a decode takes: itself and its drafts."""
    return 1 + state.groups["draft_tokens"][group]


@jit
def needs_block(state: State, lane: int, slot: int, block_size: int) -> bool:
    """Whether the next token of a decode falls into a new KV block."""
    return (state.lanes["epoch"][lane] + state.slots["offset"][lane, slot] - 1) % block_size == 0


@jit
def take_decodes(state: State, replica: int, batch: int) -> int:
    """Every available decode joins the batch, up to the sequences one batch may hold.

    When KV runs short the last request of the pool is preempted until the one at hand has room
    (Vidur wants a free block before each decode, even one that needs none: the group's ``spare``).
    Returns how many pool slots were looked at: prefills beyond are not considered for this batch.
    """
    pool = state.replicas["pool"][replica]
    group = state.replicas["group"][replica]
    lanes, groups = state.lanes, state.groups
    count = lanes["count"][pool]
    if count == 0:
        return 0
    in_place = state.batches["lane"][batch] == pool
    if in_place or all_go_on(state, group, pool):
        needed = 0
        if not groups["reserve"][group]:
            needed = state.phases[pool, lanes["epoch"][pool] % groups["block_size"][group]]
        if lanes["decodes"][pool] > 0 and free_blocks(state, replica) - needed >= groups["spare"][group]:
            state.replicas["kv_used"][replica] += needed
            run_pool(state, replica, batch)
            add_decodes(state, batch)
            return count
    seen = walk_decodes(state, replica, batch)
    add_decodes(state, batch)
    return seen


@jit
def all_go_on(state: State, group: int, pool: int) -> bool:
    """Whether the pool can be a batch as it is: decodes, and at the end perhaps one prompt under way."""
    lanes, groups = state.lanes, state.groups
    decodes, last = lanes["decodes"][pool], lanes["count"][pool] - 1
    if lanes["prefilling"][pool] == 0:
        return decodes <= groups["micro_seqs"][group]
    return (
        lanes["prefilling"][pool] == 1
        and state.slots["finish"][pool, last] == NEVER
        and decodes < min(groups["micro_seqs"][group], groups["token_budget"][group])
    )


@jit
def walk_decodes(state: State, replica: int, batch: int) -> int:
    """``take_decodes`` one request at a time."""
    pool = state.replicas["pool"][replica]
    group = state.replicas["group"][replica]
    groups, slots = state.groups, state.slots
    lane = state.batches["lane"][batch]
    taken = 0
    slot = 0
    while slot < state.lanes["count"][pool] and taken < groups["micro_seqs"][group]:
        if slots["finish"][pool, slot] == NEVER:
            slot += 1
            continue
        needed = 0
        if not groups["reserve"][group] and needs_block(state, pool, slot, groups["block_size"][group]):
            needed = 1
        if not make_room(state, replica, batch, slot, max(needed, groups["spare"][group])):
            break
        state.replicas["kv_used"][replica] += needed
        if lane != pool:
            move_slot(state, pool, slot, lane)
            mark_moved(state, pool, slot)
        taken += 1
        slot += 1
    if lane != pool:
        slot -= drop_moved(state, pool)
    return slot


@jit
def make_room(state: State, replica: int, batch: int, slot: int, blocks: int) -> bool:
    """Preempt from the end of the pool until ``blocks`` are free; False if ``slot`` itself went."""
    pool = state.replicas["pool"][replica]
    while free_blocks(state, replica) < blocks:
        state.batches["short"][batch] = 1
        victim = state.lanes["count"][pool] - 1
        preempt(state, replica, pool, victim)
        state.batches["preempted"][batch] += 1
        if victim == slot:
            return False
    return True


@jit
def mark_moved(state: State, pool: int, slot: int) -> None:
    """Take a request that now sits in another lane out of the pool's sums; leave a hole."""
    if state.slots["finish"][pool, slot] == NEVER:
        state.lanes["prefilling"][pool] -= 1
    else:
        forget_decode(state, pool, slot)
    state.slots["request"][pool, slot] = HOLE


@jit
def drop_moved(state: State, pool: int) -> int:
    """Close the holes, keeping order; returns how many there were."""
    count = state.lanes["count"][pool]
    kept = 0
    for slot in range(count):
        if state.slots["request"][pool, slot] == HOLE:
            continue
        if kept != slot:
            copy_slot(state, pool, slot, kept)
        kept += 1
    state.lanes["count"][pool] = kept
    return count - kept


@jit
def sort_pool(state: State, pool: int) -> None:
    """Vidur's order of what stays: by arrival (stable). Pools are nearly sorted, so insert."""
    arrival, slots = state.requests["arrival"], state.slots
    for slot in range(1, state.lanes["count"][pool]):
        at = slot
        while at > 0 and (arrival[slots["request"][pool, at - 1]] > arrival[slots["request"][pool, at]]):
            swap_slots(state, pool, at - 1, at)
            at -= 1


@jit
def swap_slots(state: State, lane: int, a: int, b: int) -> None:
    slots = state.slots
    request, offset = slots["request"][lane, a], slots["offset"][lane, a]
    finish, fresh = slots["finish"][lane, a], slots["fresh"][lane, a]
    copy_slot(state, lane, b, a)
    slots["request"][lane, b] = request
    slots["offset"][lane, b] = offset
    slots["finish"][lane, b] = finish
    slots["fresh"][lane, b] = fresh
