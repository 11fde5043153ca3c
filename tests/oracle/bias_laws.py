"""The laws once more, one expert and one token at a time in plain Python: slow, and obviously right."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def error(load: Row, target: Row | None = None) -> list[float]:
    """1 - share / wanted share."""
    wanted = [1.0] * len(load) if target is None else list(target)
    return [1.0 - (n / sum(load)) / (w / sum(wanted)) for n, w in zip(load, wanted, strict=True)]


def centred(bias: Row) -> list[float]:
    mean = sum(bias) / len(bias)
    return [b - mean for b in bias]


def sign(loads: Sequence[Row], rate: float, target: Row | None = None) -> list[float]:
    """torchtitan's step: b += rate sign(mean - n), less the mean step."""
    bias = [0.0] * len(loads[0])
    for load in loads:
        steps = [rate * ((e > 0) - (e < 0)) for e in error(load, target)]
        bias = [b + s for b, s in zip(bias, centred(steps), strict=True)]
    return bias


def proportional(loads: Sequence[Row], rate: float, target: Row | None = None) -> list[float]:
    bias = [0.0] * len(loads[0])
    for load in loads:
        bias = [b + rate * e for b, e in zip(bias, error(load, target), strict=True)]
    return centred(bias)


def tanh_momentum(
    loads: Sequence[Row], rate: float, kappa: float, momentum: float, target: Row | None = None
) -> list[float]:
    """SMEBU with each push centred, as the paper writes it."""
    bias = [0.0] * len(loads[0])
    velocity = list(bias)
    for load in loads:
        push = centred([rate * math.tanh(kappa * e) for e in error(load, target)])
        velocity = [momentum * v + (1 - momentum) * p for v, p in zip(velocity, push, strict=True)]
        bias = [b + v for b, v in zip(bias, velocity, strict=True)]
    return bias


def window(loads: Sequence[Row], size: int, rate: float, target: Row | None = None) -> list[float]:
    bias = [0.0] * len(loads[0])
    for i in range(len(loads)):
        recent = loads[max(0, i + 1 - size) : i + 1]
        summed = [sum(column) for column in zip(*recent, strict=True)]
        bias = [b + rate * e for b, e in zip(bias, error(summed, target), strict=True)]
    return centred(bias)


def ewma(loads: Sequence[Row], decay: float, rate: float, target: Row | None = None) -> list[float]:
    """The average as a weighted mean of all loads so far: what debiasing is meant to give."""
    bias = [0.0] * len(loads[0])
    for i in range(len(loads)):
        weights = [decay ** (i - j) for j in range(i + 1)]
        average = [
            sum(w * n for w, n in zip(weights, column, strict=True)) / sum(weights)
            for column in zip(*loads[: i + 1], strict=True)
        ]
        bias = [b + rate * e for b, e in zip(bias, error(average, target), strict=True)]
    return centred(bias)


def prices(scores: Sequence[Row], bias: Row, top_k: int) -> list[float]:
    """The (k+1)-th largest biased score of each token."""
    return [sorted((s + b for s, b in zip(row, bias, strict=True)), reverse=True)[top_k] for row in scores]


def takers(scores: Sequence[Row], price: Row, expert: int, bias: float) -> int:
    """Tokens that would take ``expert`` at these prices if its bias were ``bias``."""
    return sum(row[expert] + bias > p for row, p in zip(scores, price, strict=True))


def load_of(scores: Sequence[Row], bias: Row, top_k: int) -> list[int]:
    """Each token takes its top_k biased scores; equal ones by number."""
    counts = [0] * len(bias)
    for row in scores:
        order = sorted(range(len(bias)), key=lambda j: (-(row[j] + bias[j]), j))
        for j in order[:top_k]:
            counts[j] += 1
    return counts
