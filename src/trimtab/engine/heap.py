"""A heap of events, ordered by (time, kind, who): the order of simultaneous events.

Every event has up to four children, not two: half the levels, and the earliest of four is found without a
jump that the processor would guess wrong every other time. With an event pending on each of 1,000 replicas
that takes two fifths of a binary heap's time.
"""

from __future__ import annotations

from trimtab.engine.jit import jit
from trimtab.engine.state import State

CHILDREN = 4


@jit
def is_before(state: State, cell: int, time: float, kind: int, who: int) -> bool:
    """Whether the event in ``cell`` happens before the given one."""
    events = state.events
    if events["time"][cell] != time:
        return events["time"][cell] < time
    if events["kind"][cell] != kind:
        return events["kind"][cell] < kind
    return events["who"][cell] < who


@jit
def first_of(state: State, start: int, stop: int) -> int:
    """The cell of the earliest event in cells ``start`` to before ``stop``."""
    events = state.events
    first = start
    for cell in range(start + 1, stop):
        if is_before(state, cell, events["time"][first], events["kind"][first], events["who"][first]):
            first = cell
    return first


@jit
def first_of_four(state: State, start: int) -> int:
    """As ``first_of`` for four cells: arithmetic instead of jumps, unless times are equal."""
    times = state.events["time"]
    a, b, c, d = times[start], times[start + 1], times[start + 2], times[start + 3]
    left, right = min(a, b), min(c, d)
    if a == b or c == d or left == right:
        return first_of(state, start, start + CHILDREN)
    in_left = start + int(b < a)
    in_right = start + 2 + int(d < c)
    return in_left + (in_right - in_left) * int(right < left)


@jit
def put(state: State, cell: int, time: float, kind: int, who: int) -> None:
    events = state.events
    events["time"][cell], events["kind"][cell], events["who"][cell] = time, kind, who


@jit
def move(state: State, source: int, target: int) -> None:
    events = state.events
    put(state, target, events["time"][source], events["kind"][source], events["who"][source])


@jit
def push(state: State, time: float, kind: int, who: int) -> None:
    """Add an event; the heap is sized for all that can be pending at once."""
    cell = state.control["heap_size"][0]
    if cell >= len(state.events):
        raise IndexError("event heap overflow")
    state.control["heap_size"][0] = cell + 1
    while cell > 0:
        parent = (cell - 1) // CHILDREN
        if is_before(state, parent, time, kind, who):
            break
        move(state, parent, cell)
        cell = parent
    put(state, cell, time, kind, who)


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
    """Remove the earliest event (cell 0): the last one takes the place that is left below it."""
    events = state.events
    size = state.control["heap_size"][0] - 1
    state.control["heap_size"][0] = size
    time, kind, who = events["time"][size], events["kind"][size], events["who"][size]
    cell = 0
    while True:
        child = CHILDREN * cell + 1
        if child >= size:
            break
        if child + CHILDREN <= size:
            child = first_of_four(state, child)
        else:
            child = first_of(state, child, size)
        if not is_before(state, child, time, kind, who):
            break
        move(state, child, cell)
        cell = child
    put(state, cell, time, kind, who)
