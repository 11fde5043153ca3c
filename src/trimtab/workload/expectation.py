"""What a router may assume about the length of an answer that nobody has written yet."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STREAM = 0x6C656E  # of the seed, apart from those of the workload


def expected_outputs(requests: NDArray[Any], knows: str, error: float, seed: int) -> NDArray[np.float64]:
    """Output tokens (N,) that a router expects of each request.

    Parameters
    ----------
    requests
        REQUEST (N,) with true ``decode_tokens`` and ``klass``.
    knows
        ``none``: the mean over all requests; ``class-mean``: over the request's class; ``oracle``: the truth;
        ``predictor``: the truth times exp(``error`` * z), z standard normal, so that the median is right and
        two predictions in three lie within a factor exp(error). At least one token.
    seed
        of the predictor's errors; they belong to the request, so that all routers share them.
    """
    truth = requests["decode_tokens"].astype(np.float64)
    if knows == "oracle":
        return truth
    if knows == "predictor":
        rng = np.random.default_rng([seed, STREAM])
        predicted: NDArray[np.float64] = np.maximum(
            truth * np.exp(error * rng.standard_normal(len(truth))), 1.0
        )
        return predicted
    if knows == "class-mean":
        _, member = np.unique(requests["klass"], return_inverse=True)
        means: NDArray[np.float64] = np.bincount(member, truth) / np.bincount(member)
        return means[member]
    assert knows == "none", knows
    return np.full(len(truth), truth.mean())
