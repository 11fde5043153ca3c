"""A binary heap of events, ordered by (time, kind, who): the order of simultaneous events."""

from __future__ import annotations

from trimtab.engine.jit import jit
from trimtab.engine.state import State


@jit
def comes_before(state: State, a: int, b: int) -> bool:
    """Whether the event in cell ``a`` happens before the one in cell ``b``."""
    events = state.events
    if events["time"][a] != events["time"][b]:
        return events["time"][a] < events["time"][b]
    if events["kind"][a] != events["kind"][b]:
        return events["kind"][a] < events["kind"][b]
    return events["who"][a] < events["who"][b]


@jit
def swap(state: State, a: int, b: int) -> None:
    events = state.events
    time, kind, who = events["time"][a], events["kind"][a], events["who"][a]
    events["time"][a], events["kind"][a], events["who"][a] = (
        events["time"][b],
        events["kind"][b],
        events["who"][b],
    )
    events["time"][b], events["kind"][b], events["who"][b] = time, kind, who


@jit
def push(state: State, time: float, kind: int, who: int) -> None:
    """Add an event; the heap is sized for all that can be pending at once."""
    size = state.control["heap_size"][0]
    if size >= len(state.events):
        raise IndexError("event heap overflow")
    cell = size
    state.events["time"][cell] = time
    state.events["kind"][cell] = kind
    state.events["who"][cell] = who
    state.control["heap_size"][0] = size + 1
    while cell > 0:
        parent = (cell - 1) // 2
        if not comes_before(state, cell, parent):
            break
        swap(state, cell, parent)
        cell = parent


@jit
def drop_all(state: State, kind: int, who: int) -> None:
    """Remove every event of this kind and owner: build the heap anew from the others (rare)."""
    events = state.events
    size = state.control["heap_size"][0]
    state.control["heap_size"][0] = 0
    for cell in range(size):  # the new heap is never beyond the cell being read
        if events["kind"][cell] != kind or events["who"][cell] != who:
            push(state, events["time"][cell], events["kind"][cell], events["who"][cell])


@jit
def drop_first(state: State) -> None:
    """Remove the earliest event (cell 0)."""
    size = state.control["heap_size"][0] - 1
    state.control["heap_size"][0] = size
    if size == 0:
        return
    swap(state, 0, size)
    cell = 0
    while True:
        child = 2 * cell + 1
        if child >= size:
            break
        if child + 1 < size and comes_before(state, child + 1, child):
            child += 1
        if not comes_before(state, child, cell):
            break
        swap(state, child, cell)
        cell = child
