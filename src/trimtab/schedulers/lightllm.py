"""LightLLM's token-level admission as Vidur models it: block size 1, one pipeline stage.

A prompt is admitted when the KV needed at the worst moment of the future fits: with the running
requests sorted by remaining output, longest first, the peak is
``max_i (remaining_i * i + tokens held by the first i)``.
"""

from __future__ import annotations

from trimtab.engine.batches import add_chunk
from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import jit
from trimtab.engine.lanes import add_prefill
from trimtab.engine.queue import dequeue
from trimtab.engine.state import State
from trimtab.schedulers.common import take_decodes


@jit
def form_lightllm(state: State, replica: int, batch: int, now: float) -> None:
    """Prompts when nothing runs or every ``max_waiting_iters`` decode iterations, else decodes."""
    replicas = state.replicas
    group = replicas["group"][replica]
    if state.lanes["decodes"][state.replicas["pool"][replica]] == 0:
        admit_tokens(state, replica, batch, now)
        if state.batches["prefills"][batch] > 0:
            replicas["waiting_iters"][replica] = 0
        return
    if replicas["waiting_iters"][replica] >= state.groups["max_waiting_iters"][group]:
        replicas["waiting_iters"][replica] = 0
        admit_tokens(state, replica, batch, now)
        if state.batches["prefills"][batch] > 0:
            return
    replicas["waiting_iters"][replica] += 1
    take_decodes(state, replica, batch)


@jit
def admit_tokens(state: State, replica: int, batch: int, now: float) -> None:
    replicas, groups, requests = state.replicas, state.groups, state.requests
    group = replicas["group"][replica]
    if replicas["queue_head"][replica] == NONE:
        return
    pool = state.replicas["pool"][replica]
    count = 0
    for slot in range(state.lanes["count"][pool]):
        processed = state.lanes["epoch"][pool] + state.slots["offset"][pool, slot]
        to_come = state.slots["finish"][pool, slot] - state.lanes["epoch"][pool] - 1
        insert_longest_first(state, count, processed, max(0, to_come))
        count += 1
    while replicas["queue_head"][replica] != NONE:
        request = replicas["queue_head"][replica]
        tokens = requests["target"][request]
        used = state.batches["prefill_tokens"][batch]
        if used > 0 and used + tokens > groups["token_budget"][group]:
            break
        if replicas["running"][replica] == groups["max_seqs"][group]:
            break
        insert_longest_first(state, count, tokens + 1, max(0, requests["decode_tokens"][request] - 2))
        count += 1
        if peak_tokens(state, count) >= replicas["kv_total"][replica]:
            break
        dequeue(state, replica, now)
        replicas["kv_used"][replica] += tokens
        add_prefill(state, pool, request)
        add_chunk(state, group, batch, request, tokens)


@jit
def insert_longest_first(state: State, count: int, tokens: int, to_come: int) -> None:
    """Keep the needs sorted by what is left, largest first."""
    held, left = state.needs["held"], state.needs["left"]
    at = count
    while at > 0 and left[at - 1] < to_come:
        held[at] = held[at - 1]
        left[at] = left[at - 1]
        at -= 1
    held[at] = tokens
    left[at] = to_come


@jit
def peak_tokens(state: State, count: int) -> int:
    """KV tokens at the worst moment of the future."""
    total = 0
    peak = 0
    for index in range(count):
        total += state.needs["held"][index]
        peak = max(peak, state.needs["left"][index] * (index + 1) + total)
    return peak
