"""The loss terms: their value where even, what they are counted over, and where they push."""

from __future__ import annotations

import pytest
import torch

from trimtab.errors import TrimtabError
from trimtab.moe.gate import Routing
from trimtab.moe.losses import balancing_loss, global_batch_loss, sequence_loss


def routing_of(chosen: list[int], experts: int = 4) -> Routing:
    """Top-1 routing in which the chosen expert has nearly all the score."""
    choices = torch.tensor(chosen)[:, None]
    scores = torch.full((len(chosen), experts), 1e-4).scatter(-1, choices, 1.0)
    return Routing(scores, choices, torch.ones_like(choices, dtype=torch.float32))


def test_even_is_one_and_collapse_is_the_number_of_experts() -> None:
    assert float(balancing_loss(routing_of([0, 1, 2, 3]))) == pytest.approx(1.0)
    assert float(balancing_loss(routing_of([2, 2, 2, 2]))) == pytest.approx(4.0, rel=1e-2)


def test_what_is_even_over_the_batch_may_not_be_within_a_sequence() -> None:
    """Two sequences with two experts each: specialised, and even together."""
    routing = routing_of([0, 1, 0, 1, 2, 3, 2, 3])
    assert float(global_batch_loss([routing])) == pytest.approx(1.0)
    assert float(sequence_loss([routing], 2)) == pytest.approx(2.0, rel=1e-2)
    assert float(sequence_loss([routing, routing], 2)) == pytest.approx(4.0, rel=1e-2)


def test_its_gradient_lowers_the_busy_experts_scores() -> None:
    logits = torch.tensor([[2.0, 0.1, 0.0], [2.0, 0.0, 0.1], [0.0, 0.1, 2.0]], requires_grad=True)
    scores = logits.sigmoid()
    choices = scores.topk(1, dim=-1).indices
    balancing_loss(Routing(scores, choices, scores.gather(-1, choices))).backward()
    assert logits.grad is not None
    pushed = logits.grad.sum(dim=0)
    assert pushed[0] > 0 > pushed[1]


def test_parts_must_be_equal() -> None:
    with pytest.raises(TrimtabError, match="do not make 3 equal parts"):
        balancing_loss(routing_of([0, 1, 2, 3]), 3)
