"""Two laws on split traffic: a test that may be looked at after every batch.

The test bets against "no difference". A capital of 1 is staked on each pair's difference d in
[-1, 1]: it is multiplied by 1 + s (d - m), where the stake s is chosen before d is seen. If the mean
difference is m, the capital is a fair game, and by Ville's inequality reaches 1 / alpha at any time with
probability alpha at most. So p = 1 / (largest capital so far) is valid whenever one stops; the means
that have not lost 1 / alpha form the confidence interval, valid at all times too. Waudby-Smith and Ramdas,
Estimating means of bounded random variables by betting, JRSS B 86 (2024). No normality, no variance known.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any

import numpy as np

from trimtab.balance.arrays import positive
from trimtab.balance.state import Stateful
from trimtab.errors import TrimtabError, unknown

ARMS = ("A", "B")
GRID = 401  # hypotheses about the mean difference, in steps of 1/200 of the range
LARGEST_STAKE = 0.75  # of what would lose everything at once


class ABTest(Stateful):
    """``assign(key)`` says which law serves a request or batch, ``observe(arm, value)`` tells its result.

    ``low`` and ``high`` bound the metric; values beyond are taken as the bound. ``higher_is_better`` says
    which way it counts (balancedness: yes; latency or loss: no). The k-th result of A is compared with the
    k-th of B, so drifting traffic meets both alike. ``alpha``: probability of a wrong verdict if there is
    no difference, however often one looks.
    """

    state = ("log_capital", "best_log_capital", "waiting_a", "waiting_b", "sums", "num_pairs")

    def __init__(
        self,
        low: float = 0.0,
        high: float = 1.0,
        *,
        higher_is_better: bool = True,
        alpha: float = 0.05,
        share: float = 0.5,
        seed: int = 0,
    ) -> None:
        if not (np.isfinite([low, high]).all() and low < high) or not 0 < alpha < 1 or not 0 < share < 1:
            raise TrimtabError(
                "an A/B test needs finite low < high, alpha and share between 0 and 1; "
                f"given {low!r}, {high!r}, {alpha!r}, {share!r}"
            )
        self.low, self.high, self.alpha = float(low), float(high), positive(alpha, "alpha")
        self.higher_is_better, self.share, self.seed = higher_is_better, share, seed
        self.log_capital = np.zeros(GRID)
        self.best_log_capital = np.zeros(GRID)
        self.waiting_a: deque[float] = deque()
        self.waiting_b: deque[float] = deque()
        self.sums = np.zeros(3)  # of a, of b, of squared differences, over pairs
        self.num_pairs = 0

    def assign(self, key: Any) -> str:
        """ "A" or "B", always the same for the same key (a request or session id); ``share`` go to B."""
        digest = hashlib.blake2b(f"{self.seed}:{key}".encode(), digest_size=8).digest()
        return ARMS[int.from_bytes(digest, "big") < self.share * 2**64]

    def observe(self, arm: str, value: float) -> None:
        """One result of ``arm``, in the metric's unit."""
        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
        if not np.isfinite(value):
            raise TrimtabError(f"a result must be a finite number; given {value!r}")
        scaled = (min(max(float(value), self.low), self.high) - self.low) / (self.high - self.low)
        (self.waiting_a if arm == "A" else self.waiting_b).append(scaled)
        while self.waiting_a and self.waiting_b:
            self.bet(self.waiting_a.popleft(), self.waiting_b.popleft())

    def bet(self, a: float, b: float) -> None:
        """Settle one pair on every hypothesis, with stakes from the pairs before it."""
        means = np.linspace(-1.0, 1.0, GRID)
        # One imagined pair of variance 1/4 to begin with: cautious stakes at first.
        count = self.num_pairs + 1
        average = (self.sums[1] - self.sums[0]) / count
        variance = max((self.sums[2] + 0.25) / count - average**2, 1e-6)
        away = average - means
        limit = LARGEST_STAKE / (1.0 + np.abs(means))
        stake = np.clip(away / (variance + away**2), -limit, limit)
        self.log_capital = self.log_capital + np.log1p(stake * (b - a - means))
        self.best_log_capital = np.maximum(self.best_log_capital, self.log_capital)
        self.sums = self.sums + np.array([a, b, (b - a) ** 2])
        self.num_pairs += 1

    @property
    def p_value(self) -> float:
        """Of "no difference"; valid at any time, however often it is read."""
        return float(np.exp(-self.best_log_capital[GRID // 2]))

    @property
    def difference(self) -> float:
        """Mean of B less mean of A over pairs, in the metric's unit; 0 before the first."""
        scale = (self.high - self.low) / max(1, self.num_pairs)
        return float((self.sums[1] - self.sums[0]) * scale)

    def interval(self) -> tuple[float, float]:
        """Differences B - A not ruled out at ``alpha``, in the metric's unit; valid at any time."""
        kept = np.flatnonzero(self.best_log_capital < -np.log(self.alpha))
        step = 2.0 / (GRID - 1)
        if kept.size == 0:  # narrower than the grid
            return self.difference, self.difference
        ends = np.clip([-1.0 + step * (kept[0] - 1), -1.0 + step * (kept[-1] + 1)], -1.0, 1.0)
        return float(ends[0] * (self.high - self.low)), float(ends[1] * (self.high - self.low))

    def verdict(self) -> str:
        """ "A" or "B" where one is better beyond ``alpha``, else "undecided"."""
        if self.p_value > self.alpha:
            return "undecided"
        return ARMS[(self.difference > 0) == self.higher_is_better]
