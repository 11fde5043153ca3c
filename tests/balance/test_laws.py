"""Bias laws: equal to the naive ones, invariant where they must be, and they balance a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oracle import bias_laws as naive

from trimtab.balance import LAWS, BiasLaw, Limits, annealed, law, load_of, saturation
from trimtab.balance.limits import centred_clip
from trimtab.balance.measures import max_violation, max_violation_global, noise_floor
from trimtab.errors import TrimtabError

READ_LOADS = ("sign", "proportional", "tanh", "window", "ewma")
MOVING = {"window": {"window_size": 3, "learning_rate": 0.02}, "ewma": {"learning_rate": 0.02}}
NAIVE: dict[str, Callable[..., list[float]]] = {
    "sign": lambda loads, target: naive.sign(loads, 0.001, target),
    "proportional": lambda loads, target: naive.proportional(loads, 0.01, target),
    "tanh": lambda loads, target: naive.tanh_momentum(loads, 0.001, 2.0, 0.5, target),
    "window": lambda loads, target: naive.window(loads, 3, 0.02, target),
    "ewma": lambda loads, target: naive.ewma(loads, 0.9, 0.02, target),
}


def made(name: str, **more: Any) -> BiasLaw:
    return law(name, **MOVING.get(name, {}), **more)


@st.composite
def streams(draw: st.DrawFn) -> np.ndarray:
    """Counts (batches, experts), every batch with some load."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(2, 6)))
    loads = draw(arrays.arrays(np.int64, shape, elements=st.integers(0, 5000)))
    loads[:, 0] += 1
    return loads


def run(bias_law: BiasLaw, loads: Any, target: Any = None) -> np.ndarray:
    for load in loads:
        bias = bias_law.update(load, target)
    return np.asarray(bias)


@pytest.mark.parametrize("name", READ_LOADS)
@settings(deadline=None)
@given(loads=streams(), data=st.data())
def test_equals_the_naive_law(name: str, loads: np.ndarray, data: st.DataObject) -> None:
    wanted = st.lists(st.floats(0.1, 10), min_size=loads.shape[1], max_size=loads.shape[1])
    target = data.draw(st.none() | wanted)
    expected = NAIVE[name](loads.tolist(), target)
    limits = Limits()  # the naive laws have no bound
    np.testing.assert_allclose(run(made(name, limits=limits), loads, target), expected, atol=1e-9)


@pytest.mark.parametrize("name", READ_LOADS)
@settings(deadline=None)
@given(loads=streams(), scale=st.sampled_from([0.001, 0.25, 3.0, 1000.0]), data=st.data())
def test_invariances(name: str, loads: np.ndarray, scale: float, data: st.DataObject) -> None:
    """Batch size and dtype change nothing; experts in another order get their biases in that order."""
    bias = run(made(name), loads)
    assert abs(bias.sum()) < 1e-9
    np.testing.assert_allclose(run(made(name), loads * scale), bias, atol=2e-9)
    np.testing.assert_array_equal(run(made(name), loads.astype(np.float32)), bias)
    order = data.draw(st.permutations(range(loads.shape[1])))
    np.testing.assert_allclose(run(made(name), loads[:, order]), bias[order], atol=1e-9)


@pytest.mark.parametrize("name", READ_LOADS)
def test_layers_are_independent(name: str) -> None:
    loads = np.random.default_rng(1).integers(1, 100, (10, 2, 3, 8))
    together = run(made(name), loads)
    for layer in np.ndindex(2, 3):
        np.testing.assert_allclose(together[layer], run(made(name), loads[(slice(None), *layer)]), atol=1e-12)


@pytest.mark.parametrize("name", READ_LOADS)
def test_torch_gives_the_same(name: str) -> None:
    torch = pytest.importorskip("torch")
    loads = np.random.default_rng(2).integers(1, 100, (20, 3, 8))
    target = np.arange(1.0, 9.0)
    limits = Limits(leak=0.01, bound=0.02)
    bias = run(made(name, limits=limits), loads, target)
    ours = made(name, limits=limits)
    for load in torch.from_numpy(loads):
        tensor = ours.update(load, torch.from_numpy(target))
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64
    np.testing.assert_allclose(tensor.numpy(), bias, atol=1e-12)


@pytest.mark.parametrize("name", READ_LOADS)
def test_a_trained_bias_is_the_start_and_its_mean_stays(name: str) -> None:
    start = np.array([[5.0, 5.1, 4.9, 5.4]], dtype=np.float32)
    moved = made(name, start=start)
    assert np.array_equal(np.asarray(moved.bias, np.float32), start)
    bias = moved.update([[9, 1, 1, 1]])
    assert abs(bias.mean() - start.mean(dtype=np.float64)) < 1e-12
    assert bias[0, 0] - bias[0, 1] < start[0, 0] - start[0, 1]


@pytest.mark.parametrize("name", READ_LOADS)
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([4, -1, 2], "lowest entry is -1"),
        ([4, np.nan, 2], "lowest entry is nan"),
        ([4, np.inf, 2], "infinite"),
        ([0, 0, 0], "all zero"),
        ([4, 1], r"shape \(2,\); expected \(3,\)"),
        (["a", "b", "c"], "array of numbers"),
        (7, "needs the shape"),
    ],
)
def test_bad_loads_change_nothing(name: str, bad: Any, says: str) -> None:
    bias_law, untouched = made(name), made(name)
    for load in ([4, 1, 2], [5, 0, 1]):
        bias_law.update(load)
        untouched.update(load)
    with pytest.raises(TrimtabError, match=says) as caught:
        bias_law.update(bad)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrimtabError, match="target"):
        bias_law.update([4, 1, 2], target=[1, 0, 1])
    np.testing.assert_array_equal(bias_law.update([1, 2, 3]), untouched.update([1, 2, 3]))


def test_an_empty_layer_is_named() -> None:
    with pytest.raises(TrimtabError, match=r"all zero in row \(1, 0\)"):
        law("sign").update([[[1, 2], [1, 2]], [[0, 0], [1, 2]]])


def test_settings_are_checked() -> None:
    for wrong in ({"rate": 0}, {"rate": "fast"}, {"rate": float("nan")}):
        with pytest.raises(TrimtabError, match="rate must be a number above 0"):
            law("sign", **wrong)
    with pytest.raises(TrimtabError, match="Did you mean 'sign'"):
        law("sing")
    with pytest.raises(TrimtabError, match="leak"):
        Limits(leak=1.0)
    with pytest.raises(TrimtabError, match="bound"):
        Limits(bound=-1.0)
    with pytest.raises(TrimtabError, match="window_size"):
        law("window", 0)


# --- limits ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(deviation=arrays.arrays(np.float64, (3, 7), elements=st.floats(-10, 10)), bound=st.floats(0.01, 5))
def test_the_clip_is_the_nearest_point(deviation: np.ndarray, bound: float) -> None:
    """Within the bound, sum zero; and equal to clip(d - shift) with the shift found by bisection."""
    found = centred_clip(np, deviation, bound)
    assert np.abs(found).max() <= bound * (1 + 1e-12)
    assert np.abs(found.sum(axis=-1)).max() < 1e-9
    for row, ours in zip(deviation, found, strict=True):
        low, high = -20.0, 20.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if np.clip(row - middle, -bound, bound).sum() > 0 else (low, middle)
        np.testing.assert_allclose(ours, np.clip(row - low, -bound, bound), atol=1e-6)


@pytest.mark.parametrize("name", READ_LOADS)
def test_no_wind_up(name: str) -> None:
    """A load that cannot be moved holds the bias at the bound, and a release shows within the memory."""
    limits = Limits(bound=0.1)
    stuck = made(name, limits=limits)
    for _ in range(2000):
        bias = stuck.update([90, 5, 5, 0])
        assert np.abs(bias).max() <= 0.1 + 1e-12
    assert saturation(bias, 0.1) >= 0.25
    for _ in range({"sign": 1, "proportional": 1, "tanh": 5}.get(name, 40)):
        released = stuck.update([0, 5, 5, 90])
    assert released[0] > bias[0] and released[3] < bias[3]


def test_leak_forgets_and_annealing_stops() -> None:
    leaking = law("sign", 0.01, limits=Limits(leak=0.1))
    for _ in range(300):
        bias = leaking.update([3, 1])
    np.testing.assert_allclose(bias, [-0.09, 0.09])  # where 0.1 b = 0.9 x step
    rate = annealed(0.02, hold=3, decay=2, final=0.01)
    assert [rate(i) for i in range(7)] == pytest.approx([0.02, 0.02, 0.02, 0.02, 0.015, 0.01, 0.01])
    stopping = law("sign", annealed(0.001, hold=5))
    biases = [stopping.update([3, 1])[1] for _ in range(10)]
    assert biases == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.005] + [0.005] * 5)


def test_without_centring_the_step_is_deepseeks() -> None:
    """Megatron's get_updated_expert_bias: b + rate sign(mean - n), nothing else."""
    load = np.array([70, 20, 5, 3, 1, 1, 0, 0])
    bias = law("sign", limits=Limits(centred=False)).update(load)
    np.testing.assert_array_equal(bias, 0.001 * np.sign(load.mean() - load))


# --- a gate ---------------------------------------------------------------------------------------

RATES: dict[str, dict[str, Any]] = {
    "sign": {"rate": annealed(0.02, 40, 60, 0.001)},
    "proportional": {"rate": annealed(0.02, 60, 60, 0.002)},
    "tanh": {"rate": annealed(0.02, 60, 60, 0.001)},
    "window": {"window_size": 5, "learning_rate": annealed(0.02, 60, 60, 0.002)},
    "ewma": {"learning_rate": annealed(0.02, 60, 60, 0.002), "decay": 0.7},
    "quantile": {"top_k": 2, "memory": 0.8},
    "quantile-histogram": {"top_k": 2, "memory": 0.8},
}


@pytest.mark.parametrize("name", LAWS)
def test_every_law_balances_a_skewed_gate(name: str) -> None:
    """MaxVio of the whole reaches the published order (0.04) beyond chance, from above 1.5 without a bias."""
    generator = np.random.default_rng(3)
    skew = generator.normal(0.0, 0.6, 16)
    bias_law = law(name, **RATES[name])
    loads, bias = [], None
    for _ in range(200):
        scores = 1 / (1 + np.exp(-skew - generator.normal(size=(512, 16))))
        loads.append(load_of(scores, bias, 2))
        bias = bias_law.update(scores if bias_law.observes == "scores" else loads[-1])
    floor = noise_floor(16, 60 * 512 * 2)
    assert max_violation(loads[0]) > 1.5
    assert max_violation_global(loads[-60:]) - floor < 0.05


def test_selection_equals_the_naive_one() -> None:
    scores = np.random.default_rng(4).integers(0, 4, (50, 6)) / 4.0  # many equal sums
    bias = np.array([0.25, 0.0, -0.25, 0.0, 0.5, 0.0])
    assert load_of(scores, bias, 2).tolist() == naive.load_of(scores.tolist(), bias.tolist(), 2)
    with pytest.raises(TrimtabError, match="top_k must be from 1 to 6"):
        load_of(scores, bias, 7)
