"""The gate against the oracle, and what its bias must never touch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.gates import route
from torch.nn import functional

from trimtab.errors import TrimtabError
from trimtab.moe.gate import SCORES, TopKGate
from trimtab.moe.language_model import ExpertLayer, Shape


def gate_of(seed: int, hidden: int = 8, experts: int = 12, **settings: object) -> TopKGate:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gate = TopKGate(hidden, experts, **settings)  # type: ignore[arg-type]
        gate.set_bias(0.2 * torch.randn(experts))
    return gate


def tokens_of(seed: int, count: int, hidden: int = 8) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scores=st.sampled_from(sorted(SCORES)),
    groups=st.sampled_from([(1, 1), (3, 1), (3, 2), (4, 2), (12, 5)]),
    top_k=st.integers(1, 4),
    normalise=st.booleans(),
)
def test_equal_to_the_oracle(
    seed: int, scores: str, groups: tuple[int, int], top_k: int, normalise: bool
) -> None:
    told = {"top_k": top_k, "scores": scores, "groups": groups[0], "top_groups": groups[1]}
    gate = gate_of(seed, normalise=normalise, scale=2.5, **told)
    tokens = tokens_of(seed, 5)
    routing = gate(tokens)
    logits = (tokens @ gate.weight.T).tolist()
    for row, choices, weights in zip(logits, routing.choices.tolist(), routing.weights.tolist(), strict=True):
        bias = gate.e_score_correction_bias.tolist()
        wanted = route(row, bias, top_k, scores, *groups, normalise, 2.5)
        assert set(choices) == set(wanted)
        found = dict(zip(choices, weights, strict=True))
        assert all(found[j] == pytest.approx(wanted[j], rel=1e-4) for j in wanted)


def test_gradients_do_not_know_the_bias() -> None:
    """Where the selection is the same, weights and gradients are, to the bit."""
    gate, tokens = gate_of(1, top_k=3), tokens_of(1, 64)
    gradients, chosen = [], []
    for shift in (0.0, 0.7):  # a common offset selects the same experts
        gate.set_bias(torch.full((12,), shift))
        gate.weight.grad = None
        routing = gate(tokens)
        (routing.weights**2).sum().backward()
        gradients.append(gate.weight.grad.clone())
        chosen.append(routing.choices)
    assert torch.equal(*chosen) and torch.equal(*gradients)
    assert not gate.e_score_correction_bias.requires_grad
    assert "e_score_correction_bias" not in dict(gate.named_parameters())


def test_the_bias_selects_and_weights_stay_raw() -> None:
    gate, tokens = gate_of(2, top_k=2, normalise=False), tokens_of(2, 32)
    bias = torch.zeros(12)
    bias[5] = 10.0
    gate.set_bias(bias)
    routing = gate(tokens)
    assert (routing.choices[:, 0] == 5).all()
    assert torch.equal(routing.weights, routing.scores.gather(-1, routing.choices))
    assert routing.load()[5] == 32 and routing.load().sum() == 64


def test_batch_size_does_not_matter() -> None:
    gate, tokens = gate_of(3, top_k=3, groups=3, top_groups=2), tokens_of(3, 48)
    together = gate(tokens.reshape(4, 12, 8))
    alone = [gate(token[None]) for token in tokens]
    assert torch.equal(together.choices, torch.cat([one.choices for one in alone]))
    torch.testing.assert_close(together.weights, torch.cat([one.weights for one in alone]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_bias_stays_float32(dtype: torch.dtype) -> None:
    gate = gate_of(4, top_k=2)
    before = gate.e_score_correction_bias.clone()
    storage = gate.e_score_correction_bias
    gate.set_bias(before + 1e-4)
    assert gate.e_score_correction_bias is storage
    gate.set_bias(before)
    moved = gate.to(dtype)
    assert moved.weight.dtype == dtype
    assert torch.equal(moved.e_score_correction_bias, before)
    routing = moved(tokens_of(4, 6).to(dtype))
    assert routing.scores.dtype == torch.float32


def test_shared_experts_see_every_token() -> None:
    """The layer is the weighted sum of the chosen experts, and the shared one beside."""
    torch.manual_seed(0)
    layer = ExpertLayer(Shape(hidden=8, experts=6, top_k=2, expert_width=4, shared_experts=2))
    tokens = tokens_of(5, 20)
    out, routing = layer(tokens)
    for token in range(20):
        wanted = layer.shared(tokens[token])
        for expert, weight in zip(routing.choices[token], routing.weights[token], strict=True):
            wanted = wanted + weight * (
                functional.silu(tokens[token] @ layer.up[expert]) @ layer.down[expert]
            )
        torch.testing.assert_close(out[token], wanted, rtol=1e-4, atol=1e-5)
    without, _ = ExpertLayer(Shape(hidden=8, experts=6, top_k=2, expert_width=4, shared_experts=0))(tokens)
    assert without.shape == tokens.shape


def test_an_expert_without_tokens_is_no_problem() -> None:
    torch.manual_seed(0)
    layer = ExpertLayer(Shape(hidden=8, experts=6, top_k=1, expert_width=4))
    layer.gate.set_bias([9.0, 0, 0, 0, 0, 0])
    out, routing = layer(tokens_of(6, 10))
    out.sum().backward()
    assert routing.load().tolist() == [10, 0, 0, 0, 0, 0]
    assert layer.up.grad is not None and layer.up.grad[1:].abs().sum() == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_k": 2, "scores": "sigmod"}, "sigmoid"),
        ({"top_k": 13}, "from 1 to 12"),
        ({"top_k": 4, "groups": 4, "top_groups": 1}, "from 1 to 3"),
        ({"top_k": 2, "groups": 5}, "groups must divide"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, object], said: str) -> None:
    with pytest.raises(TrimtabError, match=said):
        TopKGate(8, 12, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [[0.0] * 11, [float("nan")] * 12])
def test_a_bad_bias_changes_nothing(bias: list[float]) -> None:
    gate = gate_of(7, top_k=2)
    before = gate.e_score_correction_bias.clone()
    with pytest.raises(TrimtabError):
        gate.set_bias(bias)
    assert torch.equal(gate.e_score_correction_bias, before)
