"""How sure is a difference between two routers? A paired block bootstrap within seeds, plus what seeds add.

Each router sees the same arrivals at the same seed. Requests close in time share a queue, so they are
no independent samples: a run is cut into blocks of consecutive requests, and blocks are resampled,
the same blocks for every router (paired). Resampling a handful of seeds as well would be no remedy
for having few (an interval inside three points covers at most 75 %); so the second level is a random
effect: where seeds disagree by more than blocks explain, the excess variance is added as a Student t
with (seeds - 1) degrees of freedom. docs/background/comparing-routers.md has the reasons and figures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_BLOCKS = 64
MIN_BLOCK = 20  # requests
DRAWS = 1000
LEVEL = 0.95
# Bin edges of a block histogram, as probabilities of the run's own distribution: finer in the tail.
EDGES = np.unique(np.concatenate([np.linspace(0, 0.96, 241), 1 - np.geomspace(0.04, 2e-4, 200), [1.0]]))


class Blocks(NamedTuple):
    """One quantity of one run, by blocks of consecutive requests: all that the bootstrap needs."""

    edges: Floats  # (H + 1,) bin edges
    counts: Floats  # (K, H) values per bin
    sums: Floats  # (K,)


class Interval(NamedTuple):
    """A point estimate and its 95 % interval; the bounds are NaN where nothing can be said."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """False also where the bounds are NaN."""
        return self.low > 0 or self.high < 0


def block_of(num_requests: int) -> NDArray[np.int64]:
    """(N,) the block of each request: up to 64 blocks of equal size, of at least 20 requests."""
    blocks = max(1, min(MAX_BLOCKS, num_requests // MIN_BLOCK))
    return np.arange(num_requests, dtype=np.int64) * blocks // max(num_requests, 1)


def reduce_to_blocks(values: Floats, block: NDArray[np.int64], num_blocks: int) -> Blocks:
    """Histogram and sum per block of ``values`` (n,), whose blocks are ``block`` (n,)."""
    if not len(values):
        return Blocks(np.array([0.0, 1.0]), np.zeros((num_blocks, 1)), np.zeros(num_blocks))
    edges = np.unique(np.quantile(values, EDGES))
    if len(edges) == 1:
        edges = np.array([edges[0], np.nextafter(edges[0], np.inf)])
    bins = len(edges) - 1
    at = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    counts = np.bincount(block * bins + at, minlength=num_blocks * bins).reshape(num_blocks, bins)
    return Blocks(edges, counts.astype(np.float64), np.bincount(block, values, num_blocks).astype(np.float64))


def draw_weights(num_blocks: int, draws: int, seed: int) -> Floats:
    """(draws + 1, K) how often each block is taken; row 0 takes each once, for the point estimate."""
    rng = np.random.default_rng([seed, num_blocks])
    weights = rng.multinomial(num_blocks, np.full(num_blocks, 1 / num_blocks), size=draws)
    return np.concatenate([np.ones((1, num_blocks)), weights])


def resampled_mean(blocks: Blocks, weights: Floats) -> Floats:
    """(draws + 1,) the mean under each row of ``weights``."""
    return np.asarray((weights @ blocks.sums) / np.maximum(weights @ blocks.counts.sum(axis=1), 1e-300))


def resampled_quantiles(blocks: Blocks, weights: Floats, shares: tuple[float, ...]) -> Floats:
    """(len(shares), draws + 1) quantiles under each row of ``weights``, linear within a bin."""
    below = np.cumsum(weights @ blocks.counts, axis=1)
    total = below[:, -1:]
    rows = np.arange(len(weights))
    found = np.empty((len(shares), len(weights)))
    for index, share in enumerate(shares):
        target = share * total
        at = np.minimum((below < target).sum(axis=1), below.shape[1] - 1)
        reached = below[rows, at]
        before = np.where(at > 0, below[rows, at - 1], 0.0)
        part = (target[:, 0] - before) / np.maximum(reached - before, 1e-300)
        left, right = blocks.edges[at], blocks.edges[at + 1]
        found[index] = left + np.clip(part, 0, 1) * (right - left)
    return found


def interval(values: Floats, deviations: Floats | None, seed: int = 0) -> Interval:
    """The mean over seeds of ``values`` (S,) and its interval.

    ``deviations`` (S, draws): resampled minus point estimate within each seed, or None for a figure
    of a whole run, which only seeds repeat. ``seed`` drives the draws of the seed effect.
    """
    value = float(np.mean(values))
    seeds = len(values)
    between = float(np.var(values, ddof=1)) if seeds > 1 else np.nan
    if deviations is None:
        if seeds < 2:
            return Interval(value, np.nan, np.nan)
        half = student_t(seeds - 1) * (between / seeds) ** 0.5
        return Interval(value, value - half, value + half)
    draws = deviations.mean(axis=0)
    excess = between - float(deviations.var(axis=1).mean()) if seeds > 1 else 0.0
    if excess > 0:
        rng = np.random.default_rng(seed)
        draws = draws + (excess / seeds) ** 0.5 * rng.standard_t(seeds - 1, size=draws.shape)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, value + float(low), value + float(high))


# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom; beyond, Cornish-Fisher is within 1e-4.
STUDENT_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
NORMAL = 1.959964


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with ``freedom`` degrees (a two-sided 95 % interval)."""
    if freedom <= len(STUDENT_T):
        return STUDENT_T[freedom - 1]
    z = NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
