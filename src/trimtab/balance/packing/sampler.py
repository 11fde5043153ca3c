"""Packed micro-batches for a data loader: lists of indices, as many on every rank, resumable.

``torch.utils.data.DataLoader(dataset, batch_sampler=PackedBatchSampler(lengths, cap))`` works as it is;
nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from trimtab.balance.packing.batches import METHODS, Packing, pack
from trimtab.errors import TrimtabError

WINDOW = 16_384  # sequences that are packed together


class PackedBatchSampler:
    """Yields the micro-batches of one rank: lists of at most ``cap`` tokens' worth of indices.

    Every epoch has its own order, a function of (seed, epoch): sequences are shuffled, packed in windows of
    ``window`` neighbours, and the steps of a window shuffled. All ranks compute the same and take their
    own, so that they need not talk. A sequence is in exactly one micro-batch of one rank.

    Parameters
    ----------
    lengths : (sequences,) tokens of each
    cap : most tokens of a micro-batch
    ranks, rank : data-parallel ranks, and which this is
    costs : (sequences,) what is balanced, such as ``flops_cost(lengths)``; the tokens by default
    shuffle : False keeps the order of the data, apart from the packing of each window

    Raises
    ------
    TrimtabError
        for a rank outside ``ranks``, a window below the ranks, and all that ``pack`` refuses.
    """

    def __init__(
        self,
        lengths: Any,
        cap: int,
        ranks: int = 1,
        rank: int = 0,
        *,
        seed: int = 0,
        shuffle: bool = True,
        costs: Any = None,
        method: str = METHODS[0],
        window: int = WINDOW,
    ) -> None:
        if not 0 <= rank < ranks:
            raise TrimtabError(f"rank {rank} is not one of {ranks} ranks; allowed: 0 to {ranks - 1}")
        if window < ranks:
            raise TrimtabError(f"a window of {window} sequences cannot fill {ranks} ranks")
        self.lengths = np.asarray(lengths)
        self.costs = None if costs is None else np.asarray(costs, dtype=np.float64)
        self.cap, self.ranks, self.rank = cap, ranks, rank
        self.seed, self.shuffle, self.method, self.window = seed, shuffle, method, window
        self.epoch = 0
        self.position = 0  # micro-batches of this epoch that were handed out
        self._planned: tuple[int, list[list[int]]] | None = None

    def __len__(self) -> int:
        """Micro-batches of this epoch, the same on every rank."""
        return len(self._plan())

    def __iter__(self) -> Iterator[list[int]]:
        """The rest of this epoch; the next call begins again from the first micro-batch."""
        plan = self._plan()
        while self.position < len(plan):
            self.position += 1
            yield plan[self.position - 1]
        self.position = 0

    def set_epoch(self, epoch: int) -> None:
        """The order of ``epoch``, from its beginning; setting the present epoch changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self, consumed: int | None = None) -> dict[str, int]:
        """Where this is. Workers of a loader run ahead: give ``consumed``, the micro-batches trained on."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position if consumed is None else consumed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a ``state_dict``.

        Raises
        ------
        TrimtabError
            for the state of another seed, whose order is another one.
        """
        if state["seed"] != self.seed:
            raise TrimtabError(f"the state is of seed {state['seed']}, this sampler's is {self.seed}")
        self.epoch, self.position = state["epoch"], state["position"]

    def _plan(self) -> list[list[int]]:
        """This rank's micro-batches of the whole epoch; kept until the epoch changes."""
        if self._planned is None or self._planned[0] != self.epoch:
            generator = np.random.default_rng((self.seed, self.epoch))
            count = len(self.lengths)
            order = generator.permutation(count) if self.shuffle else np.arange(count)
            # A last window too small for the ranks joins the one before.
            starts = list(range(0, count, self.window))
            if len(starts) > 1 and count - starts[-1] < max(self.ranks, self.window // 2):
                starts.pop()
            found: list[list[int]] = []
            for start, stop in zip(starts, [*starts[1:], count], strict=True):
                found += self._packed(order[start:stop], generator)
            self._planned = (self.epoch, found)
        return self._planned[1]

    def _packed(self, rows: np.ndarray, generator: np.random.Generator) -> list[list[int]]:
        costs = None if self.costs is None else self.costs[rows]
        packing: Packing = pack(self.lengths[rows], self.cap, self.ranks, method=self.method, costs=costs)
        steps = generator.permutation(packing.steps) if self.shuffle else np.arange(packing.steps)
        return [rows[packing.sequences(self.rank, int(step))].tolist() for step in steps]
