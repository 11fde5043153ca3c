"""Who gets in, and where a request may go: admission, accepting replicas, requests that wait for one.

A replica accepts while it is on, the last health check found it up, it is not draining and its circuit
breaker is closed. While no replica accepts, requests are held at the router. ``docs/background/faults.md``.
"""

from __future__ import annotations

import math

from trimtab.cluster.transfer import free_kv, go_on
from trimtab.engine.dtypes import NONE, Event, Power, Status
from trimtab.engine.heap import push
from trimtab.engine.jit import jit
from trimtab.engine.lanes import wake_next_turn
from trimtab.engine.state import State
from trimtab.routers.heuristics import following, may_choose, num_accepting

TIMEOUT, ARRIVAL = int(Event.TIMEOUT), int(Event.ARRIVAL)
HANDOVER, SENDING = int(Event.HANDOVER), int(Status.SENDING)
FIRST_TOKEN_TIMEOUT = int(Event.FIRST_TOKEN_TIMEOUT)
PENDING, REJECTED = int(Status.PENDING), int(Status.REJECTED)
FAILED, ABORTED = int(Status.FAILED), int(Status.ABORTED)
RETRYING, HELD = int(Status.RETRYING), int(Status.HELD)
ON = int(Power.ON)


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
    requests, pools = state.requests, state.pools
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
    pool = requests["pool"][request]
    if pools["accepting"][pool] == 0:
        requests["status"][request] = HELD
        pools["held"][pool] += 1
        return False
    return True


@jit
def admitted(state: State, request: int, now: float) -> bool:
    """Room for its class, and a token in the bucket; a request without room takes no token."""
    control = state.control
    limit = state.classes["limit"][state.requests["klass"][request]]
    if math.isfinite(limit):
        pools, pool = state.pools, state.requests["pool"][request]
        outstanding, last = pools["held"][pool], pools["last"][pool]
        if pools["decode"][pool] != NONE:  # which begins in, or right behind, the pool that prefills
            last = pools["last"][pools["decode"][pool]]
            outstanding += pools["held"][pools["decode"][pool]]
        accepting = 0
        for replica in range(pools["first"][pool], last):
            outstanding += state.replicas["outstanding"][replica]
            accepting += state.replicas["accepting"][replica]
        if outstanding >= limit * max(1, accepting):
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
def shun(state: State, request: int) -> int:
    """Keep a retry off the replica where it failed, if any other accepts. Returns that one, or NONE."""
    requests = state.requests
    if requests["retries"][request] == 0 or num_accepting(state) < 2:
        return NONE
    last = requests["replica"][request]
    if not may_choose(state, last):
        return NONE
    state.replicas["accepting"][last] = 0
    state.pools["accepting"][state.control["pool"][0]] -= 1
    return last


@jit
def readmit(state: State, replica: int) -> None:
    state.replicas["accepting"][replica] = 1
    state.pools["accepting"][state.control["pool"][0]] += 1


@jit
def reachable(state: State, replica: int) -> int:
    """The chosen replica if it is of the pool and accepts, else the next one that does (there is one)."""
    while not may_choose(state, replica):
        replica = following(state, replica)
    return replica


@jit
def refresh(state: State, replica: int, now: float) -> None:
    """Work out anew whether routers may choose the replica; let in those who waited for that."""
    replicas, pools = state.replicas, state.pools
    accepting = 0
    barred = replicas["power"][replica] != ON or replicas["draining"][replica] or replicas["open"][replica]
    if replicas["seen_up"][replica] and not barred:
        accepting = 1
    change = accepting - replicas["accepting"][replica]
    replicas["accepting"][replica] = accepting
    for pool in range(len(pools)):
        if pools["first"][pool] <= replica < pools["last"][pool]:
            pools["accepting"][pool] += change
            if accepting and pools["held"][pool] > 0:
                let_in(state, pool, now)


@jit
def let_in(state: State, pool: int, now: float) -> None:
    """Those who waited for a replica of the pool come again, at once."""
    requests = state.requests
    for request in range(len(requests)):
        if requests["status"][request] == HELD and requests["pool"][request] == pool:
            state.pools["held"][pool] -= 1
            requests["status"][request] = RETRYING
            push(state, now, ARRIVAL, request)
        elif waits_with_kv(state, request) and state.pools["decode"][requests["pool"][request]] == pool:
            push(state, now, HANDOVER, request)


@jit
def waits_with_kv(state: State, request: int) -> bool:
    """Whether it is prefilled and nobody accepts it who could decode it."""
    return state.requests["status"][request] == SENDING and state.requests["bound_for"][request] == NONE


@jit
def give_up(state: State) -> bool:
    """Nothing will ever happen again and no replica accepts: who waits for one has failed.

    Returns whether anybody waited.
    """
    waited = False
    for pool in range(len(state.pools)):
        if state.pools["held"][pool] > 0:
            waited = True
            state.pools["held"][pool] = 0
    now = state.control["now"][0]
    if waited:
        for request in range(len(state.requests)):
            if waits_with_kv(state, request):
                sender = state.requests["replica"][request]
                free_kv(state, sender, request, now)
                close(state, request, FAILED, now)
                go_on(state, sender, now)
            elif state.requests["status"][request] == HELD:
                close(state, request, FAILED, now)
    return waited
