"""At which bias a token would just take an expert: what the quantile laws read off the scores.

A token takes the top k of score + bias, so expert j enters where s_j + b_j is above the token's *price*, a
number between its k-th and (k+1)-th largest. Gates with groups (DeepSeek-V3, 2412.19437) first keep the
groups whose two best experts are worth most together, and j needs its group kept too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimtab.balance.arrays import Array
from trimtab.errors import TrimtabError, unknown

PRICES = ("middle", "next")


@dataclass(frozen=True)
class Market:
    """How a gate selects: ``top_k`` experts, from the ``top_groups`` best of ``groups`` equal groups.

    ``price``: "next" is the (k+1)-th largest biased score, as published; "middle" is half-way between
    that and the k-th.
    """

    top_k: int
    groups: int = 1
    top_groups: int = 1
    price: str = "middle"

    def __post_init__(self) -> None:
        if not isinstance(self.top_k, int) or self.top_k < 1:
            raise TrimtabError(f"top_k must be at least 1; given {self.top_k!r}")
        if not 1 <= self.top_groups <= self.groups:
            raise TrimtabError(
                f"top_groups must be from 1 to groups ({self.groups}); given {self.top_groups!r}"
            )
        if self.price not in PRICES:
            raise unknown("price", self.price, PRICES)

    def check(self, experts: int) -> None:
        """Raise where a gate of so many experts cannot be this one."""
        if experts % self.groups:
            raise TrimtabError(f"groups must divide the number of experts ({experts}); given {self.groups}")
        if not self.top_k < experts:
            raise TrimtabError(f"top_k must be below {experts}, the number of experts; given {self.top_k}")
        reached = experts // self.groups * self.top_groups
        if self.top_k > reached:
            raise TrimtabError(f"top_k is {self.top_k}, but {self.top_groups} groups have {reached} experts")

    def asked(self, xp: Any, scores: Array, bias: Array) -> Array:
        """The bias at which each token would just take each expert, (..., tokens, experts) as ``scores``.

        The others' biases (..., experts) stay. With groups it is exact while the same groups are kept; an
        expert whose group is not, is asked for what brings the group in.
        """
        biased = scores + bias[..., None, :]
        if self.top_groups == self.groups:
            return self.between(xp, biased, self.top_k) - scores
        grouped = xp.reshape(biased, (*biased.shape[:-1], self.groups, -1))
        ordered = xp.sort(grouped, axis=-1)
        best, second, third = (self.place(xp, ordered, place) for place in (1, 2, 3))
        worth = best + second
        bar = self.between(xp, worth[..., 0], self.top_groups)[..., None]
        kept = xp.where(worth > bar, grouped, -xp.inf)
        price = self.between(xp, xp.reshape(kept, biased.shape), self.top_k)[..., None]
        # Without expert j its group has its partner and, where j was one of the two best, the third.
        partner = xp.where(grouped == best, second, best)
        without = xp.where(grouped >= second, partner + third, worth)
        alone = xp.where(without > bar, -xp.inf, bar - partner)
        needed = xp.where(alone > price, alone, price)
        least = xp.min(grouped, axis=(-2, -1), keepdims=True) - 1.0  # where nothing is needed at all
        needed = xp.where(needed > least, needed, least)
        return xp.reshape(needed, biased.shape) - scores

    def place(self, xp: Any, ordered: Array, place: int) -> Array:
        """The ``place``-th largest (..., groups, 1) of ascending rows; one alone has a partner worth 0."""
        if place <= ordered.shape[-1]:
            return ordered[..., ordered.shape[-1] - place, None]
        return xp.full_like(ordered[..., :1], 0.0 if place == 2 else -xp.inf)

    def between(self, xp: Any, values: Array, taken: int) -> Array:
        """What the ``taken`` largest of each row (..., n) are above, (..., 1): `price` says where exactly."""
        ordered = xp.sort(values, axis=-1)
        place = values.shape[-1] - taken - 1
        following = ordered[..., place : place + 1]
        return following if self.price == "next" else (following + ordered[..., place + 1 : place + 2]) / 2
