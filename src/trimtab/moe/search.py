"""The search for one placement: starts by several rules of replication, each improved, the best kept.

Small layers are also shaken and improved again, until they reach a lower bound or have had their turns.
That mostly finds the optimum, but does not prove it (tests/moe/test_placement.py does, for some layers).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trimtab.moe.local_search import Board, improve
from trimtab.moe.packing import Floats, Ints, replicated_and_packed

OFFSETS = (0.0, -0.25, -0.5, -0.75)  # of the divisors by which replicas are given: starts of the search
CLOSE = 1e-3  # so near its lower bound a large layer is not searched further
SMALL, KICKS = 64, 40  # layers with so few slots are shaken and searched again so many times


def search(
    loads: Floats, devices: int, slots: int, worst: bool, tick: Callable[[int], None] = lambda done: None
) -> Ints:
    """Placements (rows, devices, slots) of rows that do not depend on each other: loads (W, rows, E).

    Experts are taken by load, so that their numbers cannot matter.
    """
    mean = loads.mean(axis=0)
    order = np.argsort(-mean, axis=1, kind="stable")
    loads, mean = (
        np.take_along_axis(each, np.broadcast_to(order, each.shape), axis=-1) for each in (loads, mean)
    )
    starts = np.stack([replicated_and_packed(mean, devices, slots, offset) for offset in OFFSETS])
    if slots * devices == mean.shape[1]:
        starts = starts[:1]  # nothing to replicate, so they are all the same
    found = []
    for row in range(len(mean)):
        generator = np.random.Generator(np.random.PCG64(0))  # alike, whichever rows are its neighbours
        found.append(_search_row(loads[:, row], starts[:, row], worst, generator))
        tick(row + 1)
    return np.take_along_axis(order, np.stack(found).reshape(len(mean), -1), axis=1).reshape(
        -1, devices, slots
    )


def _search_row(loads: Floats, starts: Ints, worst: bool, generator: np.random.Generator) -> Ints:
    """The best placement of one row: every start if it is small, otherwise the best two."""
    devices, slots = starts.shape[1:]
    small = devices * slots <= SMALL
    boards = [Board(loads, start.copy(), worst) for start in starts]
    boards.sort(key=lambda board: board.cost)
    bound = lower_bound(loads, devices, slots, worst)
    best = boards[0]
    for board in boards if small else boards[:2]:
        if best.cost <= bound * (1 + CLOSE) and not small:
            break
        best = min(best, improve(board), key=lambda each: each.cost)
    for _ in range(KICKS if small else 0):
        if best.cost <= bound * (1 + 1e-9):
            break
        board = Board(loads, best.slots.copy(), worst)
        _kick(board, generator)
        best = min(best, improve(board), key=lambda each: each.cost)
    return best.slots


def _kick(board: Board, generator: np.random.Generator) -> None:
    """Give a random spare slot to a random expert, and swap two random pairs."""
    devices, slots = board.slots.shape
    spare = np.argwhere(board.counts[board.slots] > 1)
    if len(spare):
        device, slot = spare[generator.integers(len(spare))]
        board.put([(int(device), int(slot), int(generator.integers(board.loads.shape[1])))])
    for _ in range(2):
        (a, b), (i, j) = generator.integers(devices, size=2), generator.integers(slots, size=2)
        mine, theirs = int(board.slots[a, i]), int(board.slots[b, j])
        board.put([(int(a), int(i), theirs), (int(b), int(j), mine)])


def lower_bound(loads: Floats, devices: int, slots: int, worst: bool) -> float:
    """No placement of loads (windows, experts) costs less: the mean, or the largest share that must be."""
    peaks = np.maximum(loads.sum(axis=1) / devices, _least_largest_share(loads, devices * slots))
    return float(peaks.max() if worst else peaks.mean())


def _least_largest_share(loads: Floats, total: int) -> Floats:
    """(windows,) the largest share when replicas are given so that it is least: by the greedy rule."""
    counts = np.ones_like(loads)
    every = np.arange(len(loads))
    for _ in range(total - loads.shape[1]):
        counts[every, np.argmax(loads / counts, axis=1)] += 1
    return np.asarray((loads / counts).max(axis=1))
