"""The first sketch's snippets as they were written, so that the difference can be measured.

They are here for comparison and not for use: docs/background/bias-laws.md says where each one fails. The
hybrid formula is `hybrid_correction_bias` with ``literal=True``. All take NumPy arrays (experts,).
"""

from __future__ import annotations

from collections import deque

import numpy as np


def dynamic_correction_step(
    correction_bias: np.ndarray, expert_loads: deque[np.ndarray], usage: np.ndarray, learning_rate: float
) -> np.ndarray:
    """b += rate * (1 / experts - share), shares over the window; ``usage`` joins ``expert_loads``.

    No leak and no bound: while an expert cannot be moved its bias grows without end.
    """
    expert_loads.append(usage)
    summed = np.sum(list(expert_loads), axis=0)
    stepped: np.ndarray = correction_bias + learning_rate * (1.0 / usage.size - summed / summed.sum())
    return stepped


def online_bias_increment(
    ewma_loads: np.ndarray, current_loads: np.ndarray, learning_rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """(new average, increment): e = .9 e + .1 load from zero, rate * (mean(e) - e).

    The first averages are a tenth of the load, and steps grow with the size of the batch.
    """
    ewma_loads = 0.9 * ewma_loads + 0.1 * current_loads
    return ewma_loads, learning_rate * (ewma_loads.mean() - ewma_loads)


def variance_threshold(
    history: list[float], current_loads: np.ndarray, threshold: float = 0.1
) -> tuple[bool, float]:
    """(adjust, threshold): the variance of shares (over experts - 1) against 1.5 x its mean of the last 100.

    The threshold stays in [0.05, 0.2], where no variance of more than 20 experts ever is; and it follows
    lasting imbalance upwards, so that it never acts on it.
    """
    variance = float(np.var(current_loads, ddof=1))
    if len(history) > 100:
        threshold = max(0.05, min(0.2, sum(history[-100:]) / 100 * 1.5))
    history.append(variance)
    return variance > threshold, threshold
