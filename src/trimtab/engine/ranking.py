"""The least loaded of many replicas without looking at each: a tree of minima over their loads.

Cell 1 is the root, cell n has the children 2n and 2n + 1, and the leaves of the R replicas start in the
middle of the table; those beyond R are infinite. The tree grows when it is first asked, and from then on
is kept by all that changes a load where nothing is watched (no faults, timeouts, scaling, handovers):
``place`` and ``finish``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.jit import jit
from trimtab.engine.state import State

Table = NDArray[Any]  # (rows,) REPLICA


@jit
def speed_of(state: State, table: Table, row: int) -> float:
    if state.control["speed_aware"][0]:
        return table["speed"][row]
    return 1.0


@jit
def load_of(state: State, table: Table, row: int) -> float:
    """Requests per speed, once another has come."""
    return (table["outstanding"][row] + 1.0) / speed_of(state, table, row)


@jit
def rank_all(state: State) -> None:
    """Grow the tree."""
    ranks = state.ranks
    leaves = len(ranks) // 2
    for replica in range(len(state.replicas)):
        ranks[leaves + replica] = load_of(state, state.replicas, replica)
    for cell in range(leaves - 1, 0, -1):
        ranks[cell] = min(ranks[2 * cell], ranks[2 * cell + 1])
    state.control["ranked"][0] = 1


@jit
def rank(state: State, replica: int) -> None:
    """A replica's load has changed."""
    ranks = state.ranks
    cell = len(ranks) // 2 + replica
    ranks[cell] = load_of(state, state.replicas, replica)
    while cell > 1:
        cell //= 2
        least = min(ranks[2 * cell], ranks[2 * cell + 1])
        if ranks[cell] == least:
            return
        ranks[cell] = least


@jit
def least_load(state: State, first: int, last: int) -> float:
    """The least load of replicas ``first`` to before ``last``."""
    ranks = state.ranks
    if last - first == len(state.replicas):
        return ranks[1]
    least = np.inf
    low, high = len(ranks) // 2 + first, len(ranks) // 2 + last
    while low < high:
        if low % 2:
            least = min(least, ranks[low])
            low += 1
        if high % 2:
            high -= 1
            least = min(least, ranks[high])
        low //= 2
        high //= 2
    return least


@jit
def first_at_most(state: State, start: int, load: float) -> int:
    """The first replica from ``start`` on with no more than this load; beyond all replicas if none has."""
    ranks = state.ranks
    leaves = len(ranks) // 2
    cell = leaves + start
    while ranks[cell] > load:
        while cell % 2:  # all to the right of its parent is right of the grandparent's, and so on
            cell //= 2
        if cell == 0:
            return leaves
        cell += 1
    while cell < leaves:
        cell *= 2
        if ranks[cell] > load:
            cell += 1
    return cell - leaves


@jit
def least_loaded(state: State, first: int, last: int, start: int) -> int:
    """The replica that a scan from ``start`` to before ``last``, then from ``first``, meets first among
    those with the least load."""
    if not state.control["ranked"][0]:
        rank_all(state)
    load = least_load(state, first, last)
    found = first_at_most(state, start, load)
    return found if found < last else first_at_most(state, first, load)
