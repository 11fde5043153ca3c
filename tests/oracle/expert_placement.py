"""Expert placement in plain Python: EPLB's rule one step at a time, and optima by integer programming."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

Row = Sequence[float]


def pack(loads: Row, bins: int) -> list[list[int]]:
    """Items of each bin: from the largest, into the lightest bin with room; one each stays as it is."""
    size = len(loads) // bins
    if size == 1:
        return [[item] for item in range(bins)]
    content: list[list[int]] = [[] for _ in range(bins)]
    for item in sorted(range(len(loads)), key=lambda each: -loads[each]):
        open_bins = [b for b in range(bins) if len(content[b]) < size]
        content[min(open_bins, key=lambda b: sum(loads[i] for i in content[b]))].append(item)
    return content


def replicate(loads: Row, total: int) -> list[int]:
    """The expert of each replica: all once, then always the one with the largest load per replica."""
    chosen = list(range(len(loads)))
    while len(chosen) < total:
        per_replica = [load / chosen.count(expert) for expert, load in enumerate(loads)]
        chosen.append(per_replica.index(max(per_replica)))
    return chosen


def eplb(loads: Row, devices: int, slots: int, groups: int = 1, nodes: int = 1) -> list[list[int]]:
    """Experts of each device under the hierarchical rule; one group on one node is the global rule."""
    size = len(loads) // groups
    group_loads = [sum(loads[group * size : (group + 1) * size]) for group in range(groups)]
    placed = []
    for held in pack(group_loads, nodes):
        experts = [group * size + i for group in held for i in range(size)]
        own = [loads[expert] for expert in experts]
        chosen = replicate(own, devices // nodes * slots)
        share = [own[local] / chosen.count(local) for local in chosen]
        placed += [[experts[chosen[i]] for i in content] for content in pack(share, devices // nodes)]
    return placed


def peak(loads: Row, placed: Sequence[Sequence[int]]) -> float:
    """Largest device load when replicas share evenly."""
    flat = [expert for device in placed for expert in device]
    return max(sum(loads[expert] / flat.count(expert) for expert in device) for device in placed)


def optimum(windows: Sequence[Row], devices: int, slots: int, worst: bool = False) -> float:
    """The least mean (or worst) over windows of the largest device load, replicas sharing evenly: an MILP.

    Unknowns: y[e, c] expert e has c replicas; x[e, c, d] of them on device d; t[w] peak of window w, and
    the worst of them. Devices are alike; nothing breaks that symmetry, so small cases only.
    """
    loads = np.asarray(windows, dtype=float)
    num_windows, experts = loads.shape
    most = devices * slots - experts + 1
    pairs = [(e, c) for e in range(experts) for c in range(1, most + 1)]
    num_y, num_x = len(pairs), len(pairs) * devices
    size = num_y + num_x + num_windows + 1
    rows, low, high = [], [], []

    def add(entries: dict[int, float], least: float, largest: float) -> None:
        row = np.zeros(size)
        for index, value in entries.items():
            row[index] = value
        rows.append(row)
        low.append(least)
        high.append(largest)

    for e in range(experts):
        add({k: 1.0 for k, pair in enumerate(pairs) if pair[0] == e}, 1, 1)
    for k, (_, c) in enumerate(pairs):
        add({k: -c, **{num_y + k * devices + d: 1.0 for d in range(devices)}}, 0, 0)
    for d in range(devices):
        column = {num_y + k * devices + d: 1.0 for k in range(num_y)}
        add(column, slots, slots)
        for w in range(num_windows):
            load = {num_y + k * devices + d: loads[w, e] / c for k, (e, c) in enumerate(pairs)}
            add({**load, num_y + num_x + w: -1.0}, -np.inf, 0)
    for w in range(num_windows):
        add({num_y + num_x + w: 1.0, size - 1: -1.0}, -np.inf, 0)
    cost = np.zeros(size)
    if worst:
        cost[-1] = 1.0
    else:
        cost[num_y + num_x : -1] = 1.0 / num_windows
    integral = np.concatenate([np.ones(num_y + num_x), np.zeros(num_windows + 1)])
    upper = np.concatenate([np.ones(num_y), np.full(num_x, slots), np.full(num_windows + 1, np.inf)])
    constraints = LinearConstraint(np.array(rows), low, high)
    solved = milp(cost, integrality=integral, bounds=Bounds(0, upper), constraints=constraints)
    assert solved.success, solved.message
    return float(solved.fun)


def balanced_peak(loads: Row, placed: Sequence[Sequence[int]]) -> float:
    """The least largest device load over all ways to split experts over their replicas: LPLB's programme."""
    pairs = sorted({(expert, d) for d, device in enumerate(placed) for expert in device})
    equal = np.zeros((len(loads), len(pairs) + 1))
    below = np.zeros((len(placed), len(pairs) + 1))
    for column, (expert, device) in enumerate(pairs):
        equal[expert, column] = below[device, column] = 1.0
    below[:, -1] = -1.0
    cost = np.append(np.zeros(len(pairs)), 1.0)
    solved = linprog(cost, A_ub=below, b_ub=np.zeros(len(placed)), A_eq=equal, b_eq=list(loads))
    assert solved.success, solved.message
    return float(solved.fun)
