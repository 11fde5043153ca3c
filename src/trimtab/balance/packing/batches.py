"""Packing sequences into micro-batches under a token cap, as many on every rank.

The cap is never exceeded. Largest differencing makes micro-batches of equal cost, and is taken where it
respects the cap with as few of them; otherwise the sequences are fitted, and the largest micro-batches are
split until every rank has as many, which cannot break the cap.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.balance.packing.differencing import karmarkar_karp
from trimtab.errors import TrimtabError, unknown

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
METHODS = ("karmarkar-karp", "first-fit")
LONG = ("refuse", "split")


@dataclass(frozen=True)
class Packing:
    """Micro-batches of every rank; all ranks have as many, and those of a step cost about the same.

    ``micro_batches[rank][step]`` holds rows of ``pieces``; ``pieces`` (pieces, 3) is the sequence, its first
    token and the token after its last. Without ``split`` piece i is all of sequence i.
    """

    cap: int
    pieces: Ints
    micro_batches: tuple[tuple[Ints, ...], ...]

    @property
    def steps(self) -> int:
        """Micro-batches per rank."""
        return len(self.micro_batches[0])

    def tokens(self) -> Ints:
        """(ranks, steps) tokens of each micro-batch."""
        lengths = self.pieces[:, 2] - self.pieces[:, 1]
        return np.array([[lengths[rows].sum() for rows in rank] for rank in self.micro_batches])

    def waste(self) -> float:
        """Share of the cap that stays unused, over all micro-batches: the padding where shapes are fixed."""
        tokens = self.tokens()
        return float(1.0 - tokens.sum() / (self.cap * tokens.size))

    def sequences(self, rank: int, step: int) -> list[int]:
        """The sequences of one micro-batch, those that were split included."""
        return [int(each) for each in self.pieces[self.micro_batches[rank][step], 0]]


def flops_cost(lengths: Any, hidden: int = 4096) -> Floats:
    """Work of a transformer's layers on each sequence, up to a factor: 6 x hidden x length + length^2.

    The products with weights grow with the length, attention with its square; the ratio is that of a
    decoder whose perceptron is about four times as wide as ``hidden``, as verl counts it.
    """
    tokens = np.asarray(lengths, dtype=np.float64)
    return 6.0 * hidden * tokens + tokens**2


def pack(
    lengths: Any,
    cap: int,
    ranks: int = 1,
    *,
    method: str = "karmarkar-karp",
    costs: Any = None,
    long: str = "refuse",
) -> Packing:
    """Micro-batches of at most ``cap`` tokens, as few as each rank can have as many of.

    Parameters
    ----------
    lengths : (sequences,) tokens of each, at least 1
    cap : most tokens of a micro-batch
    ranks : data-parallel ranks
    method : "karmarkar-karp" (falls back on fitting where the cap forbids it) or "first-fit"
    costs : (sequences,) what is balanced, such as ``flops_cost(lengths)``; the tokens by default
    long : of a sequence above the cap: "refuse", or "split" into pieces of at most the cap

    Raises
    ------
    TrimtabError
        for a sequence above the cap unless it is to be split, for lengths below 1, and for too few sequences
        to give every rank as many micro-batches.
    """
    tokens = _checked(lengths, cap, ranks, method, long)
    pieces = _pieces(tokens, cap)
    sizes = pieces[:, 2] - pieces[:, 1]
    if costs is None:
        weight = sizes.astype(np.float64)
    else:
        given = np.asarray(costs, dtype=np.float64)
        if given.shape != tokens.shape or not (given >= 0).all():
            raise TrimtabError(f"costs must be {len(tokens)} numbers of at least 0, one per sequence")
        weight = given[pieces[:, 0]] * sizes / tokens[pieces[:, 0]]
    bins = _balanced(sizes, weight, cap, ranks) if method == METHODS[0] else None
    if bins is None:
        bins = _split(_fitted(sizes, cap), weight, ranks)
    return Packing(cap, pieces, _dealt(bins, weight, ranks))


def _checked(lengths: Any, cap: int, ranks: int, method: str, long: str) -> Ints:
    tokens = np.asarray(lengths)
    if method not in METHODS:
        raise unknown("packing method", method, METHODS)
    if long not in LONG:
        raise unknown("treatment of long sequences", long, LONG)
    if tokens.ndim != 1 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise TrimtabError("lengths must be a list of whole numbers, one per sequence")
    if ranks < 1 or cap < 1:
        raise TrimtabError(f"ranks and cap must be at least 1; given {ranks} and {cap}")
    if tokens.min() < 1:
        raise TrimtabError(f"sequence {int(tokens.argmin())} has {int(tokens.min())} tokens; at least 1")
    if tokens.max() > cap and long == "refuse":
        raise TrimtabError(
            f"sequence {int(tokens.argmax())} has {int(tokens.max())} tokens, above the cap of {cap}; raise "
            f"the cap, drop it, or split it (long='split')"
        )
    return tokens.astype(np.int64)


def _pieces(tokens: Ints, cap: int) -> Ints:
    """(pieces, 3) sequence, start, stop; a sequence above the cap gives pieces of nearly equal length."""
    counts = -(-tokens // cap)
    sequence = np.repeat(np.arange(len(tokens)), counts)
    place = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    bounds = [tokens[sequence] * each // counts[sequence] for each in (place, place + 1)]
    return np.stack([sequence, *bounds], axis=1)


def _balanced(sizes: Ints, weight: Floats, cap: int, ranks: int) -> list[list[int]] | None:
    """Parts by largest differencing that respect the cap; None where that needs more than fitting does."""
    fewest = _rounded(-(-int(sizes.sum()) // cap), ranks)
    most: int | None = None
    count = fewest
    while count <= len(sizes):
        parts = karmarkar_karp(weight, count)
        if max(int(sizes[part].sum()) for part in parts) <= cap:
            return parts
        # How many micro-batches fitting would take is asked only once it matters.
        most = _rounded(len(_fitted(sizes, cap)), ranks) if most is None else most
        count += ranks
        if count > most:
            break
    return None


def _fitted(sizes: Ints, cap: int) -> list[list[int]]:
    """First fit decreasing: from the longest down, each into the first bin that has room for it.

    A tree holds the most room in each range of bins, so that the first that fits is found in O(log bins).
    """
    leaves = 1 << max(1, (len(sizes) - 1).bit_length())
    room = [cap] * (2 * leaves)  # node i has the children 2i and 2i + 1; bins not opened have the whole cap
    bins: list[list[int]] = []
    for item in np.argsort(-sizes, kind="stable").tolist():
        size, node = int(sizes[item]), 1
        while node < leaves:
            node *= 2
            if room[node] < size:
                node += 1
        if node - leaves == len(bins):
            bins.append([])
        bins[node - leaves].append(item)
        room[node] -= size
        while node > 1:
            most = max(room[node], room[node ^ 1])
            node //= 2
            if room[node] == most:
                break
            room[node] = most
    return bins


def _split(bins: list[list[int]], weight: Floats, ranks: int) -> list[list[int]]:
    """The dearest bin of several sequences becomes two, until the ranks divide the number of bins."""
    wanted = _rounded(len(bins), ranks)
    if wanted > len(weight):
        raise TrimtabError(
            f"{len(weight)} sequences in {len(bins)} micro-batches cannot be dealt evenly to {ranks} ranks; "
            f"give {wanted - len(weight)} more, or raise the cap"
        )
    heap = [(-float(weight[items].sum()), number) for number, items in enumerate(bins) if len(items) > 1]
    heapq.heapify(heap)
    while len(bins) < wanted:
        number = heapq.heappop(heap)[1]
        halves = karmarkar_karp(weight[bins[number]], 2)
        kept, new = ([bins[number][item] for item in half] for half in halves)
        bins[number] = kept
        bins.append(new)
        for where in (number, len(bins) - 1):
            if len(bins[where]) > 1:
                heapq.heappush(heap, (-float(weight[bins[where]].sum()), where))
    return bins


def _dealt(bins: list[list[int]], weight: Floats, ranks: int) -> tuple[tuple[Ints, ...], ...]:
    """From the dearest down, one bin to each rank per step, to and fro."""
    cost = np.array([weight[items].sum() for items in bins])
    order = np.argsort(-cost, kind="stable").reshape(-1, ranks)
    order[1::2] = order[1::2, ::-1]
    rows = [np.array(items, dtype=np.int64) for items in bins]
    return tuple(tuple(rows[number] for number in order[:, rank]) for rank in range(ranks))


def _rounded(count: int, ranks: int) -> int:
    return -(-count // ranks) * ranks
