"""What keeps a bias where it can do good: leak, centring, a bound without wind-up, an annealed rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimtab.balance.arrays import Array, at_least, at_most, positive
from trimtab.errors import TrimtabError

Rate = float | Callable[[int], float]  # a number, or update number -> number
_STEPS = 128  # about ten are enough; half of these halvings are to the last bit
_CLOSE = 1e-12  # of the bound: the mean that is taken for zero


@dataclass(frozen=True)
class Limits:
    """How a bias is held after every step.

    ``leak``: fraction of the way back to the starting bias per update; forgets what no load asks for.
    ``bound``: largest distance of any entry from the row's mean. The bias itself is held there, not only
    what is shown of it, so a load that cannot be moved winds nothing up and release is immediate.
    ``centred``: the row's mean stays where the starting bias had it (0 without one). A common offset
    changes no choice, but sums of sign steps drift without it.
    """

    leak: float = 0.0
    bound: float | None = None
    centred: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.leak < 1.0:
            raise TrimtabError(f"leak must be a fraction per update, from 0 to below 1; given {self.leak!r}")
        if self.bound is not None:
            positive(self.bound, "bound")

    def held(self, xp: Any, bias: Array, start: Array) -> Array:
        """``bias`` (..., experts) within the limits; ``start`` is where it leaks to and is centred on."""
        if self.leak:
            bias = bias - self.leak * (bias - start)
        if not self.centred and self.bound is None:
            return bias
        offset = xp.mean(start, axis=-1, keepdims=True)
        if self.centred:
            bias = bias - (xp.mean(bias, axis=-1, keepdims=True) - offset)
        if self.bound is None or self.within(xp, bias, offset):
            return bias
        clip = centred_clip if self.centred else clipped
        return clip(xp, bias - offset, self.bound) + offset

    def within(self, xp: Any, bias: Array, offset: Array) -> bool:
        """Whether nothing needs to be clipped: two reductions, where clipping takes many passes."""
        assert self.bound is not None
        above = xp.max(bias, axis=-1, keepdims=True) - offset
        below = offset - xp.min(bias, axis=-1, keepdims=True)
        return max(float(xp.max(above)), float(xp.max(below))) <= self.bound


def clipped(xp: Any, deviation: Array, bound: float) -> Array:
    """Each entry brought within ``bound`` of zero."""
    return at_most(xp, at_least(xp, deviation, -bound), bound)


def centred_clip(xp: Any, deviation: Array, bound: float) -> Array:
    """Clip, with the one common shift per row that leaves the row's sum at zero.

    Clipping alone moves the mean, and taking the mean away afterwards breaks the bound: solved together.
    The mean falls in straight pieces as the shift grows: Newton's step, which is exact on the right piece,
    and half the bracket after a step that did not halve the surplus. The nearest point to ``deviation``
    that satisfies both.
    """
    low = xp.min(deviation, axis=-1, keepdims=True) - bound
    high = xp.max(deviation, axis=-1, keepdims=True) + bound
    shift, before = xp.zeros_like(low), xp.full_like(low, math.inf)
    for _ in range(_STEPS):
        moved = deviation - shift
        inside = clipped(xp, moved, bound)
        surplus = xp.mean(inside, axis=-1, keepdims=True)
        size = xp.abs(surplus)
        if float(xp.max(size)) <= _CLOSE * bound:
            break
        low, high = xp.where(surplus > 0, shift, low), xp.where(surplus > 0, high, shift)
        free = xp.mean(xp.astype(inside == moved, low.dtype), axis=-1, keepdims=True)
        newton = shift + surplus / at_least(xp, free, 1.0 / deviation.shape[-1])
        inward = (newton > low) & (newton < high) & (size <= before / 2)
        shift = xp.where(size <= _CLOSE * bound, shift, xp.where(inward, newton, (low + high) / 2))
        before = size
    inside = inside - xp.mean(inside, axis=-1, keepdims=True)
    largest = xp.max(xp.abs(inside), axis=-1, keepdims=True)
    return inside * (bound / at_least(xp, largest, bound))


def saturation(bias: Array, bound: float) -> float:
    """Fraction of entries at (within 1 % of) the bound: near zero in health.

    High means that the gate has no tokens to give to those experts, or that it fights the bias.
    """
    deviation = bias - bias.mean(-1)[..., None]
    entries: int = math.prod(deviation.shape)
    return int((abs(deviation) >= 0.99 * bound).sum()) / entries


def annealed(rate: float, hold: int, decay: int = 0, final: float = 0.0) -> Callable[[int], float]:
    """A rate that stays for ``hold`` updates, then goes to ``final`` in a straight line over ``decay``.

    DeepSeek-V3 (2412.19437): 0.001 for the first 14.3T tokens, then 0 at once: ``annealed(1e-3, n)``.

    >>> [annealed(1.0, hold=2, decay=2)(i) for i in range(5)]
    [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    positive(rate, "rate")
    positive(final, "final rate", zero=True)
    if hold < 0 or decay < 0:
        raise TrimtabError(f"hold and decay are numbers of updates; given {hold} and {decay}")

    def at(update: int) -> float:
        late = update - hold
        if late < 0:
            return rate
        return final if late >= decay else rate + (final - rate) * late / decay

    return at


def rate_at(rate: Rate, update: int) -> float:
    """The rate of one update, checked."""
    return positive(rate(update), "rate", zero=True) if callable(rate) else rate
