"""Intervals that cover what they claim to cover, on distributions where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from trimtab.report.bootstrap import (
    block_of,
    draw_weights,
    interval,
    reduce_to_blocks,
    resampled_mean,
    resampled_quantiles,
    student_t,
)

SHARES = (0.5, 0.99)


def test_student_t_against_scipy():
    for freedom in (*range(1, 30), 50, 200):
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-4)


def test_blocks_are_consecutive_and_equal():
    block = block_of(10_000)
    assert (np.diff(block) >= 0).all()
    sizes = np.bincount(block)
    assert len(sizes) == 64
    assert sizes.max() - sizes.min() <= 1
    assert np.bincount(block_of(100)).tolist() == [20] * 5
    assert block_of(7).tolist() == [0] * 7


@pytest.mark.parametrize("shape", ["lognormal", "constant"])
def test_point_estimates_are_those_of_the_sample(shape):
    rng = np.random.default_rng(0)
    values = {
        "lognormal": rng.lognormal(0, 1, 20_000),
        "constant": np.full(500, 3.0),
    }[shape]
    block = block_of(len(values))
    blocks = reduce_to_blocks(values, block, int(block[-1]) + 1)
    weights = draw_weights(int(block[-1]) + 1, 1, 0)
    assert resampled_mean(blocks, weights)[0] == pytest.approx(values.mean())
    found = resampled_quantiles(blocks, weights, SHARES)[:, 0]
    assert found == pytest.approx(np.quantile(values, SHARES), rel=5e-3, abs=1e-6)


def test_resampled_quantiles_against_resampling_itself():
    """Exactly the quantiles of the concatenated blocks, up to the width of a bin."""
    rng = np.random.default_rng(1)
    values = rng.lognormal(0, 1, 4000)
    block = block_of(len(values))
    count = int(block[-1]) + 1
    weights = draw_weights(count, 20, 3)
    found = resampled_quantiles(reduce_to_blocks(values, block, count), weights, SHARES)
    for row, weight in enumerate(weights):
        drawn = np.concatenate([np.tile(values[block == b], int(n)) for b, n in enumerate(weight) if n])
        expected = np.quantile(drawn, SHARES)
        assert found[:, row] == pytest.approx(expected, rel=0.05)  # 40 values make this tail


def correlated(rng: np.random.Generator, size: int, rho: float) -> np.ndarray:
    from scipy.signal import lfilter

    noise = rng.standard_normal(size)
    noise[0] /= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise) * np.sqrt(1 - rho**2)


def paired_interval(rng, seeds: int, size: int, rho: float, seed_effect: float):
    """The interval of the log ratio of two p50s whose true value is zero."""
    block = block_of(size)
    count = int(block[-1]) + 1
    centres, deviations = [], []
    for seed in range(seeds):
        shared = correlated(rng, size, rho)
        weights = draw_weights(count, 150, seed)
        drawn = []
        for effect in (seed_effect * rng.standard_normal(), 0.0):
            values = np.exp(shared + 0.4 * correlated(rng, size, rho) + effect)
            blocks = reduce_to_blocks(values, block, count)
            drawn.append(np.log(resampled_quantiles(blocks, weights, (0.5,))[0]))
        difference = drawn[0] - drawn[1]
        centres.append(difference[0])
        deviations.append(difference[1:] - difference[0])
    return interval(np.array(centres), np.array(deviations), seed=int(rng.integers(1 << 30)))


@pytest.mark.parametrize(("rho", "seed_effect"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1)])
def test_coverage(rho, seed_effect):
    """95 % intervals of three seeds hold the truth in 82 % or more of 40 trials (95 % less 3.5 sd)."""
    rng = np.random.default_rng(7)
    trials = 40
    covered = sum(
        (found := paired_interval(rng, 3, 1000, rho, seed_effect)).low <= 0 <= found.high
        for _ in range(trials)
    )
    assert covered / trials >= 0.82


def test_naive_intervals_would_be_too_narrow():
    """What blocks are for: with correlated requests, shuffling them first shrinks the interval."""
    rng = np.random.default_rng(3)
    values = np.exp(correlated(rng, 6400, 0.95))
    widths = []
    for sample in (values, rng.permutation(values)):
        block = block_of(len(sample))
        drawn = resampled_mean(reduce_to_blocks(sample, block, 64), draw_weights(64, 400, 0))
        widths.append(np.subtract(*np.percentile(drawn, [97.5, 2.5])))
    assert widths[0] > 3 * widths[1]


def test_run_figures_have_only_seeds():
    found = interval(np.array([1.0, 2.0, 3.0]), None)
    expected = stats.t.interval(0.95, 2, loc=2.0, scale=1 / np.sqrt(3))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-4)
    alone = interval(np.array([1.0]), None)
    assert np.isnan(alone.low)
    assert not alone.excludes_zero


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    deviations = 0.01 * rng.standard_normal((3, 500))
    close = interval(np.array([1.0, 1.01, 0.99]), deviations)
    apart = interval(np.array([0.5, 1.0, 1.5]), deviations)
    assert close.high - close.low < 0.05
    assert apart.high - apart.low == pytest.approx(2 * 4.303 * 0.5 / np.sqrt(3), rel=0.35)
