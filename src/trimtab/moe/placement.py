"""Where experts go: replicas placed on devices so that the busiest device has as little as possible.

The rule of DeepSeek's EPLB is the first start, other numbers of replicas are further ones, and a local
search improves them; the best is taken, so that no layer is worse than under EPLB's rule.
docs/background/expert-placement.md says what that is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trimtab.errors import TrimtabError, unknown
from trimtab.moe.local_search import Board, hosts_of, improve
from trimtab.moe.packing import (
    Floats,
    Ints,
    count_replicas,
    experts_of_nodes,
    members,
    published,
    to_experts,
)
from trimtab.moe.search import search
from trimtab.moe.split import Split, shares

Objective = Literal["mean", "worst"]


@dataclass(frozen=True, eq=False)
class Placement:
    """``slots`` (layers, devices, slots of a device): the expert in each slot; ``experts`` in all."""

    slots: Ints
    experts: int

    @property
    def devices(self) -> int:
        return int(self.slots.shape[1])

    @property
    def phy2log(self) -> Ints:
        """(layers, physical experts) the logical expert of each slot, device by device."""
        return self.slots.reshape(len(self.slots), -1)

    @property
    def logcnt(self) -> Ints:
        """(layers, experts) replicas of each."""
        return count_replicas(self.slots, self.experts)

    @property
    def log2phy(self) -> Ints:
        """(layers, experts, most replicas) the slots of each expert, ascending, then -1."""
        flat, counts = self.phy2log, self.logcnt
        order = np.argsort(flat, axis=1, kind="stable")
        first = np.cumsum(counts, axis=1) - counts
        found = np.full((*counts.shape, int(counts.max())), -1, dtype=np.int64)
        expert = np.take_along_axis(flat, order, axis=1)
        rank = np.arange(flat.shape[1]) - np.take_along_axis(first, expert, axis=1)
        found[np.arange(len(flat))[:, None], expert, rank] = order
        return found

    def slot_loads(self, loads: Any, split: Split = "even") -> Floats:
        """Load of each slot: loads (..., layers, experts) -> (..., layers, devices, slots)."""
        loads = check_loads(loads, self.experts, len(self.slots))
        return shares(self.slots, self.experts, loads, split)

    def device_loads(self, loads: Any, split: Split = "even") -> Floats:
        """Load of each device: loads (..., layers, experts) -> (..., layers, devices)."""
        return np.asarray(self.slot_loads(loads, split).sum(axis=-1))

    def max_over_mean(self, loads: Any, split: Split = "even") -> Floats:
        """Busiest over mean device, (..., layers): 1 / balancedness."""
        found = self.device_loads(loads, split)
        return np.asarray(found.max(axis=-1) / found.mean(axis=-1))

    def moved_from(self, other: Placement) -> Ints:
        """(layers,) replicas on devices that had fewer of that expert in ``other``: what must be copied."""
        if other.slots.shape != self.slots.shape or other.experts != self.experts:
            raise TrimtabError(f"{_words(other)} cannot become {_words(self)}: they differ in shape")
        pairs = zip(self.slots, other.slots, strict=True)
        return np.array(
            [
                np.maximum(hosts_of(new, self.experts) - hosts_of(old, self.experts), 0).sum()
                for new, old in pairs
            ],
            dtype=np.int64,
        )

    def to_json(self) -> dict[str, Any]:
        """EPLB's three maps, as lists, and the number of devices."""
        maps = {name: getattr(self, name).tolist() for name in ("phy2log", "log2phy", "logcnt")}
        return {"num_devices": self.devices, **maps}

    @classmethod
    def from_phy2log(cls, phy2log: Any, devices: int, experts: int | None = None) -> Placement:
        """A placement from EPLB's physical-to-logical map (layers, physical experts)."""
        try:
            flat = np.asarray(phy2log)
        except ValueError:
            raise TrimtabError("phy2log has rows of different length") from None
        if flat.ndim != 2 or flat.dtype.kind not in "iu" or not flat.size:
            raise TrimtabError(
                f"phy2log must be whole numbers (layers, physical experts); given {flat.shape}"
            )
        if devices < 1 or flat.shape[1] % devices:
            raise TrimtabError(
                f"{flat.shape[1]} physical experts cannot be shared evenly by {devices} devices"
            )
        experts = int(flat.max()) + 1 if experts is None else experts
        if flat.min() < 0 or flat.max() >= experts:
            raise TrimtabError(f"phy2log holds {flat.min()} to {flat.max()}; experts are 0 to {experts - 1}")
        found = cls(flat.astype(np.int64).reshape(len(flat), devices, -1), experts)
        missing = np.argwhere(found.logcnt == 0)
        if len(missing):
            layer, expert = missing[0]
            raise TrimtabError(f"phy2log: expert {expert} has no slot in layer {layer}")
        return found


def place(
    loads: Any,
    devices: int,
    redundant: int = 0,
    *,
    nodes: int = 1,
    groups: int | None = None,
    objective: Objective = "mean",
    progress: Callable[[int, int], None] | None = None,
) -> Placement:
    """Replicas and devices for every layer, so that the busiest device has as little as possible.

    Parameters
    ----------
    loads : (layers, experts) or (windows, layers, experts)
        tokens, or any other unit. Each window of a layer counts alike, however much it holds.
    devices, redundant
        experts + redundant slots, shared evenly by the devices.
    nodes, groups
        whole groups of neighbouring experts stay on one node, replicas included (EPLB's hierarchical
        policy); groups are as many as nodes unless given.
    objective
        over windows: the mean of their busiest device's load over the mean, or the worst.
    progress
        called with (searches done, of how many); one per layer, or two per layer and node.

    Raises
    ------
    TrimtabError
        on loads or numbers that cannot be; see the message.
    """
    windows, slots = _windows(loads), _slots(loads, devices, redundant)
    groups = _check_groups(windows.shape[-1], devices, nodes, groups)
    _check_objective(objective)
    even = windows * (devices / windows.sum(axis=-1, keepdims=True))  # mean device load 1
    total = windows.sum(axis=0)
    worst = objective == "worst"
    found = [published(total, devices, slots, groups, nodes)]
    held = [experts_of_nodes(total, groups, nodes)]
    if nodes > 1:
        by_group = even.reshape(*even.shape[:2], groups, -1).sum(axis=-1)
        held.append(members(search(by_group, nodes, groups // nodes, worst), windows.shape[-1] // groups))
    report = progress or (lambda done, of: None)
    for turn, mine in enumerate(held):
        inside = np.take_along_axis(even[:, :, None], mine[None], axis=-1)
        inside = inside.reshape(len(windows), -1, mine.shape[-1])
        rows = inside.shape[1]
        tick = _shifted(report, turn * rows, len(held) * rows)
        found.append(to_experts(search(inside, devices // nodes, slots, worst, tick), mine))
    layers = range(windows.shape[1])
    kept = [min((each[i] for each in found), key=_cost_on(even[:, i], worst)) for i in layers]
    return Placement(np.stack(kept), windows.shape[-1])


def _cost_on(loads: Floats, worst: bool) -> Callable[[Ints], float]:
    """What a layer's placement (devices, slots) costs on loads (windows, experts)."""
    return lambda slots: Board(loads, slots, worst).cost


def _shifted(report: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    return lambda done: report(before + done, total)


def rebalance(
    current: Placement, loads: Any, moves: int, *, nodes: int = 1, objective: Objective = "mean"
) -> Placement:
    """``current``, improved by at most ``moves`` replicas per layer on devices that did not have them.

    Steps are taken by gain per replica moved. With ``nodes``, an expert stays on the nodes that have it.
    """
    windows = check_loads(_windows(loads), current.experts, len(current.slots))
    if moves < 0:
        raise TrimtabError(f"moves must be 0 or more; given {moves}")
    _check_nodes(current.devices, nodes)
    _check_objective(objective)
    even = windows * (current.devices / windows.sum(axis=-1, keepdims=True))
    found = []
    for layer, slots in enumerate(current.slots):
        home = hosts_of(slots, current.experts)
        by_node = home.reshape(nodes, -1, current.experts).any(axis=1)
        allowed = np.repeat(by_node, current.devices // nodes, axis=0) if nodes > 1 else None
        board = Board(even[:, layer], slots.copy(), objective == "worst", home, moves, allowed)
        found.append(improve(board).slots)
    return Placement(np.stack(found), current.experts)


def published_placement(
    loads: Any, devices: int, redundant: int = 0, *, nodes: int = 1, groups: int | None = None
) -> Placement:
    """What EPLB's published rule gives; it sees the sum of the windows. Arguments as `place`."""
    windows, slots = _windows(loads), _slots(loads, devices, redundant)
    groups = _check_groups(windows.shape[-1], devices, nodes, groups)
    return Placement(published(windows.sum(axis=0), devices, slots, groups, nodes), windows.shape[-1])


def even_placement(layers: int, experts: int, devices: int, redundant: int = 0) -> Placement:
    """Experts in order, the first ``redundant`` of them twice: where vLLM starts from."""
    slots = _check_slots(experts, devices, redundant)
    row = np.arange(devices * slots, dtype=np.int64) % experts
    return Placement(np.broadcast_to(row, (layers, len(row))).reshape(layers, devices, slots).copy(), experts)


def check_loads(loads: Any, experts: int | None = None, layers: int | None = None) -> Floats:
    """Loads (..., layers, experts) as float64, or one line saying what is wrong with them."""
    try:
        found = np.asarray(loads, dtype=np.float64)
    except (TypeError, ValueError):
        raise TrimtabError("loads must be numbers in rows of equal length, (layers, experts)") from None
    if found.ndim < 2 or not found.size:
        raise TrimtabError(f"loads need the shape (layers, experts) or (windows, ...); given {found.shape}")
    wanted = (layers or found.shape[-2], experts or found.shape[-1])
    if found.shape[-2:] != wanted:
        raise TrimtabError(f"loads are of {found.shape[-2:]} (layers, experts), the placement of {wanted}")
    if not np.isfinite(found).all():
        raise TrimtabError(f"loads hold {'NaN' if np.isnan(found).any() else 'infinity'}")
    if found.min() < 0:
        raise TrimtabError(f"loads must not be negative; the least is {found.min():g}")
    empty = np.argwhere(found.sum(axis=-1) == 0)
    if len(empty):
        where = f"layer {empty[0][-1]}" + (f" of window {empty[0][0]}" if found.ndim > 2 else "")
        raise TrimtabError(f"loads are all zero in {where}")
    return found


def _windows(loads: Any) -> Floats:
    """(windows, layers, experts)"""
    found = check_loads(loads)
    if found.ndim > 3:
        raise TrimtabError(f"loads need (layers, experts) or (windows, layers, experts); given {found.shape}")
    return found if found.ndim == 3 else found[None]


def _check_objective(objective: str) -> None:
    if objective not in ("mean", "worst"):
        raise unknown("objective", objective, ("mean", "worst"))


def _slots(loads: Any, devices: int, redundant: int) -> int:
    return _check_slots(np.shape(loads)[-1], devices, redundant)


def _check_slots(experts: int, devices: int, redundant: int) -> int:
    """Slots of one device."""
    if devices < 1:
        raise TrimtabError(f"devices must be 1 or more; given {devices}")
    total = experts + redundant
    if redundant < 0:
        raise TrimtabError(f"{total} slots are fewer than {experts} experts; redundant must be 0 or more")
    if total % devices:
        more = -total % devices
        raise TrimtabError(
            f"{experts} + {redundant} redundant experts cannot be shared evenly by {devices} devices; "
            f"the next number of redundant experts that can is {redundant + more}"
        )
    return total // devices


def _check_groups(experts: int, devices: int, nodes: int, groups: int | None) -> int:
    groups = nodes if groups is None else groups
    for name, number in (("nodes", nodes), ("groups", groups)):
        if number < 1:
            raise TrimtabError(f"{name} must be 1 or more; given {number}")
    _check_nodes(devices, nodes)
    if groups % nodes:
        raise TrimtabError(f"{groups} groups cannot be shared evenly by {nodes} nodes")
    if experts % groups:
        raise TrimtabError(f"{experts} experts cannot be shared evenly by {groups} groups")
    return groups


def _check_nodes(devices: int, nodes: int) -> None:
    if nodes < 1:
        raise TrimtabError(f"nodes must be 1 or more; given {nodes}")
    if devices % nodes:
        raise TrimtabError(f"{devices} devices cannot be shared evenly by {nodes} nodes")


def _words(placement: Placement) -> str:
    layers, devices, slots = placement.slots.shape
    return f"{layers} layers of {placement.experts} experts on {devices} x {slots} slots"
