"""The tree of loads finds the replica that a scan of all of them finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cluster.conftest import fleet_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.parts import OracleReplica, request_table
from strategies import random_tables

from trimtab.cluster import prepare, run
from trimtab.engine.jit import door
from trimtab.engine.ranking import least_loaded, rank
from trimtab.engine.state import State
from trimtab.routers import Router
from trimtab.routers.heuristics import MANY


@door
def ask(state: State, first: int, last: int, start: int) -> int:
    return least_loaded(state, first, last, start)


@door
def load(state: State, replica: int, outstanding: int) -> None:
    state.replicas["outstanding"][replica] = outstanding
    rank(state, replica)


def scan(loads: np.ndarray, first: int, last: int, start: int) -> int:
    """Around the pool from ``start``; only what is strictly less than all before is taken."""
    order = [*range(start, last), *range(first, start)]
    return min(order, key=lambda replica: loads[replica])


def idle_state(speeds: list[float]) -> State:
    row = {"arrival": 0.0, "prefill_tokens": 1, "decode_tokens": 1}
    fleets = [fleet_of(OracleReplica(random_tables(0)))] * len(speeds)
    state = prepare(request_table([row]), fleets, Router.LEAST_OUTSTANDING)
    state.replicas["speed"] = speeds
    return state


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_it_finds_what_a_scan_finds(data: st.DataObject) -> None:
    """Loads come and go; any part of the fleet is asked for, from any start; ties are common."""
    speeds = data.draw(st.lists(st.sampled_from([0.5, 0.7, 1.0]), min_size=1, max_size=40))
    state = idle_state(speeds)
    replicas = st.integers(0, len(speeds) - 1)
    for _ in range(data.draw(st.integers(1, 20))):
        first, start, last = sorted(data.draw(st.tuples(replicas, replicas, replicas)))
        loads = (state.replicas["outstanding"] + 1.0) / state.replicas["speed"]
        assert ask(state, first, last + 1, start) == scan(loads, first, last + 1, start)
        for replica in data.draw(st.lists(replicas, max_size=8)):
            load(state, replica, data.draw(st.integers(0, 3)))


def test_a_whole_run_is_the_same_as_by_looking_at_each() -> None:
    """Replicas of two speeds, busy: bit for bit what a router in Python chooses."""
    fast, slow = fleet_of(OracleReplica(random_tables(0))), fleet_of(OracleReplica(random_tables(1)))
    fleets = [replace(fast, count=MANY), replace(slow, count=MANY // 2, speed=0.6)]
    rng = np.random.default_rng(0)
    rows = [
        {
            "arrival": arrival,
            "prefill_tokens": rng.integers(1, 24),
            "decode_tokens": rng.integers(1, 16),
            "coin_a": rng.random(),
        }
        for arrival in np.sort(rng.uniform(0.0, 600.0, 2000))
    ]
    ranked = prepare(request_table(rows), fleets, Router.LEAST_OUTSTANDING)
    scanned = prepare(request_table(rows), fleets, Router.OUTSIDE)

    def looks_at_each(state: State, request: int) -> int:
        replicas = state.replicas
        loads = (replicas["outstanding"] + 1.0) / replicas["speed"]
        return scan(loads, 0, len(replicas), int(state.requests["coin_a"][request] * len(replicas)))

    run(ranked)
    run(scanned, looks_at_each)
    assert ranked.control["ranked"][0] and not scanned.control["ranked"][0]
    assert scanned.replicas["routed"].min() > 0
    for name in ranked.requests.dtype.names or ():
        assert ranked.requests[name].tobytes() == scanned.requests[name].tobytes(), name
