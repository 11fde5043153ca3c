"""Where a noisy, rising curve crosses its target, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.report.bootstrap import LEVEL, Interval, draw_weights, student_t

Floats = NDArray[np.float64]
DRAWS = 2000  # of replications; the same at every call
TINY = 1e-300
NOTHING_KNOWN = 50.0  # as a half width, of logarithms


class Excess(NamedTuple):
    """The pooled mean over its target, as a logarithm: below 0 the bound holds. ``half`` is the half width
    of its 95 % interval (inf where replications cannot tell)."""

    value: float
    half: float

    @property
    def sure(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.value) > self.half


def excess(sums: Floats, target: float) -> Excess:
    """Of replications ``sums`` (R, 2): sum and number of requests of each.

    A bound that no request broke holds by as much as one more request leaves open; its interval is as wide
    as to say yes only where ``3 / n`` (the rule of three) is below the target.
    """
    total, number = sums[:, 0].sum(), sums[:, 1].sum()
    if not np.isfinite(total):
        return Excess(math.inf, 0.0)
    if number == 0:
        return Excess(-math.inf, 0.0)
    if total == 0:
        return Excess(math.log(0.5 / number / target), max(0.0, math.log(6.0)))
    mean = total / number
    value = math.log(mean / target)
    count = len(sums)
    if count < 2:
        return Excess(value, math.inf)
    residual = sums[:, 0] - mean * sums[:, 1]
    error = math.sqrt(count / (count - 1) * float(residual @ residual)) / number
    return Excess(value, student_t(count - 1) * error / mean)


def worst(sums: Floats, targets: Sequence[float]) -> tuple[int, Excess]:
    """Of (R, bounds, 2): the bound that is exceeded most, or held with least to spare."""
    found = [excess(sums[:, index], target) for index, target in enumerate(targets)]
    index = max(range(len(found)), key=lambda each: found[each].value)
    return index, found[index]


def crossing(loads: Floats, sums: Floats, target: float) -> float:
    """The load at which the pooled mean of ``sums`` (loads, R, 2) passes ``target``.

    Straight between loads in logarithms, after noise that lets it fall is ironed out; nan where it does not
    pass in the range.
    """
    total, number = sums[..., 0].sum(axis=1), sums[..., 1].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.log(np.maximum(total, 0.5) / number / target)
    height = np.maximum.accumulate(np.minimum(height, 50.0))
    if not height[0] <= 0 < height[-1]:
        return math.nan
    above = int(np.argmax(height > 0))
    low, high = height[above - 1], height[above]
    share = -low / (high - low)
    start, end = math.log(loads[above - 1]), math.log(loads[above])
    return math.exp(start + share * (end - start))


def crossing_values(loads: Floats, sums: Floats, target: float) -> Floats:
    """(R,) what each replication says of the logarithm of the crossing: jackknife values, whose mean is the
    estimate (without the bias of a root) and whose spread is its error.

    ``sums`` (loads, R, 2), the replications of one column with the same requests at every load. All nan
    where there is no crossing in the range, or would be none without one of the replications.
    """
    whole, count = crossing(loads, sums, target), sums.shape[1]
    kept = ~np.eye(count, dtype=bool)
    if math.isnan(whole) or count < 3:
        return np.full(count, math.nan)
    left = np.array([crossing(loads, sums[:, row], target) for row in kept])
    values = count * math.log(whole) - (count - 1) * np.log(left)
    return values if np.isfinite(values).all() else np.full(count, math.nan)


def crossing_interval(loads: Floats, sums: Floats, target: float) -> Interval:
    """The crossing with its 95 % interval; of ``crossing_values`` that are nan, the bare crossing."""
    values = crossing_values(loads, sums, target)
    if np.isnan(values).any():
        return Interval(crossing(loads, sums, target), math.nan, math.nan)
    return exp_interval(values)


def exp_interval(values: Floats) -> Interval:
    """The exponential of the mean of ``values`` (R,), and its interval."""
    return Interval(*(math.exp(each) for each in mean_interval(values)))


def mean_interval(values: Floats) -> Interval:
    """The mean of ``values`` (R,) with its 95 % interval, by the symmetric bootstrap-t (Hall 1988).

    Waits come in bursts: a sample with few of them has a mean too good and a spread too small, both at once,
    and Student's t, which takes the two for independent, is too narrow.
    """
    middle = float(values.mean())
    away = values - middle
    weights = _weights(len(values))
    means = weights @ away
    # A resample may hold one value only, and all values may be the same but for rounding.
    spreads = np.sqrt(np.maximum(weights @ away**2 - means**2, 1e-12 * away.var() + TINY))
    t = float(np.quantile(np.abs(means) / spreads, LEVEL, method="higher"))
    half = min(t * float(away.std()), NOTHING_KNOWN)
    return Interval(middle, middle - half, middle + half)


@lru_cache(maxsize=8)
def _weights(count: int) -> Floats:
    """(DRAWS, count) how much each replication counts in a resample."""
    return draw_weights(count, DRAWS, 0)[1:] / count
