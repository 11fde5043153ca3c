"""The gate's rule in plain Python, one batch and one number at a time; Shapley values by all orders."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def bounded(values: list[float], bound: float) -> list[float]:
    return [bound * math.tanh(value / bound) for value in values]


def biases(
    batches: list[list[list[float]]], target: list[float], rate: float, bound: float
) -> list[list[float]]:
    """The bias that each batch of logits (samples x modalities) is weighed with, and the one after the last.

    Sign rule on mean weights, centred. Only for targets that the bias's own bound does not touch.
    """
    bias = [0.0] * len(target)
    served = [list(bias)]
    for batch in batches:
        weights = [softmax([x + b for x, b in zip(bounded(row, bound), bias, strict=True)]) for row in batch]
        means = [sum(column) / len(batch) for column in zip(*weights, strict=True)]
        for index, (mean, wanted) in enumerate(zip(means, target, strict=True)):
            error = 1 - mean / wanted
            bias[index] += rate * ((error > 0) - (error < 0))
        middle = sum(bias) / len(bias)
        bias = [value - middle for value in bias]
        served.append(list(bias))
    return served


def shapley(count: int, value: Callable[[frozenset[int]], float]) -> list[float]:
    """Mean marginal contribution over all orders in which the members may come."""
    totals = [0.0] * count
    orders = list(permutations(range(count)))
    for order in orders:
        there: frozenset[int] = frozenset()
        for member in order:
            totals[member] += value(there | {member}) - value(there)
            there = there | {member}
    return [total / len(orders) for total in totals]
