"""Biases by domain: one per kind of traffic, and their mixture with the trained and the dynamic one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from array_api_compat import array_namespace

from trimtab.balance.arrays import Array, as_bias, as_load, as_target, at_least, positive, relative_load
from trimtab.balance.laws import HELD, BiasLaw, OnlineBiasLearning
from trimtab.balance.limits import Limits
from trimtab.balance.state import Stateful
from trimtab.errors import TrimtabError, unknown

OBJECTIVES = ("balance", "affinity")
MakeLaw = Callable[[Any], BiasLaw]  # starting bias (or None) -> law


class AffinityLaw(BiasLaw):
    """b = start + scale * log(share / wanted), of an exponential average: used experts are *raised*.

    The opposite of balancing: a domain keeps to its own experts, for quality or for locality. It feeds on
    itself, so it is a map of the load and not a sum over time, and the bound is what ends it.
    """

    state = (*BiasLaw.state, "average")

    def __init__(
        self, scale: float = 0.1, decay: float = 0.9, *, limits: Limits = HELD, start: Any = None
    ) -> None:
        super().__init__(limits=limits, start=start)
        self.scale = positive(scale, "scale")
        self.memory = OnlineBiasLearning(decay=decay).decay
        self.average: Array | None = None

    def update(self, load: Any, target: Any = None) -> Array:
        """The bias (..., experts) for the share of each expert so far; no load at all counts as 0.001."""
        xp, load = as_load(load, self.bias)
        relative = relative_load(load, as_target(target, load))
        self.settle(xp, load)
        fresh = 1.0 if self.average is None else 1.0 - self.memory
        before = xp.zeros_like(relative) if self.average is None else self.average
        self.average = before + fresh * (relative - before)
        raised = self.scale * xp.log(at_least(xp, self.average, 1e-3))
        raised = raised - xp.mean(raised, axis=-1, keepdims=True)
        self.bias = self.limits.held(xp, self.start + raised, self.start)
        self.num_updates += 1
        return self.bias


class DomainAdaptiveBias(Stateful):
    """A bank of biases, one per domain, each learned from that domain's batches only.

    ``domains``: names, or a table name -> starting bias (..., experts). ``objective``: ``"balance"`` (each
    domain's load is evened out; ``law`` makes the law, `OnlineBiasLearning` by default) or ``"affinity"``
    (each domain is drawn to the experts that it uses; `AffinityLaw`). The two pull in opposite directions,
    hence no default. A domain that is not in the bank is an error, never silently a bias of zero.
    """

    state = ("laws",)

    def __init__(
        self,
        domains: Iterable[str] | Mapping[str, Any],
        objective: str,
        *,
        law: MakeLaw | None = None,
        start: Any = None,
    ) -> None:
        if objective not in OBJECTIVES:
            raise unknown("objective", objective, OBJECTIVES)
        if law is None:
            law = by_balance if objective == "balance" else by_affinity
        table = domains if isinstance(domains, Mapping) else dict.fromkeys(domains, start)
        if not table:
            raise TrimtabError("a bank of biases needs at least one domain; given none")
        self.objective = objective
        self.laws: dict[str, BiasLaw] = {name: law(bias) for name, bias in table.items()}

    def update(self, load: Any, target: Any = None, *, domain: str) -> Array:
        """The domain's bias (..., experts) after a batch of it with this load."""
        return self.law_of(domain).update(load, target)

    def get_bias(self, detected_domain: str) -> Array:
        """The domain's bias (..., experts). Before its first load that is its starting bias."""
        bias = self.law_of(detected_domain).bias
        if bias is None:
            raise TrimtabError(f"domain {detected_domain!r} has seen no load and was given no starting bias")
        return bias

    def table(self) -> Array:
        """(domains, ..., experts), in the order of ``laws``: for batches whose tokens differ in domain."""
        biases = [self.get_bias(name) for name in self.laws]
        return array_namespace(*biases).stack(biases)

    def law_of(self, domain: str) -> BiasLaw:
        if domain not in self.laws:
            raise unknown("domain", domain, self.laws)
        return self.laws[domain]


def by_balance(start: Any) -> BiasLaw:
    """What learns a domain's bias unless another law is asked for."""
    return OnlineBiasLearning(0.01, start=start)


def by_affinity(start: Any) -> BiasLaw:
    """What draws a domain to its experts unless another law is asked for."""
    return AffinityLaw(start=start)


def hybrid_correction_bias(
    base_bias: Any,
    dynamic_bias: Any,
    domain_bias: Any,
    alpha: float = 0.5,
    beta: float = 0.3,
    gamma: float = 0.2,
    *,
    literal: bool = False,
) -> Array:
    """The trained, the dynamic and the domain's bias (..., experts) in one, float64.

    Each is a whole bias, and the result their weighted mean: three equal ones give that one back, to the
    bit, whatever the weights. ``literal``: alpha base + beta dynamic + gamma domain as first written down,
    which is the same for weights that sum to 1, but is commonly fed a dynamic and a domain bias that start
    at zero: then the trained bias is halved before any load has shifted.
    """
    base = as_bias(base_bias, "base_bias")[1]
    dynamic = as_bias(dynamic_bias, "dynamic_bias", base)[1]
    domain = as_bias(domain_bias, "domain_bias", base)[1]
    weights = [positive(w, n, zero=True) for w, n in ((alpha, "alpha"), (beta, "beta"), (gamma, "gamma"))]
    if literal:
        return alpha * base + beta * dynamic + gamma * domain
    total = positive(sum(weights), "alpha + beta + gamma")
    return base + (beta / total) * (dynamic - base) + (gamma / total) * (domain - base)


class HybridBias(Stateful):
    """`hybrid_correction_bias` kept up to date: a dynamic law for all traffic, a bank for its domains.

    ``base`` is the trained bias (..., experts); ``law`` makes the dynamic law and every domain's. All start
    from ``base`` (with ``literal`` from zero, as first written down).
    """

    state = ("base", "dynamic", "domains")
    observes = "load"

    def __init__(
        self,
        base: Any,
        domains: Iterable[str],
        *,
        alpha: float = 0.5,
        beta: float = 0.3,
        gamma: float = 0.2,
        literal: bool = False,
        law: MakeLaw | None = None,
    ) -> None:
        xp, self.base = as_bias(base, "base")
        start = xp.zeros_like(self.base) if literal else self.base
        self.dynamic = (law or by_balance)(start)
        self.domains = DomainAdaptiveBias(domains, "balance", law=law, start=start)
        self.weights, self.literal = (alpha, beta, gamma), literal

    def update(self, load: Any, target: Any = None, *, domain: str) -> Array:
        """The mixed bias (..., experts) after a batch of ``domain`` with this load."""
        self.domains.law_of(domain)  # an unknown one is refused before anything has changed
        self.dynamic.update(load, target)
        self.domains.update(load, target, domain=domain)
        return self.get_bias(domain)

    def get_bias(self, domain: str) -> Array:
        """The mixed bias (..., experts) for the next batch of ``domain``."""
        own = self.domains.get_bias(domain)
        return hybrid_correction_bias(self.base, self.dynamic.bias, own, *self.weights, literal=self.literal)
