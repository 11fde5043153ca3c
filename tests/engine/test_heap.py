"""The event heap gives back what was put in, in order of (time, kind, who)."""

from __future__ import annotations

import numpy as np
import pytest
from cluster.conftest import fleet_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.parts import OracleReplica, request_table
from strategies import random_tables

from trimtab.cluster import prepare
from trimtab.engine.dtypes import EVENT
from trimtab.engine.heap import drop_first, push
from trimtab.engine.jit import door
from trimtab.engine.state import LAYOUT, State
from trimtab.routers import Router

CAPACITY = 64
POP = -1  # as a kind: take the first event out


@door
def play(state: State, times: np.ndarray, kinds: np.ndarray, whos: np.ndarray, out: np.ndarray) -> int:
    """Pushes in order, and pops where the kind says so; ``out`` (N, 3) gets the popped events."""
    popped = 0
    for index in range(len(times)):
        if kinds[index] == POP:
            if state.control["heap_size"][0] > 0:
                out[popped, 0] = state.events["time"][0]
                out[popped, 1] = float(state.events["kind"][0])
                out[popped, 2] = float(state.events["who"][0])
                drop_first(state)
                popped += 1
        else:
            push(state, times[index], kinds[index], whos[index])
    return popped


def state_with_heap(capacity: int) -> State:
    """Any state will do; its heap holds ``capacity`` events."""
    row = {"arrival": 0.0, "prefill_tokens": 1, "decode_tokens": 1}
    any_state = prepare(request_table([row]), [fleet_of(OracleReplica(random_tables(0)))], Router.RANDOM)
    parts = {name: getattr(any_state, name) for name in LAYOUT}
    return State(**parts | {"events": np.zeros(capacity, EVENT)})


def played(events: list[tuple[float, int, int]], capacity: int = CAPACITY) -> list[tuple[float, ...]]:
    state = state_with_heap(capacity)
    times = np.array([event[0] for event in events], dtype=np.float64)
    kinds, whos = (np.array([event[at] for event in events], dtype=np.int64) for at in (1, 2))
    out = np.zeros((len(events), 3))
    count = play(state, times, kinds, whos, out)
    return [tuple(row) for row in out[:count].tolist()]


EVENTS = st.tuples(st.integers(0, 3).map(float) | st.floats(0.0, 4.0), st.integers(0, 2), st.integers(0, 3))
TAKE = st.just((0.0, POP, 0))


@given(st.lists(EVENTS, max_size=CAPACITY))
@settings(max_examples=300, deadline=None)
def test_all_in_then_all_out_is_sorted(events: list[tuple[float, int, int]]) -> None:
    assert played([*events, *[(0.0, POP, 0)] * len(events)]) == sorted(events)


@given(st.lists(EVENTS | TAKE, max_size=CAPACITY))
@settings(max_examples=300, deadline=None)
def test_each_pop_is_the_least_of_what_is_there(events: list[tuple[float, int, int]]) -> None:
    there: list[tuple[float, int, int]] = []
    expected = []
    for event in events:
        if event[1] != POP:
            there.append(event)
        elif there:
            expected.append(min(there))
            there.remove(min(there))
    assert played(events) == expected


def test_too_many_events_are_an_error() -> None:
    assert played([(1.0, 0, 0)] * 4, capacity=4) == []
    with pytest.raises(IndexError, match="heap overflow"):
        played([(1.0, 0, 0)] * 5, capacity=4)
