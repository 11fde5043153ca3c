"""The choice of routers of production gateways, for arrivals and for decodes."""

from __future__ import annotations

from trimtab.engine.jit import jit
from trimtab.engine.ranking import Table
from trimtab.engine.state import State
from trimtab.routers import Router
from trimtab.routers.heuristics import LEAST_OUTSTANDING, lowest_score
from trimtab.routers.learned import learned
from trimtab.routers.prefix_aware import aibrix, bounded_hash, hashed_session, preble, ray_prefix, sglang
from trimtab.routers.production import lowest_cost, softmax

DYNAMO_KV = int(Router.DYNAMO_KV)
SGLANG, RAY_PREFIX, AIBRIX = int(Router.SGLANG), int(Router.RAY_PREFIX), int(Router.AIBRIX)
PREBLE, BOUNDED_HASH = int(Router.PREBLE), int(Router.BOUNDED_HASH)
STACK_SESSION, LEARNED = int(Router.STACK_SESSION), int(Router.LEARNED)


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
    if kind == LEARNED:
        return learned(state, table, base, request)
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
