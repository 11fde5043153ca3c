"""The rivals do what their papers say, and Shapley values are those of all orders."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `gates` is not installed")

import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import fusion_gate as naive

from trimtab.fusion import FusionModel, GateNetwork, ModalityGate
from trimtab.fusion.measures import gradient_norms
from trimtab.fusion.rivals import (
    AGM,
    auxiliary_loss,
    hidden_at_random,
    ogm_coefficients,
    ogm_ge,
    shapley_of,
    shapley_outputs,
)

SHAPES = {"a": (5,), "b": (4, 3), "c": (2,)}


def model() -> tuple[FusionModel, list[torch.Tensor], torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fusion = FusionModel(SHAPES, 4, ModalityGate(list(SHAPES), GateNetwork([64] * 3), dominant="a"))
        views = [torch.randn(7, *shape) for shape in SHAPES.values()]
    return fusion, views, torch.arange(7) % 4


@given(st.integers(1, 4), st.data())
def test_shapley_values_are_those_of_all_orders(count: int, data: st.DataObject) -> None:
    table: dict[frozenset[int], float] = {}
    for number in range(2**count):
        subset = frozenset(i for i in range(count) if number >> i & 1)
        table[subset] = data.draw(st.floats(-5, 5))
    tensors = {subset: torch.tensor(value, dtype=torch.float64) for subset, value in table.items()}
    ours = [float(shapley_of(member, count, tensors)) for member in range(count)]
    np.testing.assert_allclose(ours, naive.shapley(count, table.__getitem__), atol=1e-9)
    assert sum(ours) == pytest.approx(table[frozenset(range(count))] - table[frozenset()], abs=1e-9)


def test_mono_modal_outputs_sum_to_the_output() -> None:
    fusion, views, _ = model()
    output = fusion(views).detach()
    shares = shapley_outputs(fusion, fusion.weights)
    assert torch.allclose(sum(shares) + fusion.head.bias, output, atol=1e-5)


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.floats(0.05, 1.0))
def test_ogm_is_the_papers_for_two_modalities(first: float, second: float, alpha: float) -> None:
    """Equation 10 of Peng et al. 2022, with rho the ratio of the two scores."""
    rho = first / second
    expected = [
        1 - math.tanh(alpha * rho) if rho > 1 else 1.0,
        1 - math.tanh(alpha / rho) if 1 / rho > 1 else 1.0,
    ]
    assert ogm_coefficients([first, second], alpha) == pytest.approx(expected, rel=1e-9)


def test_ogm_slows_the_one_ahead_and_disturbs_all() -> None:
    fusion, views, labels = model()
    torch.nn.functional.cross_entropy(fusion(views), labels).backward()
    before = [p.grad.clone() for p in fusion.encoders[0].parameters()]
    coefficients = ogm_ge(fusion, labels, 0.5, torch.Generator().manual_seed(0))
    assert min(coefficients) < 1
    for old, parameter in zip(before, fusion.encoders[0].parameters(), strict=True):
        if old.ndim < 2:
            assert torch.equal(old, parameter.grad)  # biases are left alone
        else:
            noise = parameter.grad - coefficients[0] * old
            assert float(noise.std()) == pytest.approx(float(coefficients[0] * old.std()), rel=0.35)


def test_agm_is_the_papers_for_two_modalities() -> None:
    """The ratio of two is exp(the other's cross entropy less its own); the first step changes nothing."""
    agm = AGM(2, alpha=0.7)
    assert agm.coefficients([1.0, 2.0]) == [1.0, 1.0]
    usual, now = math.exp(2.0 - 1.0), math.exp(3.0 - 0.5)
    assert agm.coefficients([0.5, 3.0])[0] == pytest.approx(math.exp(0.7 * (usual - now)))
    assert agm.running == pytest.approx([0.75, 2.5])


def test_agm_scales_every_encoder_by_its_coefficient() -> None:
    fusion, views, labels = model()
    agm = AGM(3)
    agm.coefficients([1.0, 1.0, 1.0])
    torch.nn.functional.cross_entropy(fusion(views), labels).backward()
    before = gradient_norms(fusion)
    coefficients = agm.modulate(fusion, fusion.weights, labels)
    assert gradient_norms(fusion) == pytest.approx([a * b for a, b in zip(before, coefficients, strict=True)])
    assert len(set(coefficients)) == 3


def test_the_auxiliary_loss_is_least_at_the_target() -> None:
    target = np.array([0.7, 0.15, 0.15])
    at_target = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.2, 0.3]])
    assert float(auxiliary_loss(at_target, target)) == pytest.approx(0.0, abs=1e-6)
    weights = torch.tensor([[0.98, 0.01, 0.01]], requires_grad=True)
    loss = auxiliary_loss(weights, target)
    loss.backward()
    assert float(loss.detach()) > 0.3
    assert weights.grad[0, 0] > weights.grad[0, 1]  # downhill is less of the first


def test_hiding_leaves_something_of_every_sample() -> None:
    there = hidden_at_random(4000, 3, 0.6, torch.Generator().manual_seed(0))
    assert there.any(1).all()
    left = 1 - 0.6 + 0.6**3  # where nothing was left, all is
    assert float(there.double().mean()) == pytest.approx(left, abs=0.02)
