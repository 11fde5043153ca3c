"""Bias laws and load measures for gates: who is chosen stays the scores' business, how often is kept even.

Everything works on arrays ``(..., experts)`` of NumPy, torch or any other library of the array API
standard, and imports none of the frameworks. docs/background/bias-laws.md has the formulas and sources.
"""

from typing import Any

from trimtab.balance.abtest import ABTest
from trimtab.balance.balancer import AdaptiveLoadBalancer
from trimtab.balance.counts import reduce_counts
from trimtab.balance.domains import AffinityLaw, DomainAdaptiveBias, HybridBias, hybrid_correction_bias
from trimtab.balance.guard import Guard
from trimtab.balance.laws import (
    BiasLaw,
    DynamicCorrectionBias,
    OnlineBiasLearning,
    ProportionalLaw,
    SignLaw,
    TanhMomentumLaw,
    load_of,
)
from trimtab.balance.limits import Limits, annealed, saturation
from trimtab.balance.monitor import LoadMonitor
from trimtab.balance.predictor import DomainDetector, LoadPredictor, TaskTypeClassifier
from trimtab.balance.quantile import QuantileHistogramLaw, QuantileLaw
from trimtab.balance.state import load_state, save_state
from trimtab.balance.threshold import AdaptiveThreshold
from trimtab.errors import unknown

LAWS: dict[str, type[BiasLaw]] = {
    "sign": SignLaw,
    "proportional": ProportionalLaw,
    "tanh": TanhMomentumLaw,
    "window": DynamicCorrectionBias,
    "ewma": OnlineBiasLearning,
    "quantile": QuantileLaw,
    "quantile-histogram": QuantileHistogramLaw,
}


def law(name: str, *args: Any, **settings: Any) -> BiasLaw:
    """The bias law of this name with its settings: ``law("sign", rate=0.01)``."""
    if name not in LAWS:
        raise unknown("bias law", name, LAWS)
    return LAWS[name](*args, **settings)


__all__ = [
    "LAWS",
    "ABTest",
    "AdaptiveLoadBalancer",
    "AdaptiveThreshold",
    "AffinityLaw",
    "BiasLaw",
    "DomainAdaptiveBias",
    "DomainDetector",
    "DynamicCorrectionBias",
    "Guard",
    "HybridBias",
    "Limits",
    "LoadMonitor",
    "LoadPredictor",
    "OnlineBiasLearning",
    "ProportionalLaw",
    "QuantileHistogramLaw",
    "QuantileLaw",
    "SignLaw",
    "TanhMomentumLaw",
    "TaskTypeClassifier",
    "annealed",
    "hybrid_correction_bias",
    "law",
    "load_of",
    "load_state",
    "reduce_counts",
    "saturation",
    "save_state",
]
