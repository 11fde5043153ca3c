"""Quantile balancing: the naive quantile, the histogram beside the exact one, targets, and bad scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import bias_laws as naive

from trimtab.balance import QuantileHistogramLaw, QuantileLaw, load_of
from trimtab.balance.measures import max_violation
from trimtab.balance.prices import Market
from trimtab.errors import TrimtabError


def skewed_scores(seed: int, shape: tuple[int, ...], skew: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    preference = skew * generator.standard_normal((*shape[:-2], 1, shape[-1]))
    return 1 / (1 + np.exp(-preference - generator.standard_normal(shape)))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(2, 40), experts=st.integers(3, 7), data=st.data())
def test_each_expert_would_get_its_portion(seed: int, tokens: int, experts: int, data: Any) -> None:
    """At the prices of the old bias exactly portion x tokens would take the expert, to within one token."""
    top_k = data.draw(st.integers(1, experts - 1))
    scores = skewed_scores(seed, (tokens, experts))
    start = np.random.default_rng(seed).normal(0, 0.2, experts)
    bias = QuantileLaw(top_k, price="next", start=start).update(scores)
    price = naive.prices(scores.tolist(), start.tolist(), top_k)
    # The law is centred: its offset is found again from the first expert's portion.
    raw = QuantileLaw(top_k, price="next").quantiles(np, scores, start, np.full(experts, top_k / experts))
    np.testing.assert_allclose(bias - bias.mean(), raw - raw.mean(), atol=1e-12)
    wanted = top_k * tokens / experts
    for expert in range(experts):
        # Tokens whose price this very expert sets are neither in nor out: all have the same quantile.
        fewest = naive.takers(scores.tolist(), price, expert, float(raw[expert]) - 1e-9)
        most = naive.takers(scores.tolist(), price, expert, float(raw[expert]) + 1e-9)
        assert fewest - 1 <= wanted <= most + 1


@pytest.mark.parametrize("make", [QuantileLaw, QuantileHistogramLaw])
def test_a_few_rounds_balance_the_batch(make: Any) -> None:
    scores = skewed_scores(0, (2, 3, 4096, 16))
    before = max_violation(load_of(scores, None, 2))
    bias = make(2, rounds=20).update(scores)
    assert bias.shape == (2, 3, 16)
    assert np.abs(bias.sum(axis=-1)).max() < 1e-9
    assert before.min() > 1.0
    assert max_violation(load_of(scores, bias, 2)).max() < 0.08  # one bin is 0.0024 wide


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_histogram_is_within_a_bin(seed: int) -> None:
    scores = skewed_scores(seed, (500, 8))
    exact = QuantileLaw(2).quantiles(np, scores, np.zeros(8), np.full(8, 0.25))
    binned = QuantileHistogramLaw(2, bins=400).quantiles(np, scores, np.zeros(8), np.full(8, 0.25))
    spacing = np.abs(np.diff(np.sort(scores, axis=0), axis=0)).max()  # where no token is, any bias will do
    assert np.abs(exact - binned).max() <= 2.0 / 400 + spacing


@pytest.mark.parametrize("make", [QuantileLaw, QuantileHistogramLaw])
def test_invariances(make: Any) -> None:
    """More of the same tokens, experts in another order, another library: the same bias."""
    scores = skewed_scores(3, (1000, 8))
    bias = make(2, rounds=3).update(scores)
    order = np.random.default_rng(4).permutation(8)
    np.testing.assert_allclose(make(2, rounds=3).update(scores[:, order]), bias[order], atol=1e-12)
    np.testing.assert_allclose(make(2, rounds=3).update(np.tile(scores, (4, 1))), bias, atol=5e-3)
    np.testing.assert_allclose(make(2, rounds=3).update(scores.astype(np.float32)), bias, atol=5e-3)
    torch = pytest.importorskip("torch")
    there = make(2, rounds=3).update(torch.from_numpy(scores))
    assert isinstance(there, torch.Tensor)
    np.testing.assert_allclose(there.numpy(), bias, atol=1e-12)


@pytest.mark.parametrize("make", [QuantileLaw, QuantileHistogramLaw])
def test_targets_are_met(make: Any) -> None:
    scores = skewed_scores(5, (8192, 6))
    target = np.array([3.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    load = load_of(scores, make(2, rounds=30).update(scores, target), 2)
    np.testing.assert_allclose(load / load.sum(), target / target.sum(), atol=0.01)
    with pytest.raises(TrimtabError, match=r"no share may reach 0\.5"):
        make(2).update(scores, [6, 1, 1, 1, 1, 1])


def test_the_middle_price_goes_all_the_way() -> None:
    """The published price stands still short of balance; half-way to the next score only balance does."""
    shares = [0.70, 0.20, 0.05, 0.03, 0.01, 0.01, 0.0001, 0.0001]
    logits = np.log(shares) + np.random.default_rng(8).gumbel(size=(4096, 8))
    scores = 1 / (1 + np.exp(-logits))
    left = {
        price: max_violation(load_of(scores, QuantileLaw(1, price=price, rounds=20).update(scores), 1))
        for price in ("next", "middle")
    }
    assert left["middle"] < 0.02
    assert left["next"] > 5 * left["middle"]
    with pytest.raises(TrimtabError, match="unknown price 'midle'"):
        QuantileLaw(1, price="midle")


def test_memory_moves_part_of_the_way() -> None:
    scores = skewed_scores(6, (2000, 8))
    whole, part = QuantileLaw(2).update(scores), QuantileLaw(2, memory=0.9).update(scores)
    np.testing.assert_allclose(part, 0.1 * whole, atol=1e-12)


def test_ranks_agree_through_one_reduction() -> None:
    """Two halves of a batch, their histograms added: the bias of the whole batch, on both."""
    scores = skewed_scores(7, (1000, 8))
    whole = QuantileHistogramLaw(2).update(scores)
    seen: list[np.ndarray] = []
    QuantileHistogramLaw(2, reduce=seen.append).update(scores[500:])

    def add_the_other(buffer: np.ndarray) -> None:
        buffer += seen[0]

    np.testing.assert_array_equal(QuantileHistogramLaw(2, reduce=add_the_other).update(scores[:500]), whole)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.ones(4), "tokens, experts"),
        (np.ones((10, 5)), "scores of"),
        (np.full((10, 4), np.nan), "finite"),
        (np.ones((0, 4)), "tokens, experts"),
    ],
)
def test_bad_scores_change_nothing(bad: Any, says: str) -> None:
    bias_law = QuantileLaw(2, start=[0.1, 0.0, 0.0, -0.1])
    with pytest.raises(TrimtabError, match=says):
        bias_law.update(bad)
    assert bias_law.num_updates == 0
    np.testing.assert_array_equal(bias_law.bias, [0.1, 0.0, 0.0, -0.1])
    with pytest.raises(TrimtabError, match="top_k must be below 4"):
        QuantileLaw(4).update(np.ones((10, 4)))
    with pytest.raises(TrimtabError, match="at least 1"):
        QuantileLaw(0)


def taken(scores: np.ndarray, bias: np.ndarray, top_k: int, groups: int, top_groups: int) -> list[set[int]]:
    """Which experts each token takes, one token at a time."""
    chosen = []
    for row in scores + bias:
        parts = row.reshape(groups, -1)
        worth = np.sort(parts, axis=-1)[:, -2:].sum(axis=-1)
        out = set(np.argsort(worth)[: groups - top_groups])
        open_to = np.where(np.isin(np.arange(groups), list(out))[:, None], -np.inf, parts).reshape(-1)
        chosen.append(set(np.argsort(open_to)[-top_k:].tolist()))
    return chosen


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 4), data=st.data())
def test_a_token_takes_what_asks_less_than_it_has(seed: int, size: int, data: Any) -> None:
    """With groups, as a gate would select: the bias is above what is asked exactly where it is taken."""
    groups = data.draw(st.integers(2, 4))
    top_groups = data.draw(st.integers(1, groups - 1))
    market = Market(data.draw(st.integers(1, size * top_groups)), groups, top_groups)
    scores = skewed_scores(seed, (6, groups * size))
    bias = np.random.default_rng(seed).normal(0, 0.2, groups * size)
    asked = market.asked(np, scores, bias)
    assert np.isfinite(asked).all()
    now = taken(scores, bias, market.top_k, groups, top_groups)
    for token, expert in np.ndindex(asked.shape):
        assert (asked[token, expert] < bias[expert]) == (expert in now[token])


def test_groups_are_balanced_by_a_law_that_knows_them() -> None:
    """DeepSeek-V3's kind of gate in small: 8 groups of 4 experts, 4 groups kept, 6 experts."""
    scores = skewed_scores(5, (2048, 32), skew=0.5)

    def load(bias: np.ndarray) -> np.ndarray:
        chosen = taken(scores, bias, 6, 8, 4)
        return np.bincount([expert for row in chosen for expert in row], minlength=32).astype(float)

    blind = QuantileLaw(6, rounds=20).update(scores)
    aware = QuantileLaw(6, rounds=20, groups=8, top_groups=4).update(scores)
    before, without, balanced = (float(max_violation(load(bias))) for bias in (np.zeros(32), blind, aware))
    assert before > 1.0
    assert balanced < 0.08
    assert without > 3 * balanced
    binned = QuantileHistogramLaw(6, rounds=20, groups=8, top_groups=4).update(scores)
    assert float(max_violation(load(binned))) < 0.1


@pytest.mark.parametrize("make", [QuantileLaw, QuantileHistogramLaw])
def test_a_cap_lowers_the_busiest_and_leaves_the_rest(make: Any) -> None:
    scores = skewed_scores(0, (2048, 16))
    start = np.random.default_rng(1).normal(0, 0.05, 16)
    before = load_of(scores, start, 2)
    law = make(2, rounds=60, cap=1.2, start=start)
    bias = law.update(scores)
    after = load_of(scores, bias, 2)
    assert max_violation(before) > 1.0
    assert max_violation(after) < 0.23
    assert (bias <= start).all()
    light = load_of(scores, bias, 2) < 1.1 * after.mean()  # nobody waits for these
    np.testing.assert_allclose(bias[light], start[light], atol=1e-3)
    # Less is moved than evening all would: the same end with fewer tokens sent elsewhere.
    evened = load_of(scores, make(2, rounds=20, start=start).update(scores), 2)
    assert np.abs(after - before).sum() < 0.9 * np.abs(evened - before).sum()
    # What asks for nothing any more is given back.
    for _ in range(3):
        bias = law.update(skewed_scores(9, (2048, 16), skew=0.0) - start)
    np.testing.assert_allclose(bias, start, atol=0.01)
