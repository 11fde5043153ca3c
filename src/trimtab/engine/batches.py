"""Building a batch from aggregates, timing it, sending it through the pipeline."""

from __future__ import annotations

import math

from trimtab.engine.dtypes import Event, Scheduler
from trimtab.engine.heap import push
from trimtab.engine.jit import jit
from trimtab.engine.lanes import first_token, free_lane, return_to_pool, step
from trimtab.engine.prefix import evict
from trimtab.engine.record import record_iteration
from trimtab.engine.state import State

BATCH_END = int(Event.BATCH_END)
STATIC = int(Scheduler.FASTER_TRANSFORMER)


@jit
def ring_size(state: State) -> int:
    return len(state.batches) // len(state.replicas)


@jit
def begin(state: State, replica: int) -> int:
    """A cleared row for the replica's next batch, in a lane: the pool with one pipeline stage."""
    batches, replicas = state.batches, state.replicas
    ring = ring_size(state)
    cell = (replicas["batch_head"][replica] + replicas["in_flight"][replica]) % ring
    batch = replica * ring + cell
    if state.groups["stages"][replicas["group"][replica]] == 1:
        batches["lane"][batch] = replicas["pool"][replica]
    else:
        batches["lane"][batch] = free_lane(state, replica)
    batches["emits"][batch] = 1
    batches["preempted"][batch] = 0
    batches["short"][batch] = 0
    clear(state, batch)
    return batch


@jit
def clear(state: State, batch: int) -> None:
    """An empty batch."""
    batches = state.batches
    batches["prefills"][batch] = 0
    batches["prefill_tokens"][batch] = 0
    batches["longest"][batch] = 0
    batches["decodes"][batch] = 0
    batches["decode_kv"][batch] = 0
    batches["past"][batch] = 0.0
    batches["squares"][batch] = 0.0
    batches["work"][batch] = 0.0
    batches["pairs"][batch] = 0.0


@jit
def add_chunk(state: State, group: int, batch: int, request: int, tokens: int) -> None:
    """``tokens`` of a request's prompt join the batch."""
    batches = state.batches
    past = state.requests["processed"][request]
    index = batches["prefills"][batch]
    state.chunks["request"][batch, index] = request
    state.chunks["tokens"][batch, index] = tokens
    batches["prefills"][batch] = index + 1
    batches["prefill_tokens"][batch] += tokens
    batches["longest"][batch] = max(batches["longest"][batch], tokens)
    if state.groups["vidur"][group]:
        step_size = state.groups["kv_step"][group]
        batches["past"][batch] += (past + step_size - 1) // step_size
    else:
        batches["past"][batch] += past
    width = float(tokens)
    batches["squares"][batch] += width * width
    batches["work"][batch] += width * past + width * width / 2.0
    batches["pairs"][batch] += width * (width + past)


@jit
def drop_chunk(state: State, group: int, batch: int, request: int) -> int:
    """Take a request's chunk out of a batch that is being formed; returns its tokens."""
    batches, chunks = state.batches, state.chunks
    count = batches["prefills"][batch]
    clear(state, batch)
    dropped = 0
    for index in range(count):  # what stays is added anew: never beyond the entry being read
        other, tokens = chunks["request"][batch, index], chunks["tokens"][batch, index]
        if other == request:
            dropped = tokens
        else:
            add_chunk(state, group, batch, other, tokens)
    return dropped


@jit
def add_decodes(state: State, batch: int) -> None:
    """All decodes of the batch's lane join it."""
    lane, emits = state.batches["lane"][batch], state.batches["emits"][batch]
    decodes = state.lanes["decodes"][lane]
    state.batches["decodes"][batch] = decodes
    state.batches["decode_kv"][batch] = state.lanes["kv_sum"][lane]
    state.batches["pairs"][batch] += emits * (emits * decodes + state.lanes["kv_sum"][lane])


@jit
def line(state: State, start: int, last: int, at: float) -> float:
    """Table value: linear between entries, in proportion beyond the last."""
    curves = state.curves
    if at >= last:
        if last == 0:
            return curves[start]
        return curves[start + last] * (at / last)
    low = int(at)
    value = curves[start + low]
    return value + (at - low) * (curves[start + low + 1] - value)


@jit
def decode_seconds(state: State, group: int, batch: int) -> float:
    groups = state.groups
    count = state.batches["decodes"][batch]
    mean = state.batches["decode_kv"][batch] / count
    width = groups["kv_step"][group]
    if groups["vidur"][group]:
        at = float((int(mean) + width - 1) // width)
    else:
        at = mean / width
    rows, last = groups["decode_rows"][group], groups["decode_last"][group]
    row = min(count, rows)
    seconds = line(state, groups["decode_at"][group] + row * (last + 1), last, at)
    return seconds * (count / rows) if count > rows else seconds


@jit
def prefill_seconds(state: State, group: int, batch: int) -> float:
    groups, batches = state.groups, state.batches
    if groups["vidur"][group]:
        past = batches["past"][batch]
        chunk = float(round(math.sqrt(batches["squares"][batch])))
    else:
        tokens = batches["past"][batch]
        chunk = math.sqrt(tokens * tokens + 2.0 * batches["work"][batch]) - tokens
        past = tokens / groups["kv_step"][group]
    chunk /= groups["chunk_step"][group]
    rows, last = groups["prefill_rows"][group], groups["prefill_last"][group]
    start = groups["prefill_at"][group]
    low = min(int(past), rows)
    seconds = line(state, start + low * (last + 1), last, chunk)
    if past > rows:
        seconds *= past / rows if rows else 1.0
    elif past > low:
        seconds += (past - low) * (line(state, start + (low + 1) * (last + 1), last, chunk) - seconds)
    return seconds * groups["many_prefills"][group] if batches["prefills"][batch] > 1 else seconds


@jit
def launch(state: State, replica: int, batch: int, now: float) -> None:
    """Time the batch, lay it through the pipeline stages, and announce its end."""
    batches, groups, replicas = state.batches, state.groups, state.replicas
    group = replicas["group"][replica]
    if groups["prefix_caching"][group]:
        evict(state, replica)
    decodes, prefills = batches["decodes"][batch], batches["prefills"][batch]
    drafts = groups["draft_tokens"][group] * decodes
    tokens = batches["prefill_tokens"][batch] + decodes + drafts
    unit = groups["token_round"][group]
    rounded = (tokens + unit - 1) // unit * unit
    last = groups["tokens_last"][group]
    seconds = line(state, groups["token_at"][group], last, float(rounded))
    seconds += line(state, groups["kv_write_at"][group], last, float(tokens))
    rows = float(decodes + drafts + prefills)
    seconds += line(state, groups["cpu_at"][group], groups["cpu_last"][group], rows)
    if decodes > 0:
        seconds += decode_seconds(state, group, batch)
    if prefills > 0:
        seconds += prefill_seconds(state, group, batch)
    stages = groups["stages"][group]
    first = replica * ring_size(state)
    slow = replicas["slow"][replica]
    start = max(now, batches["stage_free"][first])
    clock = now
    total = 0.0
    for stage in range(stages):
        spent = seconds
        if stage < stages - 1:
            spent += line(state, groups["send_at"][group], last, float(rounded))
        spent *= slow
        clock = max(clock, batches["stage_free"][first + stage]) + spent
        batches["stage_free"][first + stage] = clock
        total += spent
    replicas["busy"][replica] += total
    batches["start"][batch] = start
    batches["end"][batch] = clock
    batches["stage"][batch] = seconds * slow
    batches["spent"][batch] = total
    replicas["in_flight"][replica] += 1
    replicas["iterations"][replica] += 1
    replicas["attention_pairs"][replica] += batches["pairs"][batch]
    replicas["kv_peak"][replica] = max(replicas["kv_peak"][replica], replicas["kv_used"][replica])
    record_iteration(state, replica, batch)
    push(state, clock, BATCH_END, replica)


@jit
def land(state: State, replica: int, now: float) -> None:
    """The oldest batch in flight is complete: its tokens are out, its requests available again."""
    batches, replicas, requests = state.batches, state.replicas, state.requests
    ring = ring_size(state)
    head = replicas["batch_head"][replica]
    batch = replica * ring + head
    replicas["batch_head"][replica] = (head + 1) % ring
    replicas["in_flight"][replica] -= 1
    group = replicas["group"][replica]
    lane = batches["lane"][batch]
    seconds = batches["spent"][batch]
    if batches["decodes"][batch] > 0:
        if state.groups["draft_tokens"][group] > 0:
            replicas["decode_steps"][replica] += batches["decodes"][batch]
        for token in range(batches["emits"][batch]):
            step(state, replica, lane, now, seconds if token == 0 else 0.0)
    for index in range(batches["prefills"][batch]):
        request = state.chunks["request"][batch, index]
        tokens = state.chunks["tokens"][batch, index]
        requests["processed"][request] += tokens
        requests["execution"][request] += seconds
        replicas["pending_prefill"][replica] -= tokens
        replicas["prefill_done"][replica] += tokens
        if requests["processed"][request] == requests["target"][request]:
            first_token(state, replica, lane, request, now)
    if state.groups["scheduler"][group] == STATIC:
        release_static(state, replica, lane)
    else:
        return_to_pool(state, replica, lane)


@jit
def release_static(state: State, replica: int, lane: int) -> None:
    """A static batch frees its KV when its last request is done."""
    if state.lanes["count"][lane] == 0:
        state.replicas["kv_used"][replica] -= state.lanes["held"][lane]
        state.lanes["held"][lane] = 0
