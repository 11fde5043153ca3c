"""Load measures: the worked example, naive definitions, the floor that chance sets, and bad loads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trimtab.balance import measures
from trimtab.balance.arrays import as_load, as_target, relative_load
from trimtab.balance.measures import MEASURES, max_violation, noise_floor, summary
from trimtab.errors import TrimtabError

EXAMPLE = [70, 20, 5, 3, 1, 1, 0, 0]
LOADS = arrays.arrays(np.int64, (3, 5), elements=st.integers(0, 1000)).filter(lambda a: a.any(axis=1).all())


def test_the_worked_example() -> None:
    """Figures worked out apart from this code, to their printed digits."""
    found = summary(EXAMPLE)
    assert found["max_violation"] == pytest.approx(4.60)
    assert found["cv"] == pytest.approx(1.81, abs=0.005)
    assert found["balancedness"] == pytest.approx(0.179, abs=0.0005)
    assert found["normalised_entropy"] == pytest.approx(0.442, abs=0.0005)
    assert found["share_variance"] == pytest.approx(0.0511, abs=0.00005)
    assert found["dead_fraction"] == 0.25


@settings(deadline=None)
@given(loads=LOADS)
def test_naive_definitions(loads: np.ndarray) -> None:
    for row in loads.astype(float):
        experts, mean = len(row), row.mean()
        shares = row / row.sum()
        ours = summary(row)
        assert ours["max_violation"] == pytest.approx((row.max() - mean) / mean)
        assert ours["cv"] == pytest.approx(row.std() / mean)
        assert ours["jain"] == pytest.approx(row.sum() ** 2 / (experts * (row**2).sum()))
        differences = sum(abs(a - b) for a in row for b in row)
        assert ours["gini"] == pytest.approx(differences / (2 * experts**2 * mean), abs=1e-12)
        entropy = -sum(p * math.log(p) for p in shares if p > 0) / math.log(experts)
        assert ours["normalised_entropy"] == pytest.approx(entropy, abs=1e-12)
        assert ours["share_variance"] == pytest.approx(np.var(shares))
        assert ours["balancedness"] == pytest.approx(mean / row.max())
        assert ours["dead_fraction"] == pytest.approx(sum(row == 0) / experts)


@pytest.mark.parametrize("name", MEASURES)
@settings(deadline=None)
@given(loads=LOADS, scale=st.sampled_from([1e-3, 0.5, 128.0]))
def test_scale_order_and_rows(name: str, loads: np.ndarray, scale: float) -> None:
    measure = MEASURES[name]
    found = measure(loads)
    assert found.shape == (3,)
    np.testing.assert_allclose(measure(loads * scale), found, atol=1e-12)
    np.testing.assert_allclose(measure(loads[:, ::-1]), found, atol=1e-12)
    np.testing.assert_allclose([measure(row) for row in loads], found, atol=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_torch_gives_the_same(name: str) -> None:
    torch = pytest.importorskip("torch")
    loads = np.random.default_rng(0).integers(0, 50, (2, 3, 8))
    measure = MEASURES[name]
    np.testing.assert_allclose(measure(torch.from_numpy(loads)).numpy(), measure(loads), atol=1e-12)


@pytest.mark.parametrize(
    ("experts", "draws", "floor"),
    [(8, 4096, 0.063), (16, 8192, 0.079), (64, 8192, 0.212), (256, 32768, 0.259)],
)
def test_noise_floor(experts: int, draws: int, floor: float) -> None:
    assert noise_floor(experts, draws) == pytest.approx(floor, abs=0.0015)


def test_excess_of_chance_alone_is_zero() -> None:
    loads = np.random.default_rng(1).multinomial(4096, [1 / 16] * 16, size=500)
    assert measures.excess_violation(loads).mean() == pytest.approx(0.0, abs=0.005)
    expected = (16 - 1) / 4096
    assert measures.squared_variation(loads).mean() == pytest.approx(expected, rel=0.05)
    skewed = np.arange(1.0, 17.0) / 136
    drawn = np.random.default_rng(2).multinomial(4096, skewed, size=500)
    assert measures.squared_variation(drawn, skewed).mean() == pytest.approx(expected, rel=0.05)


def test_global_and_per_batch() -> None:
    """A load that swings is even over all batches and uneven in each."""
    swinging = np.array([[[3, 1]], [[1, 3]]] * 5)
    assert measures.max_violation_global(swinging) == 0.0
    assert measures.max_violation_batch(swinging) == 0.5
    with pytest.raises(TrimtabError, match="batches"):
        measures.max_violation_global([1, 2])


def test_targets() -> None:
    assert max_violation([70, 15, 15], target=[0.70, 0.15, 0.15]) == pytest.approx(0.0)
    assert max_violation([70, 15, 15], target=[2, 1, 1]) == pytest.approx(0.4)
    _, load = as_load(np.ones((2, 3)))
    np.testing.assert_allclose(
        relative_load(load, as_target([[1, 1, 2], [1, 1, 1]], load))[0], [4 / 3, 4 / 3, 2 / 3]
    )
    for wrong in ([1, 1], [0, 1, 1], [1, -1, 1], [1, np.nan, 1], np.ones((3, 3))):
        with pytest.raises(TrimtabError, match="target"):
            as_target(wrong, load)


@pytest.mark.parametrize("bad", [[-1, 2], [float("nan"), 1], [0, 0], [], 3, ["x"], [[1, 2], [0, 0]]])
def test_bad_loads(bad: Any) -> None:
    with pytest.raises(TrimtabError, match="load"):
        max_violation(bad)
    with pytest.raises(TrimtabError, match="noise floor"):
        noise_floor(0, 10)
