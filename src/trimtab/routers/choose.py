"""From a router's kind to its choice. Compiled with the event loop, so only for the plain routers;
those of production gateways are in ``cluster.whole``, which compiles when one of them is first used.
"""

from __future__ import annotations

from trimtab.engine.jit import jit
from trimtab.engine.ranking import Table
from trimtab.engine.state import State
from trimtab.routers import Router
from trimtab.routers.heuristics import (
    best_of_few,
    fewest_waiting,
    lowest_score,
    next_in_turn,
    random_by_speed,
    sticky,
)

RANDOM, ROUND_ROBIN, REPLAY = int(Router.RANDOM), int(Router.ROUND_ROBIN), int(Router.REPLAY)
POWER_OF_TWO, VIDUR_LOR = int(Router.POWER_OF_TWO), int(Router.VIDUR_LOR)
STICKY_SESSION = int(Router.STICKY_SESSION)


@jit
def choose(state: State, request: int) -> int:
    """The replica for ``request``, by what its router sees."""
    table, base = state.replicas, 0
    if state.control["stale"][0]:
        table, base = state.seen, state.control["seen_at"][0]
    return pick(state, table, base, request)


@jit
def pick(state: State, table: Table, base: int, request: int) -> int:
    kind = state.control["router"][0]
    if kind == ROUND_ROBIN:
        return next_in_turn(state)
    if kind == RANDOM:
        return random_by_speed(state, table, base, request)
    if kind == REPLAY:
        return state.requests["replica"][request]
    if kind == POWER_OF_TWO:
        return best_of_few(state, table, base, request)
    if kind == VIDUR_LOR:
        return fewest_waiting(state, table, base)
    if kind == STICKY_SESSION:
        return sticky(state, table, base, request)
    return lowest_score(state, table, base, kind, request)
