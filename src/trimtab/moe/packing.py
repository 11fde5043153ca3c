"""Greedy steps of expert placement: how many replicas, which group on which node, which replica where.

`published` is the rule of DeepSeek's EPLB (github.com/deepseek-ai/EPLB), written from its description:
groups are packed on nodes, the expert with the largest load per replica gets the next replica, replicas
are packed on devices from the largest to the smallest. Every function works on many rows at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def replicas_of(loads: Floats, total: int, offset: float = 0.0) -> Ints:
    """Replicas added one by one where load / (replicas + offset) is largest, the first of equals.

    Parameters
    ----------
    loads : (rows, experts)
    total : replicas in all, at least one per expert
    offset : above -1; 0 is EPLB's rule, below it small experts are replicated earlier

    Returns
    -------
    (rows, total) the expert of each replica: one of each in order, then the further ones as added.
    """
    rows, experts = loads.shape
    counts = np.ones((rows, experts))
    chosen = np.empty((rows, total), dtype=np.int64)
    chosen[:, :experts] = np.arange(experts)
    every = np.arange(rows)
    for replica in range(experts, total):
        largest = np.argmax(loads / (counts + offset), axis=1)
        chosen[:, replica] = largest
        counts[every, largest] += 1
    return chosen


def packed(loads: Floats, bins: int) -> Ints:
    """From the largest down, each item into the lightest bin that is not full, the first of equals.

    Parameters
    ----------
    loads : (rows, items); bins must divide items, and every bin gets as many.

    Returns
    -------
    (rows, bins, items / bins) the items of each bin, in the order in which they came.
    """
    rows, items = loads.shape
    size = items // bins
    if size == 1:  # as published: nothing to choose, so nothing is moved
        return np.broadcast_to(np.arange(items)[:, None], (rows, items, 1)).copy()
    order = np.argsort(-loads, axis=1, kind="stable")
    sorted_loads = np.take_along_axis(loads, order, axis=1)
    content = np.empty((rows, bins, size), dtype=np.int64)
    weight, filled = np.zeros((rows, bins)), np.zeros((rows, bins), dtype=np.int64)
    every = np.arange(rows)
    for item in range(items):
        lightest = np.argmin(np.where(filled < size, weight, np.inf), axis=1)
        content[every, lightest, filled[every, lightest]] = order[:, item]
        weight[every, lightest] += sorted_loads[:, item]
        filled[every, lightest] += 1
    return content


def replicated_and_packed(loads: Floats, devices: int, slots: int, offset: float = 0.0) -> Ints:
    """Experts (rows, devices, slots) of loads (rows, experts): replicas by divisor, then packed."""
    chosen = replicas_of(loads, devices * slots, offset)
    counts = count_replicas(chosen, loads.shape[1])
    shares = np.take_along_axis(loads / counts, chosen, axis=1)
    where = packed(shares, devices).reshape(len(loads), -1)
    return np.take_along_axis(chosen, where, axis=1).reshape(-1, devices, slots)


def count_replicas(chosen: Ints, experts: int) -> Ints:
    """How often each expert occurs in each row: (rows, ...) -> (rows, experts)."""
    rows = len(chosen)
    flat = chosen.reshape(rows, -1) + experts * np.arange(rows)[:, None]
    return np.asarray(np.bincount(flat.ravel(), minlength=rows * experts).reshape(rows, experts))


def experts_of_nodes(loads: Floats, groups: int, nodes: int) -> Ints:
    """Experts of each node, (rows, nodes, experts / nodes), when whole groups of neighbours are packed."""
    rows, experts = loads.shape
    size = experts // groups
    return members(packed(loads.reshape(rows, groups, size).sum(axis=2), nodes), size)


def members(groups: Ints, size: int) -> Ints:
    """The experts of groups of ``size`` neighbours: (rows, nodes, groups) -> (rows, nodes, experts)."""
    return (groups[..., None] * size + np.arange(size)).reshape(*groups.shape[:2], -1)


def published(loads: Any, devices: int, slots: int, groups: int = 1, nodes: int = 1) -> Ints:
    """EPLB's placement (rows, devices, slots) of loads (rows, experts); groups must be divisible by nodes."""
    loads = np.asarray(loads, dtype=np.float64)
    mine = experts_of_nodes(loads, groups, nodes)
    inside = np.take_along_axis(loads[:, None], mine, axis=2).reshape(-1, mine.shape[2])
    local = replicated_and_packed(inside, devices // nodes, slots)
    return to_experts(local, mine)


def to_experts(local: Ints, mine: Ints) -> Ints:
    """Placements (rows * nodes, devices of a node, slots) in the numbers of a node's experts, as a whole."""
    rows, nodes, held = mine.shape
    slots = local.shape[-1]
    found = np.take_along_axis(mine.reshape(rows * nodes, held), local.reshape(rows * nodes, -1), axis=1)
    return found.reshape(rows, -1, slots)
