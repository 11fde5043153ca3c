"""What the engine writes down: gaps between tokens, time integrals, load samples, iterations."""

from __future__ import annotations

import math

from trimtab.engine.dtypes import ITL_BINS, ITL_GAMMA, ITL_LOWEST, NONE
from trimtab.engine.jit import jit
from trimtab.engine.state import State

BINS_PER_LOG = 1.0 / math.log(ITL_GAMMA)


@jit
def record_gap(state: State, seconds: float, count: int) -> None:
    """Count ``count`` inter-token latencies of ``seconds`` in the logarithmic histogram."""
    slot = 0
    if seconds > ITL_LOWEST:
        slot = min(int(math.log(seconds / ITL_LOWEST) * BINS_PER_LOG), ITL_BINS - 1)
    state.itl[slot] += count


@jit
def touch(state: State, replica: int, now: float) -> None:
    """Bring a replica's time integrals up to ``now``, before anything of it changes."""
    replicas = state.replicas
    elapsed = now - replicas["last_change"][replica]
    replicas["last_change"][replica] = now
    replicas["waiting_area"][replica] += elapsed * replicas["waiting"][replica]
    replicas["running_area"][replica] += elapsed * replicas["running"][replica]
    replicas["kv_area"][replica] += elapsed * replicas["kv_used"][replica]


@jit
def sample_until(state: State, now: float) -> None:
    """Take the load samples that are due before ``now``; halve their rate when the table is full."""
    control = state.control
    while control["next_sample"][0] < now:
        row = control["samples"][0]
        if row == len(state.sample_times):
            thin_samples(state)
            row = control["samples"][0]
            if control["next_sample"][0] >= now:
                return
        state.sample_times[row] = control["next_sample"][0]
        for replica in range(len(state.replicas)):
            replicas = state.replicas
            state.samples["waiting"][row, replica] = replicas["waiting"][replica]
            state.samples["running"][row, replica] = replicas["running"][replica]
            state.samples["kv_used"][row, replica] = (
                replicas["kv_used"][replica] / replicas["kv_total"][replica]
            )
            state.samples["pending_prefill"][row, replica] = replicas["pending_prefill"][replica]
        control["samples"][0] = row + 1
        control["next_sample"][0] = (row + 1) * control["sample_every"][0]


@jit
def thin_samples(state: State) -> None:
    """Keep every second sample and double the interval."""
    control = state.control
    half = len(state.sample_times) // 2
    for row in range(half):
        state.sample_times[row] = state.sample_times[2 * row]
        for replica in range(len(state.replicas)):
            for_row = 2 * row
            samples = state.samples
            samples["waiting"][row, replica] = samples["waiting"][for_row, replica]
            samples["running"][row, replica] = samples["running"][for_row, replica]
            samples["kv_used"][row, replica] = samples["kv_used"][for_row, replica]
            samples["pending_prefill"][row, replica] = samples["pending_prefill"][for_row, replica]
    control["samples"][0] = half
    control["sample_every"][0] *= 2.0
    control["next_sample"][0] = half * control["sample_every"][0]


@jit
def record_iteration(state: State, replica: int, batch: int) -> None:
    """Append an iteration while there is room; the count goes on."""
    row = state.control["iterations"][0]
    state.control["iterations"][0] = row + 1
    state.batches["row"][batch] = row if row < len(state.iterations) else NONE
    if row >= len(state.iterations):
        return
    iterations, batches, replicas = state.iterations, state.batches, state.replicas
    iterations["start"][row] = batches["start"][batch]
    iterations["end"][row] = batches["end"][batch]
    iterations["stage"][row] = batches["stage"][batch]
    iterations["replica"][row] = replica
    iterations["prefill_tokens"][row] = batches["prefill_tokens"][batch]
    iterations["prefills"][row] = batches["prefills"][batch]
    iterations["decodes"][row] = batches["decodes"][batch]
    iterations["attention_pairs"][row] = batches["pairs"][batch]
    iterations["waiting"][row] = replicas["waiting"][replica]
    iterations["running"][row] = replicas["running"][replica]
    iterations["kv_used"][row] = replicas["kv_used"][replica]
