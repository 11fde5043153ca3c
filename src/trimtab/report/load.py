"""How evenly load lies on the replicas: over the whole run, and from moment to moment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def evenness(load: NDArray[np.generic]) -> dict[str, float]:
    """CV, Jain index and max/mean of ``load`` (R,) or, averaged over rows, of (S, R).

    Rows without load say nothing and are left out; with no load at all the figures are NaN.
    """
    rows = np.atleast_2d(np.asarray(load, dtype=np.float64))
    total = rows.sum(axis=1)
    rows, total = rows[total > 0], total[total > 0]
    if not len(rows):
        return {"cv": np.nan, "jain": np.nan, "max_over_mean": np.nan}
    replicas = rows.shape[1]
    squares = np.einsum("ij,ij->i", rows, rows)
    jain = total * total / (replicas * squares)
    # variance / mean^2 = n * sum x^2 / (sum x)^2 - 1 = 1 / jain - 1
    cv = np.sqrt(np.maximum(1.0 / jain - 1.0, 0.0))
    return {
        "cv": float(cv.mean()),
        "jain": float(jain.mean()),
        "max_over_mean": float((rows.max(axis=1) * replicas / total).mean()),
    }


def while_arriving(sample_times: Floats, arrivals: Floats) -> NDArray[np.bool_]:
    """(S,) which samples lie between the first and the last arrival; all where none does.

    After the last arrival no router can act: an uneven end is the requests' doing.
    """
    if not len(arrivals):
        return np.ones(len(sample_times), dtype=bool)
    inside = (sample_times >= arrivals.min()) & (sample_times <= arrivals.max())
    return inside if inside.any() else np.ones(len(sample_times), dtype=bool)


def binned_mean(times: Floats, values: NDArray[np.generic], edges: Floats) -> Floats:
    """Mean of the samples ``values`` (S, ...) in each of the bins ``edges`` (B+1,): (B, ...).

    An empty bin takes the sample before it (load holds until it changes); zero before the first.
    """
    values = np.asarray(values, dtype=np.float64)
    at = np.searchsorted(times, edges, side="left")
    at[-1] = len(times)
    sums = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
    counts = np.diff(at)
    shape = (-1,) + (1,) * (values.ndim - 1)
    means = (sums[at[1:]] - sums[at[:-1]]) / np.maximum(counts, 1).reshape(shape)
    for index in np.flatnonzero(counts == 0):
        before = at[index] - 1
        means[index] = values[before] if before >= 0 else 0.0
    return np.asarray(means)
