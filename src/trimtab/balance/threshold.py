"""When to move a bias at all: a threshold on imbalance beyond chance, with hysteresis and a cool-down."""

from __future__ import annotations

from collections import deque
from typing import Any

from trimtab.balance.arrays import as_load, positive
from trimtab.balance.measures import max_violation, noise_floor, squared_variation
from trimtab.balance.state import Stateful
from trimtab.errors import TrimtabError, unknown


def excess_cv2(load: Any, target: Any, draws: int) -> float:
    """Squared coefficient of variation less what ``draws`` random choices show, mean over rows."""
    measured = squared_variation(load, target)
    chance: float = (load.shape[-1] - 1) / draws
    return float(measured.mean()) - chance


def excess_maxvio(load: Any, target: Any, draws: int) -> float:
    """MaxVio less what ``draws`` random choices show, mean over rows."""
    return float(max_violation(load, target).mean()) - noise_floor(load.shape[-1], draws)


MEASURES = {"cv2": excess_cv2, "max_violation": excess_maxvio}


class AdaptiveThreshold(Stateful):
    """Says of each batch whether its imbalance calls for adjusting the bias.

    ``measure`` is "cv2" or "max_violation", both less their noise floor: neither depends on the number of
    experts or the size of the batch (a variance of shares does, and stays below 1 / experts).

    Adjusting begins above the threshold and ends below ``release`` x threshold (hysteresis); after it has
    ended it does not begin again for ``cool_down`` batches. The threshold itself follows calm traffic:
    ``margin`` x the mean of the last ``window`` measures taken while nothing was adjusted, within ``low``
    and ``high``. Batches that call for adjusting do not count, so lasting imbalance is not got used to.
    """

    state = ("threshold", "calm", "active", "resting")

    def __init__(
        self,
        initial_threshold: float = 0.1,
        *,
        measure: str = "cv2",
        low: float = 0.05,
        high: float = 0.2,
        margin: float = 1.5,
        release: float = 0.5,
        cool_down: int = 10,
        window: int = 100,
    ) -> None:
        if measure not in MEASURES:
            raise unknown("measure", measure, MEASURES)
        if not 0 < low <= high:
            raise TrimtabError(f"low and high must be 0 < low <= high; given {low!r} and {high!r}")
        if not 0 < release <= 1 or cool_down < 0 or window < 1:
            raise TrimtabError(
                "release must be above 0 and at most 1, cool_down at least 0, window at least 1; "
                f"given {release!r}, {cool_down!r}, {window!r}"
            )
        self.threshold = positive(initial_threshold, "initial_threshold")
        self.measure, self.low, self.high = measure, low, high
        self.margin, self.release, self.cool_down = positive(margin, "margin"), release, cool_down
        self.calm: deque[float] = deque(maxlen=window)
        self.active = False
        self.resting = 0  # batches left in which adjusting may not begin

    def should_adjust_bias(self, current_loads: Any, target: Any = None, draws: int | None = None) -> bool:
        """Whether to adjust after a batch with these counts per expert (..., experts).

        ``draws``: choices per row that the load stands for; needed where the load is shares, otherwise
        the load's own total.
        """
        xp, load = as_load(current_loads)
        if draws is None:
            draws = max(1, round(float(xp.mean(xp.sum(load, axis=-1)))))
        excess = MEASURES[self.measure](load, target, draws)
        if self.active:
            self.active = excess >= self.release * self.threshold
            if not self.active:
                self.resting = self.cool_down
            return self.active
        if excess <= self.threshold:
            self.calm.append(excess)
            if len(self.calm) == self.calm.maxlen:
                usual = self.margin * sum(self.calm) / len(self.calm)
                self.threshold = max(self.low, min(self.high, usual))
        self.active = excess > self.threshold and self.resting == 0
        self.resting = max(0, self.resting - 1)
        return self.active
