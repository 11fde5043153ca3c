"""Number partitioning by largest differencing: parts of nearly equal sums (Karmarkar and Karp 1982).

Every number begins as a solution of its own. The two solutions whose parts differ most are merged, the
largest part of one with the smallest of the other, until one is left. Only parts that hold something are
kept, so that the first solution of each round grows by appending, and a part is a chain of numbers that
is joined to another in O(1); the published implementations sort all parts and copy them at each merge.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError

Part = tuple[float, int]  # (minus its sum, the number that its chain begins with)
Solution = list[Part]  # parts that hold something, the largest sum first


class Chains:
    """Numbers of each part, linked: joining two parts is one assignment."""

    def __init__(self, count: int) -> None:
        self.following = [-1] * count
        self.last = list(range(count))  # of the chain that begins here

    def join(self, one: Part, other: Part) -> Part:
        self.following[self.last[one[1]]] = other[1]
        self.last[one[1]] = self.last[other[1]]
        return (one[0] + other[0], one[1])

    def numbers(self, part: Part) -> list[int]:
        found, at = [], part[1]
        while at >= 0:
            found.append(at)
            at = self.following[at]
        return sorted(found)


def karmarkar_karp(costs: Any, parts: int, equal_size: bool = False) -> list[list[int]]:
    """Indices of each part, so that the sums of their costs are nearly equal.

    Parameters
    ----------
    costs : (items,) at least 0
    equal_size : every part gets as many items; ``parts`` must divide their number

    Raises
    ------
    TrimtabError
        for fewer items than parts, or items that cannot be dealt in equal numbers.
    """
    values = np.asarray(costs)
    items = len(values)
    if not 1 <= parts <= items:
        raise TrimtabError(f"{items} items cannot fill {parts} parts; allowed: 1 to {items}")
    if equal_size and items % parts:
        raise TrimtabError(f"{items} items cannot be dealt to {parts} parts in equal numbers")
    order = np.argsort(-values, kind="stable")
    chains = Chains(items)
    singles: Solution = list(zip((-values[order]).tolist(), order.tolist(), strict=True))
    if equal_size:
        solutions = [singles[start : start + parts] for start in range(0, items, parts)]
    else:
        solutions = [[single] for single in singles]
    final = _merged(solutions, parts, chains)
    found = [chains.numbers(part) for part in final]
    # All costs zero can leave a part empty; nobody wants that.
    for empty in range(len(found), parts):
        donor = max(range(empty), key=lambda part: len(found[part]))
        found.append([found[donor].pop()])
    return found


def _merged(solutions: Sequence[Solution], parts: int, chains: Chains) -> Solution:
    """The two of largest spread become one, until one is left; of equals the one that came first."""
    # Sorted by spread where all are single numbers, which makes it a heap already.
    heap = [(_spread(solution, parts), number, solution) for number, solution in enumerate(solutions)]
    heapq.heapify(heap)
    number = len(heap)
    while len(heap) > 1:
        solution = heapq.heappop(heap)[2]
        other = heap[0][2]
        if len(other) == 1:
            _add(solution, other[0], parts, chains)
        else:
            solution = _sum(solution, other, parts, chains)
        heapq.heapreplace(heap, (_spread(solution, parts), number, solution))
        number += 1
    return heap[0][2]


def _spread(solution: Solution, parts: int) -> float:
    """Minus the difference between the largest and the smallest part, for a heap."""
    return solution[0][0] - (solution[-1][0] if len(solution) == parts else 0)


def _add(solution: Solution, single: Part, parts: int, chains: Chains) -> None:
    """A single number goes into the smallest part."""
    if len(solution) == parts:
        single = chains.join(solution.pop(), single)
    insort(solution, single)


def _sum(one: Solution, other: Solution, parts: int, chains: Chains) -> Solution:
    """The largest part of one with the smallest of the other, empty ones included."""
    alone, far = parts - len(other), parts - len(one)
    both = [chains.join(mine, theirs) for mine, theirs in zip(one[alone:], other[far:][::-1], strict=True)]
    return sorted(one[:alone] + both + other[:far])
