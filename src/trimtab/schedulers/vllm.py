"""vLLM v0 as Vidur models it: prompts first, never mixed with decodes; preemption by recompute."""

from __future__ import annotations

from trimtab.engine.batches import add_chunk
from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import jit
from trimtab.engine.lanes import add_prefill, blocks_for
from trimtab.engine.queue import dequeue
from trimtab.engine.state import State
from trimtab.schedulers.common import free_blocks, take_decodes


@jit
def form_vllm(state: State, replica: int, batch: int, now: float) -> None:
    """A batch of whole prompts if any can be admitted, else all decodes."""
    admit_prompts(state, replica, batch, now)
    if state.batches["prefills"][batch] == 0:
        take_decodes(state, replica, batch)


@jit
def admit_prompts(state: State, replica: int, batch: int, now: float) -> None:
    """Prompts in order while KV, the padded token budget and both sequence limits allow.

    A prompt longer than the budget runs alone, where Vidur would wait for ever.
    """
    group = state.replicas["group"][replica]
    groups, batches, replicas = state.groups, state.batches, state.replicas
    while replicas["queue_head"][replica] != NONE:
        tokens = state.requests["target"][replicas["queue_head"][replica]]
        blocks = blocks_for(tokens, groups["block_size"][group])
        if free_blocks(state, replica) - blocks < groups["watermark"][group]:
            break
        prompts = batches["prefills"][batch]
        padded = (prompts + 1) * max(batches["longest"][batch], tokens)
        if padded > groups["token_budget"][group] and prompts > 0:
            break
        if replicas["running"][replica] == groups["max_seqs"][group]:
            break
        if prompts == groups["micro_seqs"][group]:
            break
        request = dequeue(state, replica, now)
        replicas["kv_used"][replica] += blocks
        add_prefill(state, batches["lane"][batch], request)
        add_chunk(state, group, batch, request, tokens)
