"""The gate: equal to the plain rule, outside the gradient, late by one batch; it balances a learning gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `gates` is not installed")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import fusion_gate as naive
from torch import nn

from trimtab.errors import TrimtabError
from trimtab.fusion import GateNetwork, ModalityGate
from trimtab.fusion.datasets import load
from trimtab.fusion.gate import LEAD, PATIENCE
from trimtab.fusion.train import Recipe, begin, fit

NAMES = ["text", "vision", "audio"]


def given_logits(**settings: Any) -> ModalityGate:
    """A gate that is called with its logits; without parameters, so a gradient is asked of the input."""
    return ModalityGate(NAMES, nn.Identity(), **{"dominant": "text", **settings})


def batches(draw: st.DrawFn) -> list[list[list[float]]]:
    row = st.lists(st.floats(-6, 6, allow_subnormal=False), min_size=3, max_size=3)
    return draw(st.lists(st.lists(row, min_size=1, max_size=4), min_size=1, max_size=12))


@settings(deadline=None, max_examples=50)
@given(data=st.data(), rate=st.sampled_from([0.001, 0.01, 0.05]), bound=st.sampled_from([1.0, 2.0]))
def test_equals_the_plain_rule(data: st.DataObject, rate: float, bound: float) -> None:
    stream = data.draw(st.composite(batches)())
    gate = given_logits(load_balance_update_rate=rate, logit_bound=bound)
    expected = naive.biases(stream, [0.7, 0.15, 0.15], rate, bound)
    for batch, bias in zip(stream, expected, strict=False):
        # A mean weight that is its target to the last bits may be either side of it.
        np.testing.assert_allclose(gate.bias, bias, atol=1e-9)
        weights = gate(torch.tensor(batch)).tolist()
        for row, got in zip(batch, weights, strict=True):
            told = naive.softmax([x + b for x, b in zip(naive.bounded(row, bound), bias, strict=True)])
            np.testing.assert_allclose(got, told, atol=1e-5)
    np.testing.assert_allclose(gate.bias, expected[-1], atol=1e-9)


def test_without_balancing_it_is_the_softmax() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    gate = given_logits(enable_load_balancing=False, logits="free")
    for _ in range(3):
        assert torch.equal(gate(logits), torch.softmax(logits, -1))
    assert (gate.bias == 0).all()
    np.testing.assert_allclose(gate.load_history, torch.softmax(logits, -1).mean(0), atol=1e-6)


def test_the_bias_is_outside_the_gradient() -> None:
    """The same gradient as that of a softmax whose offset is a constant; and nothing else to train."""
    gate = given_logits()
    gate(torch.zeros(4, 3))
    bias = torch.from_numpy(gate.bias).float()
    ours = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    gate(ours).square().sum().backward()
    torch.softmax(torch.tanh(theirs) + bias, -1).square().sum().backward()
    assert torch.allclose(ours.grad, theirs.grad)
    assert list(gate.parameters()) == []


def test_a_batch_is_served_with_the_bias_of_those_before() -> None:
    gate = given_logits(load_balance_update_rate=0.1)
    even = torch.full((2, 3), 1 / 3)
    assert torch.allclose(gate(torch.zeros(2, 3)), even)
    after = gate(torch.zeros(2, 3))
    assert after[0, 0] > 1 / 3 > after[0, 1]


def test_nothing_is_learnt_from_evaluation() -> None:
    gate = given_logits()
    gate.eval()
    gate(torch.zeros(2, 3))
    gate.train()
    with torch.no_grad():  # also the first pass of activation checkpointing, which would count twice
        gate(torch.zeros(2, 3))
    assert gate.num_batches == 0
    assert np.isnan(gate.load_history).all()


def test_missing_modalities_weigh_nothing_and_their_samples_are_not_counted() -> None:
    gate = given_logits()
    present = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    weights = gate(torch.tensor([[0.0, 9.0, 0.0]] * 3), present=present)
    assert torch.allclose(weights[0], torch.tensor([0.5, 0.0, 0.5]))
    assert torch.equal(weights[2], torch.zeros(3))
    np.testing.assert_allclose(gate.load_history, weights[1].numpy(), atol=1e-6)
    gate(torch.zeros(1, 3), present=present[:1])
    gate.settle()
    assert gate.num_batches == 1  # no complete sample in the second


def test_the_dominant_is_detected_once_and_kept() -> None:
    gate = given_logits(dominant=None, detect_after=5, load_balance_update_rate=0.05)
    for _ in range(20):
        gate(torch.zeros(4, 3))
    assert gate.dominant is None  # even weights: nobody leads
    assert (gate.bias == 0).all()
    for _ in range(400):
        gate(torch.tensor([[0.0, 2.0, 0.0]]))
    assert gate.dominant == "vision"
    np.testing.assert_allclose(gate.target(), [0.15, 0.7, 0.15])
    for _ in range(400):
        gate(torch.tensor([[9.0, 0.0, 0.0]]))
    assert gate.dominant == "vision"
    assert 0 < LEAD < 1


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_any_number_of_modalities_reaches_its_target(count: int) -> None:
    names = [f"m{index}" for index in range(count)]
    gate = ModalityGate(names, nn.Identity(), dominant="m1", load_balance_update_rate=0.02)
    generator = torch.Generator().manual_seed(0)
    offset = torch.linspace(-3, 3, count)
    for _ in range(600):
        weights = gate(torch.randn(64, count, generator=generator) + offset)
    np.testing.assert_allclose(weights.mean(0), gate.target(), atol=0.03)
    assert gate.alarm == ""


def test_a_gate_that_cancels_the_bias_raises_the_alarm() -> None:
    """Free logits that move against the bias: what the law does cannot be seen in the weights."""
    gate = given_logits(logits="free", load_balance_update_rate=0.05)
    for _ in range(400):
        fought = torch.tensor([[5.0, 0.0, 0.0]]) - torch.from_numpy(gate.bias).float()
        gate(fought)
    bound = gate.law.limits.bound
    assert bound is not None
    assert np.abs(gate.bias).max() <= bound + 1e-9  # no wind-up
    assert "the gate cancels the bias" in gate.alarm
    assert "text has 0.99" in gate.alarm
    gate.law.bias = gate.law.bias * 0  # released: the alarm ends with the cause
    gate(torch.zeros(1, 3))
    assert gate.alarm == ""
    assert PATIENCE > 1


def test_state_goes_on_where_it_was() -> None:
    def stream() -> list[Any]:
        generator = torch.Generator().manual_seed(3)
        return [torch.randn(8, 3, generator=generator) for _ in range(60)]

    whole, first = given_logits(dominant=None, detect_after=2), given_logits(dominant=None, detect_after=2)
    for batch in stream():
        whole(batch + torch.tensor([2.0, 0.0, 0.0]))
    for batch in stream()[:30]:
        first(batch + torch.tensor([2.0, 0.0, 0.0]))
    second = given_logits(dominant=None)
    second.load_state_dict(first.state_dict())
    for batch in stream()[30:]:
        second(batch + torch.tensor([2.0, 0.0, 0.0]))
    assert second.dominant == whole.dominant == "text"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    with pytest.raises(TrimtabError, match="not one of 2 modalities"):
        ModalityGate(["a", "b"], nn.Identity()).load_state_dict(first.state_dict())


def test_loads_of_all_processes_are_summed() -> None:
    """Two halves of a batch on two processes move the bias as the whole does on one."""
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(5))
    whole, other = given_logits(), given_logits()
    other(logits[4:])
    assert other._pending is not None
    theirs = other._pending.double().numpy()
    here = given_logits(reduce=lambda load: load + theirs)
    whole(logits)
    here(logits[:4])
    np.testing.assert_array_equal(here.bias, whole.bias)
    np.testing.assert_allclose(here.load_history, whole.load_history)


def test_it_takes_over_in_three_lines() -> None:
    """A model that had softmax(network(features)): its network, its features."""
    network = GateNetwork([4, 4, 4])
    features = [torch.randn(6, 4, generator=torch.Generator().manual_seed(index)) for index in range(3)]
    gate = ModalityGate(["text", "vision", "audio"], network)
    weights = gate(features)
    assert weights.shape == (6, 3)
    assert torch.allclose(weights, torch.softmax(torch.tanh(network(features)), -1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dominant": "txt"}, "Did you mean 'text'"),
        ({"target_balance_ratio": 0.4}, "at most 1/3"),
        ({"target_balance_ratio": 0.0}, "above 0"),
        ({"load_balance_update_rate": -1.0}, "load_balance_update_rate must be a number above 0"),
        ({"logits": "bound"}, "Did you mean 'bounded'"),
        ({"logit_bound": 0.0}, "logit_bound must be"),
        ({"detect_after": 0}, "at least 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrimtabError, match=message):
        given_logits(**settings)


def test_bad_names_and_logits() -> None:
    for names in (["text"], ["text", "text"], "text"):
        with pytest.raises(TrimtabError, match="two or more modalities"):
            ModalityGate(names, nn.Identity())
    with pytest.raises(TrimtabError, match="last size must be 3"):
        given_logits()(torch.zeros(2, 4))
    gate = given_logits()
    gate(torch.full((2, 3), float("nan")))
    with pytest.raises(TrimtabError, match="diverged"):
        gate.settle()


def test_it_balances_a_gate_that_learns_and_the_sketch_does_not() -> None:
    """Real data, the same model and batches: the law with bounded logits holds the target, the rule as it
    was written leaves the weights and winds its bias up."""
    data = load_breast_cancer()
    recipe = {"epochs": 30, "batch_size": 14, "dominant": "worst"}
    ours, literal = begin(data, Recipe("balanced", **recipe)), begin(data, Recipe("literal", **recipe))
    fit(ours)
    fit(literal)
    off = {
        name: np.abs(np.array(each.history[-1]["test_weights"]) - ours.model.gate.target()).max()
        for name, each in (("ours", ours), ("literal", literal))
    }
    assert off["ours"] < 0.05
    assert off["literal"] > 0.15
    assert np.abs(ours.model.gate.bias).max() < 1.5
    assert np.abs(literal.model.gate.bias).max() > 4
    assert ours.model.gate.alarm == ""


def load_breast_cancer() -> Any:
    pytest.importorskip("sklearn", reason="breast-cancer comes with scikit-learn")
    return load("breast-cancer")
