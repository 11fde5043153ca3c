"""Packing: the cap holds whatever comes, ranks get as many micro-batches, sums are those of the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import packing as oracle

from trimtab.balance.packing import METHODS, PackedBatchSampler, Packing, flops_cost, karmarkar_karp, pack
from trimtab.errors import TrimtabError

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def all_pieces(packing: Packing) -> list[int]:
    return sorted(int(row) for rank in packing.micro_batches for rows in rank for row in rows)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=25), st.integers(1, 8), st.booleans())
def test_differencing_is_the_oracles(costs: list[int], parts: int, equal: bool) -> None:
    parts = min(parts, len(costs))
    if equal:
        costs = costs * parts
    found = karmarkar_karp(costs, parts, equal_size=equal)
    assert sorted(each for part in found for each in part) == list(range(len(costs)))
    assert all(part for part in found)
    if equal:
        assert {len(part) for part in found} == {len(costs) // parts}
    elif min(costs) > 0:
        sums = sorted((sum(costs[i] for i in part) for part in found), reverse=True)
        assert sums == oracle.karmarkar_karp(costs, parts)


def test_differencing_of_the_textbook() -> None:
    """8, 7, 6, 5, 4 in two parts: differencing gives 16 and 14 where 15 and 15 exist."""
    costs = [4, 5, 6, 7, 8]
    assert sorted(sum(costs[i] for i in part) for part in karmarkar_karp(costs, 2)) == [14, 16]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 100), st.integers(1, 5), st.sampled_from(METHODS), st.booleans())
def test_the_cap_holds(lengths: list[int], cap: int, ranks: int, method: str, by_flops: bool) -> None:
    costs = flops_cost(lengths, hidden=8) if by_flops else None
    try:
        packing = pack(lengths, cap, ranks, method=method, costs=costs, long="split")
    except TrimtabError:
        # Only where fitting opens so many bins that the ranks' next multiple is above the pieces.
        sizes = [len(part) for each in lengths for part in np.array_split(np.empty(each), -(-each // cap))]
        bins = len(oracle.first_fit_decreasing(sizes, cap))
        assert math.ceil(bins / ranks) * ranks > len(sizes)
        return
    assert packing.tokens().max() <= cap
    assert len({len(rank) for rank in packing.micro_batches}) == 1
    assert all(len(rows) for rank in packing.micro_batches for rows in rank)
    assert all_pieces(packing) == list(range(len(packing.pieces)))
    for sequence, length in enumerate(lengths):
        mine = packing.pieces[packing.pieces[:, 0] == sequence]
        assert mine[0, 1] == 0
        assert mine[-1, 2] == length
        assert (mine[1:, 1] == mine[:-1, 2]).all()


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(60, 200))
def test_first_fit_is_the_oracles(lengths: list[int], cap: int) -> None:
    found = pack(lengths, cap, method="first-fit").tokens()[0]
    assert sorted(found.tolist()) == sorted(oracle.first_fit_decreasing(lengths, cap))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(60, 200), st.integers(1, 3))
def test_differencing_never_needs_more_micro_batches(lengths: list[int], cap: int, ranks: int) -> None:
    try:
        fitted = pack(lengths, cap, ranks, method="first-fit")
    except TrimtabError:
        return
    assert pack(lengths, cap, ranks).steps <= fitted.steps


def test_flops_are_balanced_where_tokens_are_not() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(7, 1.2, 2000), 16, 12_000).astype(int)
    cost = flops_cost(lengths, hidden=1024)

    def spread(packing: Packing) -> float:
        sums = np.array([[cost[rows].sum() for rows in rank] for rank in packing.micro_batches])
        return float((sums.max(axis=0) / sums.mean(axis=0)).max())

    by_tokens, by_flops = pack(lengths, 65_536, 8), pack(lengths, 65_536, 8, costs=cost)
    assert spread(by_flops) < 1.01 < spread(by_tokens)
    assert by_flops.tokens().max() <= 65_536


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([5, 40], 30), "sequence 1 has 40 tokens, above the cap of 30"),
        (([5, 0], 30), "sequence 1 has 0 tokens"),
        (([], 30), "lengths must be"),
        (([0.5], 30), "lengths must be a list of whole numbers"),
        (([5] * 3, 30, 4), "3 sequences in 1 micro-batches cannot be dealt evenly to 4 ranks; give 1 more"),
        (([5], 30, 0), "at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TrimtabError) as error:
        pack(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_method() -> None:
    with pytest.raises(TrimtabError, match="Did you mean 'first-fit'"):
        pack([1], 2, method="firstfit")


def rows_of(ranks: int, **settings: Any) -> list[list[list[int]]]:
    lengths = np.random.default_rng(1).integers(10, 500, 300)
    return [list(PackedBatchSampler(lengths, 2048, ranks, rank, **settings)) for rank in range(ranks)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window", [64, 16_384])
def test_every_sequence_once_over_the_ranks(shuffle: bool, window: int) -> None:
    found = rows_of(4, shuffle=shuffle, window=window)
    assert sorted(each for rank in found for batch in rank for each in batch) == list(range(300))
    assert len({len(rank) for rank in found}) == 1
    assert found == rows_of(4, shuffle=shuffle, window=window)


def test_epochs_differ_and_seeds_too() -> None:
    sampler = PackedBatchSampler([100] * 50, 1000, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(PackedBatchSampler([100] * 50, 1000, seed=4)) != first


def test_goes_on_where_it_was() -> None:
    sampler = PackedBatchSampler(list(range(1, 200)), 1000, 2, 1, seed=3)
    sampler.set_epoch(5)
    whole = list(sampler)
    stream = iter(sampler)
    begun = [next(stream) for _ in range(4)]
    other = PackedBatchSampler(list(range(1, 200)), 1000, 2, 1, seed=3)
    other.load_state_dict(sampler.state_dict())
    assert begun + list(other) == whole
    other.load_state_dict(sampler.state_dict(consumed=2))
    assert begun[:2] + list(other) == whole
    with pytest.raises(TrimtabError, match="of seed 3, this sampler's is 4"):
        PackedBatchSampler([1, 2], 10, seed=4).load_state_dict(sampler.state_dict())


def test_a_data_loader_takes_it() -> None:
    data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    lengths = [3, 9, 4, 7, 2, 8]
    loader = data.DataLoader(lengths, batch_sampler=PackedBatchSampler(lengths, 12), collate_fn=list)
    batches = list(loader)
    assert sorted(each for batch in batches for each in batch) == sorted(lengths)
    assert all(sum(batch) <= 12 for batch in batches)
    assert len(loader) == len(batches)
