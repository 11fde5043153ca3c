"""What others do against a dominant modality, each a small function, for comparison.

- modality dropout: hide modalities at random in training (Neverova et al. 2015, arXiv 1501.00102);
- an auxiliary loss that pulls the mean weights of a batch to the target (as mixtures of experts had before
  loss-free balancing: Shazeer et al. 2017, arXiv 1701.06538);
- OGM-GE: slow the gradients of the modality that is ahead, add noise (Peng et al. 2022, arXiv 2203.15332);
- AGM: gradients by Shapley-based mono-modal outputs (Li et al. 2023, ICCV; 2^M forwards of the head).

OGM-GE and AGM scale the encoders' gradients between backward and the optimizer's step.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.fusion.model import FusionModel

MOST_AGM = 10.0  # clamp of the difference of ratios, as in the authors' program


def hidden_at_random(batch: int, count: int, rate: float, generator: torch.Generator) -> Tensor:
    """(batch, count) bool: each modality is there with probability 1 - rate; all where none was left."""
    there = torch.rand(batch, count, generator=generator) >= rate
    return there | ~there.any(1, keepdim=True)


def auxiliary_loss(weights: Tensor, target: NDArray[np.float64]) -> Tensor:
    """KL(target || mean weights) of a batch, nats: the entropy regulariser, up to a constant, where the
    target is uniform."""
    wanted = torch.from_numpy(target).to(weights)
    return (wanted * (wanted.log() - weights.mean(0).clamp(min=1e-12).log())).sum()


def ogm_ge(model: FusionModel, labels: Tensor, alpha: float, generator: torch.Generator) -> list[float]:
    """Scale and disturb the gradients of each encoder; returns the coefficients.

    s_m = sum over the batch of the probability of the label by modality m alone; rho_m = s_m over the mean
    of the others (their ratio for two); k_m = 1 - tanh(alpha rho_m) where rho_m > 1, else 1. Gradients of
    weight matrices and filters become k_m g + N(0, std(g)).
    """
    scores = [
        float(torch.softmax(model.head(each), -1).gather(1, labels[:, None]).sum().detach())
        for each in model.encodings
    ]
    coefficients = ogm_coefficients(scores, alpha)
    for coefficient, encoder in zip(coefficients, model.encoders, strict=True):
        for parameter in encoder.parameters():
            if parameter.grad is not None and parameter.grad.ndim >= 2:
                noise = torch.randn(parameter.grad.shape, generator=generator)
                spread = float(parameter.grad.std()) + 1e-8
                parameter.grad.mul_(coefficient).add_(spread * noise)
    return coefficients


def ogm_coefficients(scores: list[float], alpha: float) -> list[float]:
    """k_m of Peng et al. 2022, equation 10.

    >>> [round(k, 3) for k in ogm_coefficients([30.0, 20.0], alpha=0.5)]
    [0.365, 1.0]
    """
    total, others = sum(scores), len(scores) - 1
    ratios = [score * others / max(total - score, 1e-12) for score in scores]
    return [1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0 for ratio in ratios]


class AGM:
    """Adaptive gradient modulation: coefficients from Shapley mono-modal outputs and their running mean."""

    def __init__(self, count: int, alpha: float = 1.0) -> None:
        self.alpha = alpha
        self.running = [0.0] * count  # mean cross entropy of each modality's share of the output
        self.steps = 0

    def modulate(self, model: FusionModel, weights: Tensor, labels: Tensor) -> list[float]:
        """Scale the gradients of each encoder; returns the coefficients."""
        outputs = shapley_outputs(model, weights.detach())
        scores = [float(torch.nn.functional.cross_entropy(each, labels)) for each in outputs]
        coefficients = self.coefficients(scores)
        for coefficient, encoder in zip(coefficients, model.encoders, strict=True):
            for parameter in encoder.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(coefficient)
        return coefficients

    def coefficients(self, scores: list[float]) -> list[float]:
        """exp(alpha (tau_m - r_m)) with r_m = exp(mean over others of s_j - s_m), tau_m the same of running
        means: below 1 for a modality that is further ahead than it has been so far."""
        usual = lead(self.running if self.steps else scores)
        now = lead(scores)
        self.steps += 1
        self.running = [
            before + (score - before) / self.steps for before, score in zip(self.running, scores, strict=True)
        ]
        return [
            math.exp(self.alpha * min(tau - ratio, MOST_AGM)) for tau, ratio in zip(usual, now, strict=True)
        ]


def lead(scores: list[float]) -> list[float]:
    """How far each modality is ahead: exp(mean of the others' cross entropies less its own)."""
    count, mean = len(scores), sum(scores) / len(scores)
    return [math.exp(min((mean - score) * count / (count - 1), 50.0)) for score in scores]


@torch.no_grad()
def shapley_outputs(model: FusionModel, weights: Tensor) -> list[Tensor]:
    """Each modality's Shapley value of the head's output (batch, outputs), others replaced by zeros.

    They sum to the output of all less the output of none.
    """
    count = weights.shape[-1]
    value: dict[frozenset[int], Tensor] = {}
    for size in range(count + 1):
        for subset in combinations(range(count), size):
            mask = torch.zeros(count)
            mask[list(subset)] = 1.0
            value[frozenset(subset)] = model.head(model.fused(weights * mask))
    return [shapley_of(member, count, value) for member in range(count)]


def shapley_of(member: int, count: int, value: dict[frozenset[int], Tensor]) -> Tensor:
    """Weighted mean over coalitions S without ``member`` of value(S + member) - value(S)."""
    others = [each for each in range(count) if each != member]
    total = torch.zeros(())
    for size in range(count):
        share = 1 / (count * math.comb(count - 1, size))
        for subset in combinations(others, size):
            without = frozenset(subset)
            total = total + share * (value[without | {member}] - value[without])
    return total
