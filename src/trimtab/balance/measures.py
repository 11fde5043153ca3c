"""How uneven a load is: one number per row of experts, and what chance alone would show.

Every measure takes a load ``(..., experts)`` of counts or shares, does not change when the load is
scaled, and returns ``(...)`` in the library of the load. docs/background/bias-laws.md has the formulas.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import device

from trimtab.balance.arrays import Array, as_load, as_target, relative_load
from trimtab.errors import TrimtabError


def max_violation(load: Any, target: Any = None) -> Array:
    """MaxVio: the most overloaded expert's load over its wanted load, less 1 (Wang et al. 2024)."""
    xp, load = as_load(load)
    return xp.max(relative_load(load, as_target(target, load)), axis=-1) - 1.0


def max_violation_global(loads: Any, target: Any = None) -> float:
    """MaxVio of the sum over batches: loads (batches, ..., experts), mean over the rows of each batch.

    Blind to a load that swings from batch to batch around an even mean; see `max_violation_batch`.
    """
    return float(max_violation(summed_batches(loads), target).mean())


def max_violation_batch(loads: Any, target: Any = None) -> float:
    """MaxVio of each batch, averaged: loads (batches, ..., experts). What the slowest device waits for."""
    violation = max_violation(loads, target)
    return float(violation.mean())


def summed_batches(loads: Any) -> Array:
    """The sum over batches of loads (batches, ..., experts)."""
    xp, loads = as_load(loads, what="loads")
    if loads.ndim < 2:
        raise TrimtabError(f"loads need the shape (batches, ..., experts); given {tuple(loads.shape)}")
    return xp.sum(loads, axis=0)


@lru_cache(maxsize=256)
def noise_floor(experts: int, draws: int, samples: int = 2000, seed: int = 0) -> float:
    """Mean MaxVio of a perfectly balanced gate that makes ``draws`` choices (tokens x top_k) at random.

    Simulated: ``samples`` multinomial draws, standard error below 1 % of the figure. A gate that never
    takes an expert twice for a token is slightly more even than that. No balance below it is real.

    >>> round(noise_floor(8, 4096), 2)
    0.06
    """
    if experts < 1 or draws < 1:
        raise TrimtabError(f"a noise floor needs experts and draws above 0; given {experts} and {draws}")
    generator = np.random.Generator(np.random.PCG64(seed))
    counts = generator.multinomial(draws, np.full(experts, 1.0 / experts), size=samples)
    return float(counts.max(axis=1).mean() * experts / draws - 1.0)


def excess_violation(load: Any, draws: int | None = None) -> Array:
    """MaxVio less its noise floor for uniform targets, (...). ``draws`` per row; None: the load's total."""
    xp, load = as_load(load)
    if draws is None:
        draws = round(float(xp.mean(xp.sum(load, axis=-1))))
    return max_violation(load) - noise_floor(load.shape[-1], draws)


def coefficient_of_variation(load: Any) -> Array:
    """Standard deviation over mean of the experts' loads; 0 is even."""
    xp, load = as_load(load)
    return xp.sqrt(squared_variation(load))


def squared_variation(load: Any, target: Any = None) -> Array:
    """Squared coefficient of variation, relative to ``target``: mean((share / wanted - 1)^2 x wanted).

    Its mean over draws of a perfectly balanced gate is (experts - 1) / draws, whatever the target, which
    is why a threshold on it needs no simulation (it is Pearson's chi-squared over the number of draws).
    """
    xp, load = as_load(load)
    wanted = as_target(target, load)
    squares = (relative_load(load, wanted) - 1.0) ** 2
    return xp.mean(squares, axis=-1) if wanted is None else xp.sum(squares * wanted, axis=-1)


def share_variance(load: Any) -> Array:
    """Population variance of the shares. Its largest value is below 1 / experts: it cannot be compared
    between gates of different size, and is here because monitoring asks for it."""
    load = as_load(load)[1]
    return squared_variation(load) / load.shape[-1] ** 2


def jain(load: Any) -> Array:
    """Jain's fairness index, 1 / (1 + CV^2): 1 is even, 1 / experts is one expert for all (Jain 1984)."""
    return 1.0 / (1.0 + squared_variation(load))


def gini(load: Any) -> Array:
    """Gini coefficient of the loads: 0 is even, (experts - 1) / experts is one expert for all."""
    xp, load = as_load(load)
    experts = load.shape[-1]
    ordered = xp.sort(load, axis=-1)
    weights = xp.asarray(np.arange(1 - experts, experts, 2), dtype=ordered.dtype, device=device(ordered))
    return xp.sum(ordered * weights, axis=-1) / (experts * xp.sum(ordered, axis=-1))


def normalised_entropy(load: Any) -> Array:
    """Entropy of the shares over its largest value, log(experts): 1 is even, 0 is one expert for all."""
    xp, load = as_load(load)
    if load.shape[-1] == 1:
        return xp.ones_like(load[..., 0])
    shares = load / xp.sum(load, axis=-1, keepdims=True)
    logs = xp.log(xp.where(shares > 0, shares, xp.ones_like(shares)))  # 0 log 0 = 0
    return -xp.sum(shares * logs, axis=-1) / math.log(load.shape[-1])


def dead_fraction(load: Any) -> Array:
    """Fraction of experts without any load. Falls with the size of the sample: give that beside it."""
    xp, load = as_load(load)
    return xp.mean(xp.astype(load == 0, load.dtype), axis=-1)


def balancedness(load: Any) -> Array:
    """Mean over largest load, 1 / (1 + MaxVio), as vLLM and SGLang log it: 1 is even."""
    return 1.0 / (1.0 + max_violation(load))


MEASURES = {
    "max_violation": max_violation,
    "cv": coefficient_of_variation,
    "jain": jain,
    "gini": gini,
    "normalised_entropy": normalised_entropy,
    "dead_fraction": dead_fraction,
    "balancedness": balancedness,
    "share_variance": share_variance,
}


def summary(load: Any) -> dict[str, float]:
    """Every measure of ``load``, averaged over its rows, by name."""
    return {name: float(measure(load).mean()) for name, measure in MEASURES.items()}
