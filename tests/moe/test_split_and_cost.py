"""Tokens over replicas against the linear programme, and what a placement costs in both regimes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import expert_placement as oracle

from trimtab.errors import TrimtabError
from trimtab.exectime import moe_layer_seconds
from trimtab.hardware import default_node, get_device, get_model
from trimtab.moe import Placement, even_placement, place, published_placement
from trimtab.moe.placement_cost import expert_seconds
from trimtab.moe.split import waterfill


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 4))
def test_balanced_is_the_optimum_of_the_programme(seed: int, devices: int, slots: int) -> None:
    generator = np.random.default_rng(seed)
    experts = int(generator.integers(devices, devices * slots + 1))
    loads = generator.lognormal(2, 1.5, experts)
    row = np.concatenate([np.arange(experts), generator.integers(experts, size=devices * slots - experts)])
    placement = Placement.from_phy2log(generator.permutation(row)[None], devices, experts)
    least = oracle.balanced_peak(loads, placement.slots[0].tolist())
    found = placement.device_loads(loads[None], "balanced").max()
    assert found == pytest.approx(least, rel=2e-6)
    assert found <= placement.device_loads(loads[None]).max() * (1 + 1e-9)
    held = placement.slot_loads(loads[None], "balanced")[0]
    for expert in range(experts):
        assert held[placement.slots[0] == expert].sum() == pytest.approx(loads[expert])
    assert (held >= 0).all()


def test_fewest_uses_one_replica_each() -> None:
    loads = np.array([[8.0, 4.0, 2.0, 0.0]])
    placement = Placement.from_phy2log([[0, 1, 0, 2, 0, 3]], 3, 4)
    held = placement.slot_loads(loads, "fewest")[0]
    assert (held > 0).sum() == 3
    assert held.sum(axis=1).tolist() == [4.0, 2.0, 8.0]  # device 2 has nothing active yet
    with pytest.raises(TrimtabError, match="unknown split 'fewer'"):
        placement.slot_loads(loads, "fewer")  # type: ignore[arg-type]


@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=8),
    st.floats(0, 1e4),
)
def test_water_finds_its_level(levels: list[float], amount: float) -> None:
    stand = np.array(levels)
    poured = waterfill(stand, amount)
    assert poured.sum() == pytest.approx(amount, abs=1e-6)
    assert (poured >= 0).all()
    wet = poured > 1e-6
    if wet.any():
        surface = (stand + poured)[wet]
        assert surface == pytest.approx(surface[0], abs=1e-6)
        assert (stand[~wet] >= surface[0] - 1e-5).all()


MODEL, DEVICE = get_model("deepseek-v3"), get_device("h200")


def skewed(layers: int, exponent: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(np.arange(1, 257) ** -exponent) for _ in range(layers)])


def test_the_cost_is_the_engine_s() -> None:
    """Even loads without replicas: the rows and experts of every rank by hand, layers added up."""
    loads, tokens = np.ones((2, 256)), 512.0
    found = expert_seconds(even_placement(2, 256, 8), loads, MODEL, DEVICE, tokens)
    rows = np.full(8, tokens * 8 / 8)
    touched = np.full(8, 32 * (1 - (1 - 8 / 256) ** tokens))
    layer = moe_layer_seconds(MODEL, DEVICE, default_node(DEVICE), rows, touched)
    assert found == pytest.approx(2 * float(layer), rel=1e-12)


def test_prompts_gain_from_even_tokens() -> None:
    loads = skewed(2, 1.0)
    plain, ours = even_placement(2, 256, 8), place(loads, 8, 32)
    assert expert_seconds(ours, loads, MODEL, DEVICE, 16384) < 0.7 * expert_seconds(
        plain, loads, MODEL, DEVICE, 16384
    )


def test_decoding_loses_by_even_tokens() -> None:
    """METRO's observation: replicas that share tokens evenly read more weights than experts in order do."""
    loads = skewed(4, 0.6)
    plain, rule = even_placement(4, 256, 8), published_placement(loads, 8, 32)
    for tokens in (64, 256):
        shared = expert_seconds(rule, loads, MODEL, DEVICE, tokens)
        assert rule.max_over_mean(loads).max() < 1.01 < plain.max_over_mean(loads).min()
        assert shared > 1.03 * expert_seconds(plain, loads, MODEL, DEVICE, tokens)
        assert expert_seconds(rule, loads, MODEL, DEVICE, tokens, split="fewest") < 0.97 * shared


def test_windows_are_costed_each() -> None:
    loads = np.stack([skewed(2, 0.5), skewed(2, 1.0)])
    placement = even_placement(2, 256, 8)
    both = expert_seconds(placement, loads, MODEL, DEVICE, 4096)
    each = [float(expert_seconds(placement, window, MODEL, DEVICE, 4096)) for window in loads]
    assert both == pytest.approx(each)


def test_the_wrong_model_is_one_line() -> None:
    loads = np.ones((1, 8))
    placement = even_placement(1, 8, 4)
    with pytest.raises(TrimtabError, match="deepseek-v3 has 256 experts; the loads have 8"):
        expert_seconds(placement, loads, MODEL, DEVICE, 64)
    with pytest.raises(TrimtabError, match="has no experts; the loads have 8"):
        expert_seconds(placement, loads, get_model("llama-3.1-8b"), DEVICE, 64)
    with pytest.raises(TrimtabError, match="tokens must be above 0"):
        expert_seconds(even_placement(1, 256, 4), np.ones((1, 256)), MODEL, DEVICE, 0)
