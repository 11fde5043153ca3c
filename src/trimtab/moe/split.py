"""How the tokens of an expert are shared by its replicas.

even      load / replicas each, as EPLB assumes and serving engines do by default.
balanced  the optimum of LPLB's linear programme (the split with the least largest device load): each
          replicated expert in turn pours its load on its devices like water, lowest first, until a set
          of devices that cannot pass on anything proves that no split is better.
fewest    all to one replica, so that devices have few and evenly many active experts: what METRO
          (arXiv 2512.09277) finds best where reading weights takes the time.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from trimtab.errors import unknown
from trimtab.moe.packing import Floats, Ints, count_replicas

Split = Literal["even", "balanced", "fewest"]
ROUNDS, PROVEN = 1000, 1e-6  # turns of all experts at most; relative distance to the proven optimum


def shares(slots: Ints, experts: int, loads: Floats, split: Split = "even") -> Floats:
    """Load of each slot, (..., layers, devices, slots).

    Parameters
    ----------
    slots : (layers, devices, slots) expert in each slot
    loads : (..., layers, experts)
    """
    if split not in get_args(Split):
        raise unknown("split", split, get_args(Split))
    counts = count_replicas(slots, experts)
    index = np.broadcast_to(slots.reshape(len(slots), -1), (*loads.shape[:-1], slots[0].size))
    even = np.take_along_axis(loads / counts, index, axis=-1).reshape(*loads.shape[:-1], *slots.shape[1:])
    if split == "even" or counts.max() == 1:
        return even
    rule = _poured if split == "balanced" else _single
    rows = even.reshape(-1, *slots.shape)
    return np.stack([rule(slots[i], row[i]) for row in rows for i in range(len(slots))]).reshape(even.shape)


def _poured(slots: Ints, even: Floats) -> Floats:
    """One layer's slot loads (devices, slots), with the least largest device load that there is."""
    holders, totals = _holders(slots, even)
    several = [expert for expert, where in holders.items() if len(where) > 1]
    poured = {expert: np.full(len(where), totals[expert] / len(where)) for expert, where in holders.items()}
    device = np.zeros(len(slots))
    for expert, where in holders.items():
        device[where] += poured[expert]
    for _ in range(ROUNDS):
        if device.max() <= _confined(device, holders, totals) * (1 + PROVEN):
            break
        for expert in several:
            rest = device[holders[expert]] - poured[expert]
            poured[expert] = waterfill(rest, totals[expert])
            device[holders[expert]] = rest + poured[expert]
    load = np.zeros_like(even)
    for expert, where in holders.items():
        load[where, np.argmax(slots[where] == expert, axis=1)] = poured[expert]
    return load


def _holders(slots: Ints, even: Floats) -> tuple[dict[int, Ints], dict[int, float]]:
    """The devices that hold each expert, once each, and its load. A layer's slots (devices, slots)."""
    holders: dict[int, list[int]] = {}
    totals: dict[int, float] = {}
    for device, row in enumerate(slots.tolist()):
        for slot, expert in enumerate(row):
            where = holders.setdefault(expert, [])
            if not where or where[-1] != device:
                where.append(device)
            totals[expert] = totals.get(expert, 0.0) + float(even[device, slot])
    return {expert: np.array(where, dtype=np.int64) for expert, where in holders.items()}, totals


def _confined(device: Floats, holders: dict[int, Ints], totals: dict[int, float]) -> float:
    """A lower bound on the largest load: of the fullest n devices, what no other could take, over n."""
    rank = np.empty(len(device), dtype=np.int64)
    rank[np.argsort(-device, kind="stable")] = np.arange(len(device))
    inside = np.zeros(len(device))
    for expert, where in holders.items():
        inside[rank[where].max()] += totals[expert]
    return float((np.cumsum(inside) / np.arange(1, len(device) + 1)).max())


def _single(slots: Ints, even: Floats) -> Floats:
    """One layer's slot loads when each expert uses one replica: on its device with fewest active experts.

    Experts without a choice first, then from the largest; of equal devices the one of less load.
    """
    holders, totals = _holders(slots, even)
    active, device, load = np.zeros(len(slots)), np.zeros(len(slots)), np.zeros_like(even)
    for expert in sorted(holders, key=lambda each: (len(holders[each]) > 1, -totals[each], each)):
        where = holders[expert]
        chosen = int(where[np.lexsort((device[where], active[where]))[0]])
        active[chosen] += totals[expert] > 0
        device[chosen] += totals[expert]
        load[chosen, np.argmax(slots[chosen] == expert)] = totals[expert]
    return load


def waterfill(levels: Floats, amount: float) -> Floats:
    """``amount`` poured on vessels that stand at ``levels``: what each gets so that the lowest are level.

    >>> waterfill(np.array([1.0, 4.0, 2.0]), 3.0)
    array([2., 0., 1.])
    """
    ordered = np.sort(levels)
    surface = (amount + np.cumsum(ordered)) / np.arange(1, len(levels) + 1)
    wet = int(np.flatnonzero(surface >= ordered)[-1])
    return np.asarray(np.maximum(surface[wet] - levels, 0.0))
