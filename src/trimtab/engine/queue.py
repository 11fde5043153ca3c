"""A replica's waiting requests: a linked list through the request table."""

from __future__ import annotations

import math

from trimtab.engine.dtypes import NONE, Scheduler, Status
from trimtab.engine.jit import jit
from trimtab.engine.state import State

WAITING = int(Status.WAITING)
RUNNING = int(Status.RUNNING)
VLLM = int(Scheduler.VLLM)
VLLM_V1 = int(Scheduler.VLLM_V1)


@jit
def goes_before(state: State, a: int, b: int) -> bool:
    """Priority order: smaller priority first, then earlier arrival, then lower index."""
    requests = state.requests
    if requests["priority"][a] != requests["priority"][b]:
        return requests["priority"][a] < requests["priority"][b]
    if requests["arrival"][a] != requests["arrival"][b]:
        return requests["arrival"][a] < requests["arrival"][b]
    return a < b


@jit
def enqueue(state: State, replica: int, request: int) -> None:
    """Put an arriving request at the back of the queue; under "priority" where it belongs."""
    if state.groups["priority"][state.replicas["group"][replica]]:
        insert_by_priority(state, replica, request)
    else:
        link(state, replica, request, state.replicas["queue_tail"][replica], NONE)


@jit
def requeue(state: State, replica: int, request: int) -> None:
    """Put a preempted request at the front; under "priority" where it belongs."""
    if state.groups["priority"][state.replicas["group"][replica]]:
        insert_by_priority(state, replica, request)
    else:
        link(state, replica, request, NONE, state.replicas["queue_head"][replica])


@jit
def insert_by_priority(state: State, replica: int, request: int) -> None:
    before = NONE
    after = state.replicas["queue_head"][replica]
    while after != NONE and not goes_before(state, request, after):
        before, after = after, state.requests["next_waiting"][after]
    link(state, replica, request, before, after)


@jit
def link(state: State, replica: int, request: int, before: int, after: int) -> None:
    """Insert a request between two neighbours of the queue (NONE: the end)."""
    replicas, links = state.replicas, state.requests["next_waiting"]
    state.requests["status"][request] = WAITING
    replicas["waiting"][replica] += 1
    links[request] = after
    if before == NONE:
        replicas["queue_head"][replica] = request
    else:
        links[before] = request
    if after == NONE:
        replicas["queue_tail"][replica] = request


@jit
def unlink(state: State, replica: int, request: int) -> None:
    """Take a request out of the middle of the queue (its client gave up)."""
    replicas, links = state.replicas, state.requests["next_waiting"]
    before = NONE
    at = replicas["queue_head"][replica]
    while at != request:
        before, at = at, links[at]
    following = links[request]
    if before == NONE:
        replicas["queue_head"][replica] = following
    else:
        links[before] = following
    if following == NONE:
        replicas["queue_tail"][replica] = before
    links[request] = NONE
    replicas["waiting"][replica] -= 1


@jit
def dequeue(state: State, replica: int, now: float) -> int:
    """Take the head of the queue into service."""
    replicas, requests = state.replicas, state.requests
    request = replicas["queue_head"][replica]
    following = requests["next_waiting"][request]
    replicas["queue_head"][replica] = following
    if following == NONE:
        replicas["queue_tail"][replica] = NONE
    requests["next_waiting"][request] = NONE
    requests["status"][request] = RUNNING
    replicas["waiting"][replica] -= 1
    replicas["running"][replica] += 1
    if math.isnan(requests["scheduled"][request]):
        requests["scheduled"][request] = now
    requests["order"][request] = place_in_pool(state, replica, request)
    return request


@jit
def place_in_pool(state: State, replica: int, request: int) -> float:
    """vLLM v0 (Vidur's) keeps its pool by arrival, v1 by admission, the others as batches land."""
    kind = state.groups["scheduler"][state.replicas["group"][replica]]
    if kind == VLLM:
        return state.requests["arrival"][request]
    if kind == VLLM_V1:
        state.control["admissions"][0] += 1
        return float(state.control["admissions"][0])
    return 0.0
