"""A top-k gate whose bias decides who is selected and nothing else.

selected = the k largest of score + bias; weights = the scores of the selected, normalised. The bias is a
buffer without gradient, so a law may move it while the model trains or serves, and no loss term is needed
(Wang et al. 2024, arXiv 2408.15664; groups as in DeepSeek-V3, 2412.19437).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.errors import TrimtabError, unknown


def sqrt_softplus(logits: Tensor) -> Tensor:
    """Scores without an upper bound, as DeepSeek-V4 has them."""
    return functional.softplus(logits).sqrt()


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sqrt-softplus": sqrt_softplus,
}


class Routing(NamedTuple):
    """What a gate decided for tokens: scores (tokens, experts), choices and weights (tokens, top_k)."""

    scores: Tensor
    choices: Tensor
    weights: Tensor

    def load(self) -> Tensor:
        """Tokens per expert (experts,), float64: exact, and what the bias laws take."""
        counts = torch.bincount(self.choices.reshape(-1), minlength=self.scores.shape[-1])
        return counts.to(torch.float64)


class TopKGate(nn.Module):
    """``top_k`` of ``experts`` for each token, from the ``top_groups`` best of ``groups`` equal groups.

    ``scores``: "sigmoid", "softmax" or "sqrt-softplus" of the logits. ``normalise``: the weights of a token
    sum to ``scale``; without it they are scale x score. A group is as good as its two best biased scores
    together. The bias is the buffer ``e_score_correction_bias`` (experts,), always float32: its name in
    the checkpoints of DeepSeek-V3 and most after it.
    """

    def __init__(
        self,
        hidden: int,
        experts: int,
        top_k: int,
        *,
        scores: str = "sigmoid",
        groups: int = 1,
        top_groups: int = 1,
        normalise: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if scores not in SCORES:
            raise unknown("score function", scores, SCORES)
        if groups < 1 or experts % groups or not 1 <= top_groups <= groups:
            raise TrimtabError(
                f"{experts} experts in {groups} groups of which {top_groups} are taken: groups must divide "
                "experts, and top_groups be from 1 to groups"
            )
        if not 1 <= top_k <= top_groups * (experts // groups):
            raise TrimtabError(
                f"top_k must be from 1 to {top_groups * (experts // groups)}, the experts that a token can "
                f"reach; given {top_k}"
            )
        self.experts, self.top_k, self.scores = experts, top_k, scores
        self.groups, self.top_groups = groups, top_groups
        self.normalise, self.scale = normalise, scale
        self.weight = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.e_score_correction_bias: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves with the module, but stays float32: in bfloat16 a law's small steps would vanish."""
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        self.e_score_correction_bias = bias.to(self.e_score_correction_bias.device)
        return self

    def forward(self, tokens: Tensor) -> Routing:
        """Routing of tokens (..., hidden), flattened to one row each. Scores are float32."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        scores = SCORES[self.scores](functional.linear(flat.float(), self.weight.float()))
        with torch.no_grad():
            choices = self.select(scores)
        weights = scores.gather(-1, choices)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(scores, choices, self.scale * weights)

    def select(self, scores: Tensor) -> Tensor:
        """The experts (tokens, top_k) that tokens with these scores (tokens, experts) take, best first."""
        biased = scores + self.e_score_correction_bias
        if self.top_groups < self.groups:
            grouped = biased.unflatten(-1, (self.groups, -1))
            worth = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
            kept = torch.zeros_like(worth, dtype=torch.bool)
            kept.scatter_(-1, worth.topk(self.top_groups, dim=-1).indices, True)
            biased = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        return biased.topk(self.top_k, dim=-1).indices

    @torch.no_grad()
    def set_bias(self, bias: Any) -> None:
        """Copy a bias (experts,) in place, so that compiled graphs and other holders see it."""
        given = torch.as_tensor(bias)
        if given.shape != self.e_score_correction_bias.shape:
            raise TrimtabError(f"a bias for {self.experts} experts is due; given shape {tuple(given.shape)}")
        if not bool(given.isfinite().all()):
            raise TrimtabError("bias must be finite; it has NaN or infinite entries")
        self.e_score_correction_bias.copy_(given)
