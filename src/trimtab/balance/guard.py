"""What stands between a law and the model: small steps, two probes, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trimtab.balance.arrays import Array, as_bias, positive
from trimtab.balance.state import Stateful, copied
from trimtab.errors import TrimtabError

Probe = Callable[[Array], float]  # bias (..., experts) -> a figure, lower is better


class Guard(Stateful):
    """Lets a proposed bias into force in steps of at most ``max_step`` per entry, while it does no harm.

    ``quality(bias)`` is the harm of a bias compared with the trained one: relative increase in loss, or
    KL divergence in nats; more than ``max_quality_loss`` fails. ``load(bias)`` is the imbalance that a bias
    gives on current traffic (MaxVio of `load_of` on recorded scores, say); more than the trained bias
    gives, and ``tolerance`` beside, fails. Either may be left out. They are asked of the bias about to be
    served, every ``probe_every`` steps, so a bad bias is refused before a token has seen it.

    A step that fails is not taken, and the bias in force stays while it does well itself: within the
    quality limit, and no less even than the trained one. Where it does not, ``patience`` failures in a row
    put the trained bias back in force, bit for bit, and proposals are ignored for ``cool_down`` steps.

    ``max_step`` is by default a quarter of the standard deviation of the trained biases over experts, or
    0.01 where they are all the same.
    """

    state = ("trained", "bias", "failures", "resting", "num_steps", "num_rollbacks", "reason")

    def __init__(
        self,
        trained: Any,
        *,
        quality: Probe | None = None,
        load: Probe | None = None,
        max_step: float | None = None,
        max_quality_loss: float = 0.005,
        tolerance: float = 0.1,
        probe_every: int = 1,
        patience: int = 3,
        cool_down: int = 50,
    ) -> None:
        if probe_every < 1 or patience < 1 or cool_down < 0:
            raise TrimtabError(
                "probe_every and patience must be at least 1, cool_down at least 0; "
                f"given {probe_every!r}, {patience!r}, {cool_down!r}"
            )
        checked = as_bias(trained, "trained")[1]
        if not hasattr(trained, "dtype"):
            trained = checked
        self.trained: Array = copied(trained.detach() if hasattr(trained, "detach") else trained)
        self.bias: Array = copied(self.trained)
        self.quality, self.load = quality, load
        self.max_step = gentle(checked) if max_step is None else positive(max_step, "max_step")
        self.max_quality_loss = positive(max_quality_loss, "max_quality_loss", zero=True)
        self.tolerance = positive(tolerance, "tolerance", zero=True)
        self.probe_every, self.patience, self.cool_down = probe_every, patience, cool_down
        self.failures = self.resting = self.num_steps = self.num_rollbacks = 0
        self.reason = ""

    def step(self, proposed: Any) -> Array:
        """The bias to serve next, on the way to ``proposed`` (..., experts). NaN or another shape raises."""
        xp, wanted = as_bias(proposed, "proposed", self.trained)
        _, now = as_bias(self.bias, "bias")
        self.num_steps += 1
        if self.resting:
            self.resting -= 1
            return copied(self.bias)
        # Common offsets change no choice: only differences between experts are worth a step.
        wanted = wanted - xp.mean(wanted - now, axis=-1, keepdims=True)
        candidate = now + xp.clip(wanted - now, -self.max_step, self.max_step)
        candidate = xp.astype(candidate, self.trained.dtype)
        probing = (self.num_steps - 1) % self.probe_every == 0
        complaint = self.complaint(candidate, self.tolerance) if probing else ""
        if not complaint:
            self.bias = candidate
            self.failures = 0 if probing else self.failures
            return copied(self.bias)
        self.reason = complaint
        if not self.complaint(self.bias, 0.0):
            self.failures = 0
            return copied(self.bias)
        self.failures += 1
        if self.failures >= self.patience:
            self.rollback(complaint)
        return copied(self.bias)

    def complaint(self, candidate: Array, tolerance: float) -> str:
        """What is wrong with a bias, in words; empty where nothing is."""
        if self.quality is not None:
            loss = float(self.quality(candidate))
            if not loss <= self.max_quality_loss:  # so that NaN is a complaint
                return f"quality {loss:.4g} above {self.max_quality_loss:g}"
        if self.load is not None:
            here, before = float(self.load(candidate)), float(self.load(self.trained))
            if not math.isfinite(here) or here > before + tolerance:
                return f"imbalance {here:.4g}, with the trained bias {before:.4g}"
        return ""

    def rollback(self, reason: str = "asked for") -> Array:
        """Back to the trained bias, bit for bit; proposals are ignored for ``cool_down`` steps."""
        self.bias = copied(self.trained)
        self.failures, self.resting = 0, self.cool_down
        self.num_rollbacks += 1
        self.reason = reason
        return copied(self.bias)


def gentle(trained: Array) -> float:
    """A quarter of the spread of biases (..., experts): what a shift asks for is some of these away."""
    spread = float(((trained - trained.mean(-1)[..., None]) ** 2).mean()) ** 0.5
    return spread / 4 or 0.01
