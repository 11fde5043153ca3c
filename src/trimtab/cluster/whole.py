"""The event loop with all that most runs do without: routers of production gateways, faults, timeouts,
admission, autoscaling, prefill and decode apart. A door of its own, so that nobody else compiles it.
"""

from __future__ import annotations

from trimtab.cluster.entrance import enters, give_up, reachable, readmit, shun
from trimtab.cluster.faults import attempt_failed, befall, leave_aborting
from trimtab.cluster.handover import go_further, hand_over_prefilled
from trimtab.cluster.loop import advance, place
from trimtab.cluster.published import choose_published
from trimtab.cluster.scaling import let_leave
from trimtab.cluster.transfer import go_on
from trimtab.engine.dtypes import NONE, Event, Outcome
from trimtab.engine.jit import door, jit
from trimtab.engine.signals import look
from trimtab.engine.state import State
from trimtab.routers import FIRST_PUBLISHED, Router
from trimtab.routers.choose import choose

BATCH_END, HANDOVER, ARRIVAL = int(Event.BATCH_END), int(Event.HANDOVER), int(Event.ARRIVAL)
DONE, ASKING, HAPPENING = int(Outcome.DONE), int(Outcome.ASKING), int(Outcome.HAPPENING)
OUTSIDE, PUBLISHED = int(Router.OUTSIDE), int(FIRST_PUBLISHED)


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


@door
def consult(state: State, router: int) -> int:
    """What another ``router`` would answer to the question that waits. Nobody is sent anywhere."""
    asked = state.control["router"][0]
    state.control["router"][0] = router
    replica = choose_anew(state, state.control["asking"][0])
    state.control["router"][0] = asked
    return replica


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
    if kind == HANDOVER:
        go_further(state, who, now)
        return DONE
    if kind == BATCH_END:
        leave_aborting(state, who)
        if state.replicas["hands_over"][who]:
            hand_over_prefilled(state, who, now)
        replica = who
    else:
        replica = befall(state, kind, who, now)
    if replica != NONE:
        go_on(state, replica, now)
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
