"""Local search over one layer's placement: swap two replicas, or give a replica's slot to another expert.

Loads come in windows; a placement's cost is the largest device load of each window, averaged over the
windows or the worst of them. Every step takes load off a window's busiest device, and is the best of its
kind. Even split: a replica gets load / replicas of its expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from trimtab.moe.packing import Floats, Ints

TIE = 1e-7  # weight of the sum of squares: of equal peaks, the more even loads; small against any peak
ROUNDING = 1e-11
SPAN, SETTLED = 64, 1e-4  # a search is over when so many steps have gained less (of the mean device load)
MANY, LIGHTEST = 64, 32  # of more experts than that, only the lightest may take a busy replica's slot


@dataclass
class Board:
    """One layer while it is searched. W windows, E experts, D devices, S slots."""

    loads: Floats  # (W, E), any unit; the mean device load should be near 1
    slots: Ints  # (D, S) the expert in each slot
    worst: bool  # cost is the worst window's, not the mean
    home: Ints | None = None  # (D, E) replicas where they are now; None: moving is free
    moves: int = 0  # at most so many replicas on devices that did not have them
    allowed: NDArray[np.bool_] | None = None  # (D, E) where replicas may go; None: anywhere

    def __post_init__(self) -> None:
        self.hosts = hosts_of(self.slots, self.loads.shape[1])  # (D, E)
        self._refresh()

    def _refresh(self) -> None:
        self.counts = self.hosts.sum(axis=0)
        self.share = self.loads / self.counts
        self.device = self.share @ self.hosts.T.astype(np.float64)  # (W, D)

    @property
    def cost(self) -> float:
        return float(self.over_windows(self.device.max(axis=1)))

    def over_windows(self, peaks: Floats) -> Floats:
        """(W, ...) -> (...)"""
        if len(peaks) == 1:
            return np.asarray(peaks[0])
        return np.asarray(peaks.max(axis=0) if self.worst else peaks.mean(axis=0))

    @property
    def potential(self) -> float:
        return self.cost + TIE * float((self.device**2).sum())

    def sources(self) -> list[int]:
        """The devices whose load sets the cost, that of the worst window first."""
        peaks = self.device.max(axis=1)
        order = np.argsort(-peaks, kind="stable")
        if self.worst:
            order = order[peaks[order] >= peaks.max() - ROUNDING]
        return list(dict.fromkeys(self.device[order].argmax(axis=1).tolist()))

    def put(self, changes: list[tuple[int, int, int]]) -> None:
        """Set (device, slot, expert) each."""
        for device, slot, expert in changes:
            self.hosts[device, self.slots[device, slot]] -= 1
            self.hosts[device, expert] += 1
            self.slots[device, slot] = expert
        self._refresh()

    def moved(self) -> int:
        return 0 if self.home is None else int(np.maximum(self.hosts - self.home, 0).sum())

    def worth(self, gain: Floats, extra: Ints) -> Floats:
        """What a step is chosen by: its gain, per replica moved where that is bounded."""
        if self.home is None:
            return gain
        allowed = self.moved() + extra <= self.moves
        return np.where(allowed, gain / np.maximum(extra, 0.5), -np.inf)

    def arrival(self) -> Ints:
        """(D, E) 1 where a replica that came would have to be moved there."""
        assert self.home is not None
        return (self.hosts >= self.home).astype(np.int64)

    def departure(self) -> Ints:
        """(D, E) 1 where a replica that went would have been moved there for nothing."""
        assert self.home is not None
        return (self.hosts > self.home).astype(np.int64)


Step = tuple[float, list[tuple[int, int, int]]]  # worth, (device, slot, expert) to set


def hosts_of(slots: Ints, experts: int) -> Ints:
    """Replicas of each expert on each device: (D, S) -> (D, E)."""
    devices = len(slots)
    flat = (slots + experts * np.arange(devices)[:, None]).ravel()
    return np.bincount(flat, minlength=devices * experts).reshape(devices, experts)


def improve(board: Board) -> Board:
    """Swap while that helps, then re-replicate, until neither does; with bounded moves the better first."""
    before = board.cost
    for taken in count(1):
        step = best_swap(board)
        if step[0] <= 0 or board.home is not None:
            step = max(step, best_replacement(board), key=lambda found: found[0])
        if step[0] <= 0:
            break
        board.put(step[1])
        if taken % SPAN == 0:
            if before - board.cost < SETTLED:
                break
            before = board.cost
    return board


def best_swap(board: Board) -> Step:
    """The best exchange of a replica on a busiest device with one elsewhere; worth 0 if none helps.

    The first busiest device from which anything helps: windows share most of their loads.
    """
    steps = (_swap_with(board, source) for source in board.sources())
    return next((step for step in steps if step[0] > 0), (0.0, []))


def _swap_with(board: Board, source: int) -> Step:
    device, slots = board.device, board.slots
    value = board.share[:, slots]  # (W, D, S)
    less = value[:, source][:, None, :, None] - value[:, :, None, :]  # (W, D, S here, S there)
    here, there = device[:, source][:, None, None, None] - less, device[:, :, None, None] + less
    peak = np.maximum(np.maximum(here, there), _largest_but(device, source)[:, :, None, None])
    squares = 2 * less * (device[:, :, None, None] - device[:, source][:, None, None, None] + less)
    after = board.over_windows(peak) + TIE * squares.sum(axis=0)
    gain = board.cost - after
    gain[source] = -np.inf
    if board.allowed is not None:
        fits = board.allowed[:, slots[source]][:, :, None] & board.allowed[source, slots][:, None, :]
        gain = np.where(fits, gain, -np.inf)
    extra = np.zeros(gain.shape, dtype=np.int64)
    if board.home is not None:
        arrival, departure = board.arrival(), board.departure()
        mine = slots[source]
        extra = (arrival[:, mine] - departure[source, mine])[:, :, None] + (
            arrival[source, slots] - np.take_along_axis(departure, slots, axis=1)
        )[:, None, :]
        gain[np.broadcast_to(mine[None, :, None] == slots[:, None, :], gain.shape)] = -np.inf
    worth = np.where(gain > ROUNDING, board.worth(gain, extra), 0.0)
    best = np.unravel_index(int(worth.argmax()), worth.shape)
    other, slot, theirs = (int(index) for index in best)
    changes = [(source, slot, int(slots[other, theirs])), (other, theirs, int(slots[source, slot]))]
    return float(worth[best]), changes


def _largest_but(device: Floats, source: int) -> Floats:
    """(W, D): the largest load of all devices but ``source`` and this one."""
    rest = device.copy()
    rest[:, source] = -np.inf
    first = rest.argmax(axis=1)
    every = np.arange(len(rest))
    largest = rest[every, first]
    rest[every, first] = -np.inf
    found = np.repeat(largest[:, None], device.shape[1], axis=1)
    found[every, first] = rest.max(axis=1)
    return found


def best_replacement(board: Board) -> Step:
    """The best change of one slot's expert, where the expert that goes has further replicas; 0 if none.

    Either an expert of a busiest device gets a further replica anywhere, or a replica on that device
    makes room for another expert (a light one, where there are many).
    """
    spare = np.flatnonzero(board.counts[board.slots.ravel()] > 1)
    size, experts = board.slots.shape[1], board.loads.shape[1]
    light = np.arange(experts)
    if experts > MANY:
        light = np.argsort(board.loads.sum(axis=0) / (board.counts + 1), kind="stable")[:LIGHTEST]
    for source in board.sources() if len(spare) else []:
        there = spare[spare // size == source]
        steps = [_replace(board, spare, np.unique(board.slots[source]))]
        if len(there):
            steps.append(_replace(board, there, light))
        best = max(steps, key=lambda step: step[0])
        if best[0] > 0:
            return best
    return 0.0, []


def _replace(board: Board, positions: Ints, incoming: Ints) -> Step:
    """``positions``: T flat slots whose expert has further replicas; ``incoming``: J experts."""
    size = board.slots.shape[1]
    where, outgoing = positions // size, board.slots.ravel()[positions]
    out_share = board.loads[:, outgoing] / (board.counts[outgoing] - 1)  # (W, T) after it went
    in_share = board.loads[:, incoming] / (board.counts[incoming] + 1)  # (W, J) after it came
    hosts = board.hosts.T.astype(np.float64)
    without = board.device[:, None] + hosts[outgoing] * (out_share - board.share[:, outgoing])[..., None]
    row = np.arange(len(positions))
    without[:, row, where] -= out_share
    relief = hosts[incoming] * (in_share - board.share[:, incoming])[..., None]  # (W, J, D)
    after = without[:, :, None] + relief[:, None]  # (W, T, J, D)
    after[:, row, :, where] += in_share[None]
    squares = np.einsum("wtjd,wtjd->tj", after, after)
    gain = board.potential - board.over_windows(after.max(axis=3)) - TIE * squares
    gain[outgoing[:, None] == incoming] = -np.inf
    if board.allowed is not None:
        gain = np.where(board.allowed[where][:, incoming], gain, -np.inf)
    extra = np.zeros(gain.shape, dtype=np.int64)
    if board.home is not None:
        extra = board.arrival()[where][:, incoming] - board.departure()[where, outgoing][:, None]
    worth = np.where(gain > ROUNDING, board.worth(gain, extra), 0.0)
    best = int(worth.argmax())
    position, expert = divmod(best, len(incoming))
    slot = int(positions[position])
    return float(worth.flat[best]), [(slot // size, slot % size, int(incoming[expert]))]
