"""Ways to adapt a trained model's biases to its traffic, by name: what the shift study compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trimtab.balance import (
    AdaptiveLoadBalancer,
    AdaptiveThreshold,
    BiasLaw,
    DomainAdaptiveBias,
    DomainDetector,
    HybridBias,
    LoadPredictor,
    TaskTypeClassifier,
    law,
    load_of,
)
from trimtab.balance.measures import max_violation
from trimtab.errors import unknown
from trimtab.moe.adaptation import (
    Adapter,
    ByDomain,
    ByHybrid,
    ByLaw,
    ByPrediction,
    Bytes,
    Fixed,
    Floats,
    Guarded,
    WhenUneven,
    Whole,
    gate_scores,
)
from trimtab.moe.language_model import MoELanguageModel

MEMORY = 0.8  # of the quantile law in service: a batch of text is burstier than chance
SCALES = np.geomspace(0.003, 0.3, 9)  # that the predictor's correction is chosen from


@dataclass(frozen=True)
class Ground:
    """What every strategy starts from: the model, and a few batches of *training* text of each kind of
    traffic, (sequences, bytes + 1) each."""

    model: MoELanguageModel
    calibration: dict[str, list[Bytes]]

    @cached_property
    def base(self) -> Floats:
        """The trained biases (layers, experts)."""
        found: Floats = self.model.biases().numpy()
        return found

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of traffic."""
        return tuple(self.calibration)

    @property
    def top_k(self) -> int:
        return self.model.shape.top_k

    @cached_property
    def scores(self) -> dict[str, list[Floats]]:
        """Of each calibration batch, (layers, tokens, experts)."""
        return {
            kind: [gate_scores(self.model, text) for text in texts]
            for kind, texts in self.calibration.items()
        }

    def detector(self) -> DomainDetector:
        """Tells the kinds of traffic apart; learned from the calibration text."""
        classifier = TaskTypeClassifier(self.kinds)
        for kind, texts in self.calibration.items():
            for text in texts:
                classifier.update(text, kind)
        return DomainDetector(classifier)

    def quantile(self, start: Any, memory: float = MEMORY, cap: float | None = None) -> BiasLaw:
        """The law that reads scores."""
        return law("quantile", self.top_k, memory=memory, cap=cap, start=start)

    def balanced(self, kind: str) -> Floats:
        """The biases that balance the calibration text of a kind."""
        fitted = law("quantile", self.top_k, rounds=8, start=self.base)
        found: Floats = fitted.update(np.concatenate(self.scores[kind], axis=1))
        return found


def by_law(name: str, *settings: float, **keywords: Any) -> Callable[[Ground], Adapter]:
    """A strategy of one law that starts at the trained biases."""
    return lambda ground: ByLaw(law(name, *settings, start=ground.base, **keywords), ground.base)


def by_quantile(
    memory: float = MEMORY, strength: float = 1.0, cap: float | None = None
) -> Callable[[Ground], Adapter]:
    """A strategy of the quantile law, so far from the trained biases towards it."""
    return lambda ground: ByLaw(ground.quantile(ground.base, memory, cap), ground.base, strength)


def domain(ground: Ground) -> Adapter:
    """A law per kind of traffic, each from the trained biases on."""
    bank = DomainAdaptiveBias(ground.kinds, "balance", law=ground.quantile, start=ground.base)
    return ByDomain(bank, ground.detector())


def domain_calibrated(ground: Ground) -> Adapter:
    """The same, each from biases that balance training text of its kind on."""
    start = {kind: ground.balanced(kind) for kind in ground.calibration}
    return ByDomain(DomainAdaptiveBias(start, "balance", law=ground.quantile), ground.detector())


def hybrid(ground: Ground) -> Adapter:
    """.5 trained, .3 dynamic, .2 the kind's own."""
    return ByHybrid(HybridBias(ground.base, ground.kinds), ground.detector())


def predictor(ground: Ground) -> Adapter:
    """The load that the text foretells, evened before it comes; the scale that does best on calibration."""
    predicting = LoadPredictor(ground.kinds, ground.base.shape)
    for kind, batches in ground.scores.items():
        for text, scores in zip(ground.calibration[kind], batches, strict=True):
            predicting.update(text, load_of(scores, ground.base, ground.top_k), kind)
    tried = [
        np.mean([left_over(ground, predicting, kind, scale) for kind in ground.calibration])
        for scale in SCALES
    ]
    best = np.array([[SCALES[int(np.argmin(tried))]]])
    return ByPrediction(predicting, ground.base, best)


def left_over(ground: Ground, predicting: LoadPredictor, kind: str, scale: float) -> float:
    """MaxVio of a kind's first calibration batch with the predictor's biases."""
    adapter = ByPrediction(predicting, ground.base, np.array([[scale]]))
    biases = adapter.biases(ground.calibration[kind][0])
    return float(max_violation(load_of(ground.scores[kind][0], biases, ground.top_k)).mean())


def whole(ground: Ground) -> Adapter:
    """Detector, hybrid, threshold, monitor and guard together, with their defaults."""
    return Whole(AdaptiveLoadBalancer(ground.base, ground.detector(), threshold=AdaptiveThreshold()))


STRATEGIES: dict[str, Callable[[Ground], Adapter]] = {
    "fixed": lambda ground: Fixed(ground.base),
    "sign": by_law("sign", 0.01),
    "window 1000": by_law("window", 1000, 0.01),
    "ewma": by_law("ewma", 0.01),
    "quantile, no memory": by_quantile(0.0),
    "quantile": by_quantile(),
    "quantile, cap 1.1": by_quantile(cap=1.1),
    "domain": domain,
    "domain, calibrated": domain_calibrated,
    "hybrid": hybrid,
    "predictor": predictor,
    "threshold": lambda ground: WhenUneven(by_quantile()(ground), AdaptiveThreshold()),
    "guarded": lambda ground: Guarded(by_quantile()(ground), ground.model, ground.base),
    "whole balancer": whole,
}


def adapter_of(name: str, ground: Ground) -> Adapter:
    """The strategy of this name, new; ``"quantile x 0.5"`` is the quantile law at half strength."""
    base, _, strength = name.partition(" x ")
    if base == "quantile" and strength:
        return by_quantile(strength=float(strength))(ground)
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name](ground)
