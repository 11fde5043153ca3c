"""From a router's name to its choice: the one place where compiled code asks any built-in router."""

from __future__ import annotations

from trimtab.engine.jit import jit
from trimtab.engine.state import State
from trimtab.routers import Router
from trimtab.routers.heuristics import (
    LEAST_OUTSTANDING,
    Table,
    best_of_few,
    fewest_waiting,
    lowest_score,
    next_in_turn,
    random_by_speed,
    sticky,
)
from trimtab.routers.prefix_aware import aibrix, bounded_hash, hashed_session, preble, ray_prefix, sglang
from trimtab.routers.production import lowest_cost, softmax

RANDOM, ROUND_ROBIN, REPLAY = int(Router.RANDOM), int(Router.ROUND_ROBIN), int(Router.REPLAY)
POWER_OF_TWO, VIDUR_LOR = int(Router.POWER_OF_TWO), int(Router.VIDUR_LOR)
STICKY_SESSION = int(Router.STICKY_SESSION)
DYNAMO_KV = int(Router.DYNAMO_KV)
SGLANG, RAY_PREFIX, AIBRIX = int(Router.SGLANG), int(Router.RAY_PREFIX), int(Router.AIBRIX)
PREBLE, BOUNDED_HASH = int(Router.PREBLE), int(Router.BOUNDED_HASH)
STACK_SESSION = int(Router.STACK_SESSION)
FIRST_PUBLISHED = int(Router.LEAST_BUSY)


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
    if kind >= FIRST_PUBLISHED:
        replica = pick_published(state, table, base, kind, request)
        if state.replicas["accepting"][replica]:
            return replica
        return lowest_score(state, table, base, LEAST_OUTSTANDING, request)
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


@jit
def pick_published(state: State, table: Table, base: int, kind: int, request: int) -> int:
    """What production gateways do; a kind without a rule of its own minimises its cost.

    Their rules do not say what accepts: the caller makes up for it.
    """
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
