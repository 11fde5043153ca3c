"""Counts over processes: packing, and two real processes with torch.distributed (gloo)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks

from trimtab.balance import QuantileHistogramLaw, law, reduce_counts
from trimtab.errors import TrimtabError

RANKS = 2
SHAPES = ((4,), (3, 8))


def loads_of(rank: int, batch: int) -> list[np.ndarray]:
    """Counts of one rank, for two gates of different shape."""
    generator = np.random.default_rng([rank, batch])
    return [generator.integers(1, 100, shape) for shape in SHAPES]


def scores_of(rank: int, batch: int) -> np.ndarray:
    generator = np.random.default_rng([rank, batch, 7])
    return 1 / (1 + np.exp(-np.linspace(-1, 1, 8) - generator.normal(size=(200, 8))))


def work(rank: int, folder: Path) -> None:
    """Five batches of counts through one all-reduce each, laws on both gates; then a histogram."""
    import torch
    import torch.distributed as dist

    calls = 0

    def all_reduce(buffer: Any) -> None:
        nonlocal calls
        calls += 1
        dist.all_reduce(buffer)

    laws = [law("ewma"), law("sign")]
    for batch in range(5):
        counts = [torch.from_numpy(load) for load in loads_of(rank, batch)]
        for bias_law, load in zip(laws, reduce_counts(counts, all_reduce), strict=True):
            bias_law.update(load)
    assert calls == 5  # one per batch, whatever the number of gates
    histogram = QuantileHistogramLaw(2, reduce=all_reduce)
    histogram.update(torch.from_numpy(scores_of(rank, 0)))
    arrays = [bias_law.bias for bias_law in (*laws, histogram)]
    np.savez(folder / f"{rank}.npz", *[array.numpy() for array in arrays])


def test_two_processes_agree_with_one_that_has_seen_all(tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed", reason="torch is not installed")
    run_ranks(work, tmp_path, RANKS)
    alone = [law("ewma"), law("sign"), QuantileHistogramLaw(2)]
    for batch in range(5):
        parts = zip(*[loads_of(rank, batch) for rank in range(RANKS)], strict=True)
        for bias_law, part in zip(alone, parts, strict=False):
            bias_law.update(sum(part))
    alone[2].update(np.concatenate([scores_of(rank, 0) for rank in range(RANKS)]))
    for rank in range(RANKS):
        saved = np.load(tmp_path / f"{rank}.npz")
        for i, bias_law in enumerate(alone):
            np.testing.assert_allclose(saved[f"arr_{i}"], bias_law.bias, atol=1e-12)


def test_packing() -> None:
    layers = loads_of(0, 0)
    doubled = reduce_counts(layers, lambda buffer: buffer * 2)
    for layer, summed in zip(layers, doubled, strict=True):
        np.testing.assert_array_equal(summed, 2 * layer)
    untouched = [layer.copy() for layer in layers]
    reduce_counts(layers, lambda buffer: buffer.fill(0))
    np.testing.assert_array_equal(layers[1], untouched[1])


def test_what_it_refuses() -> None:
    with pytest.raises(TrimtabError, match="at least one layer"):
        reduce_counts([], lambda buffer: None)
    with pytest.raises(TrimtabError, match="changed the shape"):
        reduce_counts([np.ones(3)], lambda buffer: buffer[:1])
