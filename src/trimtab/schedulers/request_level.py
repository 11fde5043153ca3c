"""FasterTransformer and Orca: every request reserves KV for the longest sequence up front.

FasterTransformer (request-level batching): a batch runs until all its requests are done, then frees
its KV at once. Orca (iteration-level batching, OSDI'22): finished requests leave and whole new
prompts join at every iteration. Rules as in Vidur, without its faults (it never frees a request that
finishes before its static batch).
"""

from __future__ import annotations

from trimtab.engine.batches import add_chunk, add_decodes
from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import jit
from trimtab.engine.lanes import add_prefill, lanes_per_replica
from trimtab.engine.queue import dequeue
from trimtab.engine.state import State
from trimtab.schedulers.common import free_blocks, sequences, take_decodes


@jit
def admit_reserved(state: State, replica: int, batch: int, now: float) -> None:
    """Whole prompts from the queue while a full reservation fits."""
    group = state.replicas["group"][replica]
    reserve = state.groups["reserve"][group]
    while state.replicas["queue_head"][replica] != NONE:
        if sequences(state, batch) == state.groups["micro_seqs"][group]:
            break
        if free_blocks(state, replica) < reserve:
            break
        request = dequeue(state, replica, now)
        state.replicas["kv_used"][replica] += reserve
        add_prefill(state, state.batches["lane"][batch], request)
        add_chunk(state, group, batch, request, state.requests["target"][request])


@jit
def form_orca(state: State, replica: int, batch: int, now: float) -> None:
    """Everyone in progress, then new whole prompts."""
    take_decodes(state, replica, batch)
    admit_reserved(state, replica, batch, now)


@jit
def form_faster_transformer(state: State, replica: int, batch: int, now: float) -> None:
    """The static batch that just landed goes on; only without one is a new batch gathered."""
    first = replica * lanes_per_replica(state)
    empty = NONE
    for lane in range(first, first + lanes_per_replica(state)):
        if state.lanes["count"][lane] == 0:
            empty = lane
        elif not in_flight(state, replica, lane):
            state.batches["lane"][batch] = lane
            add_decodes(state, batch)
            return
    state.batches["lane"][batch] = empty
    admit_reserved(state, replica, batch, now)


@jit
def in_flight(state: State, replica: int, lane: int) -> bool:
    ring = len(state.batches) // len(state.replicas)
    head = state.replicas["batch_head"][replica]
    for index in range(state.replicas["in_flight"][replica]):
        if state.batches["lane"][replica * ring + (head + index) % ring] == lane:
            return True
    return False
