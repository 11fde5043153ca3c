"""Quantile balancing: the bias that would have balanced the last batch, read off its scores.

No step size. A token takes expert j where s_j + b_j is above its entry price; r_j = price - s_j is the
bias at which j would just be taken. The b_j that gives j its wanted fraction k * t_j of the tokens is that
quantile of r_j. Prices depend on the bias, so one round is one step of alternating optimisation; a few
rounds on the same scores converge.

The published price is the (k+1)-th largest biased score: "next". Every token whose runner-up is j then has
r_j = b_j exactly, and any bias whose quantile falls among those tokens stays where it is: the rule stops
short of balance by up to the runner-ups' share. Any price between the k-th and the (k+1)-th largest selects
the same experts; half-way, "middle", no r_j equals b_j, and only balance stands still.

Balance costs quality, and what a slow step waits for is the busiest expert alone. With a `cap` the law only
keeps experts from having more than so many times their share, by lowering biases below the starting ones; it
leaves alone whom nobody waits for. That moves fewer tokens for the same step time.

Su, kexue.fm 11619 (2025); Kimi K3 report (2026, arXiv 2607.24653, section 2.3.3) for the histogram.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import device

from trimtab.balance.arrays import Array, as_floats, as_target, positive
from trimtab.balance.counts import Reduce, reduced
from trimtab.balance.laws import FREE, BiasLaw, fraction
from trimtab.balance.limits import Limits
from trimtab.balance.prices import Market
from trimtab.errors import TrimtabError


class QuantileLaw(BiasLaw):
    """Exact: sorts the scores of the batch. ``update(scores, target=None)``, scores (..., tokens, experts).

    ``top_k`` experts per token, of the ``top_groups`` best of ``groups`` (`prices.Market`). ``memory``:
    fraction of the old bias that stays (0: adopt the batch's at once; higher is calmer and later). ``rounds``
    of prices and quantiles. ``cap``: 1.1 lets an expert have up to 1.1 times its share and lowers biases
    only (limits are then never centred); None evens all. ``price``: "middle", or "next" as published.
    """

    observes = "scores"

    def __init__(
        self,
        top_k: int,
        *,
        memory: float = 0.0,
        rounds: int = 1,
        cap: float | None = None,
        groups: int = 1,
        top_groups: int = 1,
        price: str = "middle",
        limits: Limits = FREE,
        start: Any = None,
    ) -> None:
        super().__init__(limits=limits if cap is None else replace(limits, centred=False), start=start)
        if rounds < 1:
            raise TrimtabError(f"rounds must be at least 1; given {rounds!r}")
        if cap is not None and not 1.0 <= cap < math.inf:
            raise TrimtabError(f"cap is a multiple of an expert's share, from 1 up; given {cap!r}")
        self.market = Market(top_k, groups, top_groups, price)
        self.top_k, self.rounds, self.cap = top_k, rounds, cap
        self.memory = fraction(memory, "memory")

    def update(self, load: Any, target: Any = None) -> Array:
        """The bias (..., experts) that balances these ``load`` = scores (..., tokens, experts)."""
        xp, scores, empty = self.checked(load)
        portions = self.portions(xp, as_target(target, empty), empty)
        before = empty if self.bias is None else self.bias
        bias = before
        for _ in range(self.rounds):
            bias = self.quantiles(xp, scores, bias, portions)
            if self.cap is not None:
                start = empty if self.start is None else self.start
                bias = xp.where(bias < start, bias, start)
        if self.memory:
            if self.cap is None:
                # Quantiles come with any common offset: compare where both have the same one.
                bias = bias - xp.mean(bias - before, axis=-1, keepdims=True)
            bias = self.memory * before + (1.0 - self.memory) * bias
        self.settle(xp, empty)
        self.bias = self.limits.held(xp, bias, self.start)
        self.num_updates += 1
        return self.bias

    def checked(self, values: Any) -> tuple[Any, Array, Array]:
        """(namespace, scores (..., tokens, experts), zeros (..., experts)), or a clear error."""
        xp, scores = as_floats(values, "scores", self.bias)
        if scores.ndim < 2 or 0 in scores.shape:
            raise TrimtabError(f"scores need the shape (..., tokens, experts); given {tuple(scores.shape)}")
        shape = (*scores.shape[:-2], scores.shape[-1])
        if self.bias is not None and tuple(self.bias.shape) != shape:
            raise TrimtabError(f"scores of {shape} experts given to a law for {tuple(self.bias.shape)}")
        self.market.check(shape[-1])
        if not bool(xp.all(xp.isfinite(scores))):
            raise TrimtabError("scores must be finite; they have NaN or infinite entries")
        return xp, scores, xp.zeros_like(scores[..., 0, :])

    def portions(self, xp: Any, wanted: Array | None, empty: Array) -> Array:
        """Fraction of tokens that each expert is to get, or with a cap may get, (..., experts)."""
        experts = empty.shape[-1]
        portions = empty + (self.top_k / experts if wanted is None else self.top_k * wanted)
        if float(xp.max(portions)) >= 1.0:
            raise TrimtabError(
                f"target wants one expert for all tokens: with top_k {self.top_k} no share "
                f"may reach {1 / self.top_k:.3g}"
            )
        return portions if self.cap is None else self.cap * portions

    def quantiles(self, xp: Any, scores: Array, bias: Array, portions: Array) -> Array:
        """The portion-quantile of price - score over tokens, between neighbours in a straight line."""
        asked = xp.sort(self.market.asked(xp, scores, bias), axis=-2)
        tokens = asked.shape[-2]
        # With m = portion * tokens to be taken, the bias lies between the m-th and the next.
        place = xp.clip(portions * tokens - 0.5, 0.0, tokens - 1.0)[..., None, :]
        below = xp.clip(xp.floor(place), None, max(tokens - 2.0, 0.0))
        first = xp.take_along_axis(asked, xp.astype(below, xp.int64), axis=-2)
        second = xp.take_along_axis(asked, xp.astype(below, xp.int64) + min(1, tokens - 1), axis=-2)
        return (first + (place - below) * (second - first))[..., 0, :]


class QuantileHistogramLaw(QuantileLaw):
    """The same from ``bins`` counts per expert: no sort over tokens, and one all-reduce balances all ranks.

    ``span``: largest minus smallest possible score (1 for sigmoid and softmax). The bins cover what r can
    be, from min(b) - span to max(b) + span, so the bias is exact to one bin. ``reduce`` sums an array over
    ranks (`counts.reduced`); ranks with the same state then have the same bias. ``settings`` are those of
    `QuantileLaw`.
    """

    def __init__(
        self,
        top_k: int,
        *,
        bins: int = 1000,
        span: float = 1.0,
        reduce: Reduce | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(top_k, **settings)
        if bins < 2:
            raise TrimtabError(f"bins must be at least 2; given {bins!r}")
        self.bins, self.span, self.reduce = bins, positive(span, "span"), reduce

    def quantiles(self, xp: Any, scores: Array, bias: Array, portions: Array) -> Array:
        low = xp.min(bias, axis=-1, keepdims=True) - self.span
        width = (xp.max(bias, axis=-1, keepdims=True) + self.span - low) / self.bins
        asked = self.market.asked(xp, scores, bias)
        cell = xp.clip(xp.floor((asked - low[..., None, :]) / width[..., None, :]), 0, self.bins - 1)
        counts = reduced(self.histogram(xp, xp.astype(cell, xp.int64)), self.reduce)
        upto = xp.cumulative_sum(counts, axis=-1)
        wanted = (portions * upto[..., -1])[..., None]
        # The first bin that holds enough; inside it tokens are taken to be evenly spread.
        place = xp.sum(xp.astype(upto < wanted, xp.int64), axis=-1, keepdims=True)
        place = xp.clip(place, None, self.bins - 1)
        inside = xp.take_along_axis(counts, place, axis=-1)
        short = wanted - (xp.take_along_axis(upto, place, axis=-1) - inside)
        filled = xp.clip(short / xp.clip(inside, 1.0, None), 0.0, 1.0)
        return low + width * (xp.astype(place, bias.dtype) + filled)[..., 0]

    def histogram(self, xp: Any, cell: Array) -> Array:
        """Counts (..., experts, bins) of bin numbers (..., tokens, experts)."""
        shape = (*cell.shape[:-2], cell.shape[-1], self.bins)
        rows = math.prod(shape[:-1])
        by_expert = xp.reshape(xp.moveaxis(cell, -2, -1), (rows, cell.shape[-2]))
        row = xp.asarray(np.arange(rows)[:, None] * self.bins, device=device(cell))
        flat = xp.reshape(by_expert + row, (-1,))
        return xp.reshape(xp.astype(xp.bincount(flat, minlength=rows * self.bins), xp.float64), shape)
