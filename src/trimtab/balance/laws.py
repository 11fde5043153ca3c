"""Bias laws that read loads: one state object each, ``update(load, target=None) -> bias``.

Every law sees the same error, e = 1 - share / wanted share: at most 1 (no load at all), below 0 for an
expert with too much. It has no unit, so a law does the same for a batch of any size and any number of
experts; seeds and papers that step on counts or shares are rescaled by the mean load.

The bias is added to the scores when experts are *selected*, never to the weights of their outputs, and
is used for the batch after the one whose load it was made from.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

from array_api_compat import array_namespace

from trimtab.balance.arrays import Array, as_bias, as_load, as_target, at_least, positive, relative_load
from trimtab.balance.limits import Limits, Rate, rate_at
from trimtab.balance.state import Stateful
from trimtab.errors import TrimtabError

FREE = Limits()  # centred, nothing else: what the published laws have
HELD = Limits(bound=1.0)  # sigmoid scores are in (0, 1): a larger bias can decide nothing more


class BiasLaw(Stateful):
    """A bias, the rule that moves it and the limits that hold it.

    ``rate`` is a number or a function of the number of updates so far (`annealed`). ``start`` is the
    trained bias (..., experts), zero where it is left out; its mean per row is kept. A law takes its
    shape and its library from ``start`` or else from the first load. Loads that are negative, NaN,
    all zero or of another shape raise `TrimtabError` and change nothing.
    """

    observes = "load"  # what update wants: "load" (..., experts) or "scores" (..., tokens, experts)
    state: ClassVar[tuple[str, ...]] = ("bias", "start", "num_updates")

    def __init__(self, rate: Rate = 0.001, *, limits: Limits = FREE, start: Any = None) -> None:
        self.rate = rate if callable(rate) else positive(rate, "rate")
        self.limits = limits
        self.bias: Array | None = None if start is None else as_bias(start, "start")[1]
        self.start = self.bias
        self.num_updates = 0

    def update(self, load: Any, target: Any = None) -> Array:
        """The bias (..., experts) after one batch with ``load`` tokens per expert, float64.

        ``target``: wanted share per expert, in any unit; uniform where it is left out.
        """
        xp, load = as_load(load, self.bias)
        wanted = as_target(target, load)
        rate = rate_at(self.rate, self.num_updates)
        self.settle(xp, load)
        error = 1.0 - relative_load(self.remembered(xp, load), wanted)
        assert self.bias is not None
        self.bias = self.limits.held(xp, self.bias + self.step(xp, error, rate), self.start)
        self.num_updates += 1
        return self.bias

    def settle(self, xp: Any, load: Array) -> None:
        """Take shape and library from the first load."""
        if self.bias is None:
            self.bias = self.start = xp.zeros_like(load)

    def remembered(self, xp: Any, load: Array) -> Array:
        """The load to act on: this batch's, unless a law has a memory."""
        return load

    def step(self, xp: Any, error: Array, rate: float) -> Array:
        """How far the bias moves for an error (..., experts)."""
        return rate * error


class SignLaw(BiasLaw):
    """b += rate * sign(e): DeepSeek's loss-free balancing (Wang et al. 2024, arXiv 2408.15664), rate 0.001.

    Robust and slow: a bias that is off by d needs d / rate updates, and ends swinging by the rate.
    """

    def step(self, xp: Any, error: Array, rate: float) -> Array:
        return rate * xp.sign(error)


class ProportionalLaw(BiasLaw):
    """b += rate * e: the variant of the same paper; less even per batch, quick where far off."""

    def __init__(self, rate: Rate = 0.01, *, limits: Limits = FREE, start: Any = None) -> None:
        super().__init__(rate, limits=limits, start=start)


class TanhMomentumLaw(BiasLaw):
    """m = momentum m + (1 - momentum) rate tanh(kappa e), b += m, centred.

    SMEBU of Arcee Trinity Large (2026, arXiv 2602.17004): a sign with a soft middle, which does not swing.
    The paper centres each push, the limits here centre the bias: the same, since both are linear.
    """

    state = (*BiasLaw.state, "velocity")

    def __init__(
        self,
        rate: Rate = 0.001,
        *,
        kappa: float = 2.0,
        momentum: float = 0.5,
        limits: Limits = FREE,
        start: Any = None,
    ) -> None:
        super().__init__(rate, limits=limits, start=start)
        self.kappa = positive(kappa, "kappa")
        self.momentum = fraction(momentum, "momentum")
        self.velocity: Array | None = None

    def step(self, xp: Any, error: Array, rate: float) -> Array:
        push = rate * xp.tanh(self.kappa * error)
        before = xp.zeros_like(push) if self.velocity is None else self.velocity
        self.velocity = self.momentum * before + (1.0 - self.momentum) * push
        return self.velocity


class DynamicCorrectionBias(BiasLaw):
    """b += rate * e, with e of the loads of the last ``window_size`` batches together.

    A long window sees rare experts and averages noise away; the price is lag: after a shift the old
    traffic counts until it has left, and a rate above about 1 / window_size overshoots meanwhile.
    Memory: 8 bytes x window_size x entries of the load.
    """

    state = (*BiasLaw.state, "expert_loads", "total")

    def __init__(
        self,
        window_size: int = 1000,
        learning_rate: Rate = 0.01,
        *,
        limits: Limits = HELD,
        start: Any = None,
    ) -> None:
        super().__init__(learning_rate, limits=limits, start=start)
        if not isinstance(window_size, int) or window_size < 1:
            raise TrimtabError(f"window_size is a number of batches, at least 1; given {window_size!r}")
        self.window_size = window_size
        self.expert_loads: deque[Array] = deque(maxlen=window_size)
        self.total: Array | None = None

    def remembered(self, xp: Any, load: Array) -> Array:
        if self.total is None:
            self.total = xp.zeros_like(load)
        if len(self.expert_loads) < self.window_size:
            kept = xp.asarray(load, copy=True)  # the caller may reuse his array
        else:
            # The oldest array is filled anew: a fresh one per update would be most of its time.
            kept = self.expert_loads.popleft()
            self.total -= kept
            kept[...] = load
        self.expert_loads.append(kept)
        self.total += kept
        # Exact for counts; for soft loads the last bits may go below zero.
        return at_least(xp, self.total, 0.0)

    update_bias = BiasLaw.update  # the name it had in the first sketch


class OnlineBiasLearning(BiasLaw):
    """b += rate * e, with e of an exponential average of loads: ewma = decay ewma + (1 - decay) load.

    The average starts at zero and is divided by 1 - decay^n (as Adam's moments are, Kingma and Ba 2015),
    so that the first batches count for what they are. Reacts within 1 / (1 - decay) batches.
    """

    state = (*BiasLaw.state, "ewma_loads")

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        decay: float = 0.9,
        *,
        limits: Limits = HELD,
        start: Any = None,
    ) -> None:
        super().__init__(learning_rate, limits=limits, start=start)
        self.decay = fraction(decay, "decay")
        self.ewma_loads: Array | None = None

    def remembered(self, xp: Any, load: Array) -> Array:
        before = xp.zeros_like(load) if self.ewma_loads is None else self.ewma_loads
        self.ewma_loads = self.decay * before + (1.0 - self.decay) * load
        return self.ewma_loads / (1.0 - self.decay ** (self.num_updates + 1))


def fraction(value: float, what: str) -> float:
    """``value`` where it is from 0 to below 1."""
    if not 0.0 <= value < 1.0:
        raise TrimtabError(f"{what} must be from 0 to below 1; given {value!r}")
    return float(value)


def selected(scores: Array, bias: Array | None, top_k: int) -> Array:
    """1 where a token takes an expert, else 0: the ``top_k`` largest of scores (..., tokens, experts) + bias.

    ``bias`` is (..., experts). Equal sums go to the lower expert number.
    """
    xp = array_namespace(scores)
    biased = scores if bias is None else scores + bias[..., None, :]
    order = xp.argsort(biased, axis=-1, descending=True, stable=True)
    rank = xp.argsort(order, axis=-1)
    return xp.astype(rank < top_k, xp.float64)


def load_of(scores: Any, bias: Any, top_k: int) -> Array:
    """Tokens per expert (..., experts) that a top-k gate with ``bias`` gives for these scores.

    Selection alone, no forward pass: what a load probe needs to try a bias on recorded scores.
    """
    scores = scores if hasattr(scores, "ndim") else as_bias(scores, "scores")[1]
    if not 0 < top_k <= scores.shape[-1]:
        raise TrimtabError(
            f"top_k must be from 1 to {scores.shape[-1]}, the number of experts; given {top_k}"
        )
    return array_namespace(scores).sum(selected(scores, bias, top_k), axis=-2)
