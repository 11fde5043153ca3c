"""Who gets in, and where a request may go: admission, accepting replicas, requests that wait for one.

A replica accepts while the last health check found it up, it is not draining and its circuit breaker
is closed. While no replica accepts, requests are held at the router. ``docs/background/faults.md``.
"""

from __future__ import annotations

import math

from trimtab.engine.dtypes import NONE, Event, Status
from trimtab.engine.heap import push
from trimtab.engine.jit import jit
from trimtab.engine.lanes import wake_next_turn
from trimtab.engine.state import State
from trimtab.routers.choose import choose

FAULT, FIRST_TOKEN_TIMEOUT = int(Event.FAULT), int(Event.FIRST_TOKEN_TIMEOUT)
TIMEOUT, ARRIVAL = int(Event.TIMEOUT), int(Event.ARRIVAL)
PENDING, REJECTED = int(Status.PENDING), int(Status.REJECTED)
FAILED, ABORTED = int(Status.FAILED), int(Status.ABORTED)
RETRYING, HELD = int(Status.RETRYING), int(Status.HELD)


@jit
def outside(kind: int) -> bool:
    """Whether an event comes from outside: it moves nothing once every request is done with."""
    return FAULT <= kind <= FIRST_TOKEN_TIMEOUT


@jit
def all_closed(state: State) -> bool:
    """Served + failed + aborted + rejected = all."""
    control = state.control
    closed = control["finished"][0] + control["failed"][0] + control["aborted"][0] + control["rejected"][0]
    return closed == len(state.requests)


@jit
def close(state: State, request: int, status: int, now: float) -> None:
    """A request that holds nothing any more ends unserved; its user's next turn still comes."""
    control = state.control
    if status == FAILED:
        control["failed"][0] += 1
    elif status == ABORTED:
        control["aborted"][0] += 1
    else:
        control["rejected"][0] += 1
    state.requests["status"][request] = status
    wake_next_turn(state, request, now)


@jit
def enters(state: State, request: int, now: float) -> bool:
    """Whether an arriving or returning request is to be routed now."""
    requests, control = state.requests, state.control
    status = requests["status"][request]
    if status == PENDING:
        if not admitted(state, request, now):
            close(state, request, REJECTED, now)
            return False
        klass = requests["klass"][request]
        if math.isfinite(state.classes["timeout"][klass]):
            push(state, now + state.classes["timeout"][klass], TIMEOUT, request)
        if math.isfinite(state.classes["ttft_timeout"][klass]):
            push(state, now + state.classes["ttft_timeout"][klass], FIRST_TOKEN_TIMEOUT, request)
    elif status != RETRYING:
        return False  # given up while it waited for its retry
    if control["accepting"][0] == 0:
        requests["status"][request] = HELD
        control["held"][0] += 1
        return False
    return True


@jit
def admitted(state: State, request: int, now: float) -> bool:
    """Room for its class, and a token in the bucket; a request without room takes no token."""
    control = state.control
    limit = state.classes["limit"][state.requests["klass"][request]]
    if math.isfinite(limit):
        outstanding = control["held"][0]
        for replica in range(len(state.replicas)):
            outstanding += state.replicas["outstanding"][replica]
        if outstanding >= limit * max(1, control["accepting"][0]):
            return False
    if not math.isfinite(control["rate"][0]):
        return True
    gained = (now - control["filled"][0]) * control["rate"][0]
    control["filled"][0] = now
    control["bucket"][0] = min(control["burst"][0], control["bucket"][0] + gained)
    if control["bucket"][0] < 1.0:
        return False
    control["bucket"][0] -= 1.0
    return True


@jit
def choose_anew(state: State, request: int) -> int:
    """The router's choice; a retry goes elsewhere than last time where anybody else accepts."""
    shunned = shun(state, request)
    replica = choose(state, request)
    if shunned != NONE:
        replica = reachable(state, replica)
        readmit(state, shunned)
    return replica


@jit
def shun(state: State, request: int) -> int:
    """Keep a retry off the replica where it failed, if any other accepts. Returns that one, or NONE."""
    requests, replicas, control = state.requests, state.replicas, state.control
    if requests["retries"][request] == 0 or control["accepting"][0] < 2:
        return NONE
    last = requests["replica"][request]
    if not replicas["accepting"][last]:
        return NONE
    replicas["accepting"][last] = 0
    control["accepting"][0] -= 1
    return last


@jit
def readmit(state: State, replica: int) -> None:
    state.replicas["accepting"][replica] = 1
    state.control["accepting"][0] += 1


@jit
def reachable(state: State, replica: int) -> int:
    """The chosen replica if it accepts, else the next one that does (there is one)."""
    while not state.replicas["accepting"][replica]:
        replica += 1
        if replica == len(state.replicas):
            replica = 0
    return replica


@jit
def refresh(state: State, replica: int, now: float) -> None:
    """Work out anew whether routers may choose the replica; let in those who waited for that."""
    replicas, control = state.replicas, state.control
    accepting = 0
    if replicas["seen_up"][replica] and not replicas["draining"][replica] and not replicas["open"][replica]:
        accepting = 1
    control["accepting"][0] += accepting - replicas["accepting"][replica]
    replicas["accepting"][replica] = accepting
    if accepting and control["held"][0] > 0:
        control["held"][0] = 0
        for request in range(len(state.requests)):
            if state.requests["status"][request] == HELD:
                state.requests["status"][request] = RETRYING
                push(state, now, ARRIVAL, request)


@jit
def give_up(state: State) -> None:
    """Nothing will ever happen again and no replica accepts: who waits for one has failed."""
    state.control["held"][0] = 0
    for request in range(len(state.requests)):
        if state.requests["status"][request] == HELD:
            close(state, request, FAILED, state.control["now"][0])
