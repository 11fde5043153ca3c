"""The event loop with all that most runs do without: routers of production gateways, faults, timeouts,
admission, autoscaling. A door of its own, so that nobody else compiles it.
"""

from __future__ import annotations

from trimtab.cluster.entrance import enters, give_up, reachable, readmit, shun
from trimtab.cluster.faults import attempt_failed, befall, leave_aborting
from trimtab.cluster.loop import advance, place, settle
from trimtab.cluster.scaling import let_leave
from trimtab.engine.dtypes import NONE, Event, Outcome
from trimtab.engine.jit import door, jit
from trimtab.engine.signals import look
from trimtab.engine.state import State
from trimtab.routers import FIRST_PUBLISHED, Router
from trimtab.routers.choose import choose
from trimtab.routers.heuristics import LEAST_OUTSTANDING, Table, lowest_score
from trimtab.routers.prefix_aware import aibrix, bounded_hash, hashed_session, preble, ray_prefix, sglang
from trimtab.routers.production import lowest_cost, softmax

BATCH_END, ARRIVAL = int(Event.BATCH_END), int(Event.ARRIVAL)
DONE, ASKING, HAPPENING = int(Outcome.DONE), int(Outcome.ASKING), int(Outcome.HAPPENING)
OUTSIDE, PUBLISHED = int(Router.OUTSIDE), int(FIRST_PUBLISHED)
DYNAMO_KV = int(Router.DYNAMO_KV)
SGLANG, RAY_PREFIX, AIBRIX = int(Router.SGLANG), int(Router.RAY_PREFIX), int(Router.AIBRIX)
PREBLE, BOUNDED_HASH = int(Router.PREBLE), int(Router.BOUNDED_HASH)
STACK_SESSION = int(Router.STACK_SESSION)


@door
def advance_whole(state: State, until: float) -> int:
    """Run as ``advance`` does, and see to what it leaves to its caller. Returns an ``Outcome``:
    DONE, PAUSED, or ASKING for a router in Python.
    """
    while True:
        outcome = advance(state, until)
        if outcome == ASKING and state.control["router"][0] >= PUBLISHED:
            request = state.control["asking"][0]
            state.control["asking"][0] = NONE
            place(state, request, choose_published(state, request), state.control["now"][0])
        elif outcome == HAPPENING:
            if see_to(state, state.control["happening"][0], state.control["about"][0]) == ASKING:
                return ASKING
        elif outcome != DONE or not give_up(state):
            let_leave(state)
            return outcome


@door
def answer_whole(state: State, replica: int) -> None:
    """Send the request that an outside router was asked about."""
    request = state.control["asking"][0]
    state.control["asking"][0] = NONE
    send(state, request, replica, state.control["now"][0])


@jit
def see_to(state: State, kind: int, who: int) -> int:
    """What happens now to ``who``: a request that comes, a replica, a fault of the list, ..."""
    now = state.control["now"][0]
    if kind == ARRIVAL:
        if not enters(state, who, now):
            return DONE
        look(state, who, now)
        if state.control["router"][0] == OUTSIDE:
            state.control["asking"][0] = who
            return ASKING
        send(state, who, choose_anew(state, who), now)
        return DONE
    if kind == BATCH_END:
        leave_aborting(state, who)
        replica = who
    else:
        replica = befall(state, kind, who, now)
    if replica != NONE:
        settle(state, replica, now)
    return DONE


@jit
def send(state: State, request: int, replica: int, now: float) -> None:
    """Try to place a request on the chosen replica, or the next one that accepts; it may be down."""
    replica = reachable(state, replica)
    if state.replicas["up"][replica]:
        place(state, request, replica, now)
    else:
        state.requests["replica"][request] = replica
        attempt_failed(state, replica, request, now)


@jit
def choose_anew(state: State, request: int) -> int:
    """The router's choice; a retry goes elsewhere than last time where anybody else accepts."""
    shunned = shun(state, request)
    if state.control["router"][0] >= PUBLISHED:
        replica = choose_published(state, request)
    else:
        replica = choose(state, request)
    if shunned != NONE:
        replica = reachable(state, replica)
        readmit(state, shunned)
    return replica


@jit
def choose_published(state: State, request: int) -> int:
    """The replica for ``request``, by what its router sees.

    The published rules do not ask who accepts: an answer that does not falls back to least outstanding.
    """
    table, base = state.replicas, 0
    if state.control["stale"][0]:
        table, base = state.seen, state.control["seen_at"][0]
    replica = pick_published(state, table, base, request)
    if not state.replicas["accepting"][replica]:
        replica = lowest_score(state, table, base, LEAST_OUTSTANDING, request)
    return replica


@jit
def pick_published(state: State, table: Table, base: int, request: int) -> int:
    """What production gateways do; a kind without a rule of its own minimises its cost."""
    kind = state.control["router"][0]
    if kind == SGLANG:
        return sglang(state, table, base, request)
    if kind == AIBRIX:
        return aibrix(state, table, base, request)
    if kind == RAY_PREFIX:
        return ray_prefix(state, table, base, request)
    if kind == PREBLE:
        return preble(state, table, base, request)
    if kind == BOUNDED_HASH:
        return bounded_hash(state, table, base, request)
    if kind == STACK_SESSION:
        return hashed_session(state, request)
    if kind == DYNAMO_KV and state.control["temperature"][0] > 0.0:
        return softmax(state, table, base, kind, request)
    return lowest_cost(state, table, base, kind, request)
