"""The methods to choose from by name: which gate, what else is done in training, and where it is from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from trimtab.errors import TrimtabError, unknown
from trimtab.fusion.gate import ModalityGate
from trimtab.fusion.literal import LiteralGate

Settings = dict[str, Any]  # of ModalityGate
CONSERVATIVE: Settings = {"load_balance_update_rate": 0.005, "target_balance_ratio": 0.10}
STANDARD: Settings = {"load_balance_update_rate": 0.01, "target_balance_ratio": 0.15}
AGGRESSIVE: Settings = {"load_balance_update_rate": 0.05, "target_balance_ratio": 0.25}
OFF: Settings = {"enable_load_balancing": False, "logits": "free"}
HIDE = 0.2  # probability of hiding each modality of a sample


@dataclass(frozen=True)
class Method:
    """``gate``: settings of `ModalityGate`; the numbers after it are 0 where the method does without."""

    summary: str
    gate: Settings = field(default_factory=dict)
    literal: bool = False  # the first sketch's rule instead of the law
    hide: float = 0.0  # modality dropout
    auxiliary: float = 0.0  # weight of the auxiliary loss
    ogm_alpha: float = 0.0
    agm_alpha: float = 0.0


METHODS: dict[str, Method] = {
    "plain": Method("softmax gate, nothing else", OFF),
    "balanced": Method("bounded logits and a bias, standard: rate 0.01, ratio 0.15", STANDARD),
    "balanced-hide": Method("balanced, and modalities hidden at random in training", STANDARD, hide=HIDE),
    "conservative": Method("balanced with rate 0.005, ratio 0.10", CONSERVATIVE),
    "aggressive": Method("balanced with rate 0.05, ratio 0.25", AGGRESSIVE),
    "normalised": Method(
        "balanced with normalised instead of bounded logits", {**STANDARD, "logits": "normalised"}
    ),
    "literal": Method("the first sketch's rule: free logits, no bound", STANDARD, literal=True),
    "dropout": Method("modality dropout: modalities hidden at random in training", OFF, hide=HIDE),
    "auxiliary": Method("auxiliary loss that pulls mean weights to the target", OFF, auxiliary=1.0),
    "ogm-ge": Method("gradients of the modality ahead slowed, noise added", OFF, ogm_alpha=0.3),
    "agm": Method("gradients scaled by Shapley mono-modal outputs", OFF, agm_alpha=1.0),
}
RIVALS = ("dropout", "auxiliary", "ogm-ge", "agm")


def get_method(name: str) -> Method:
    """The method of this name."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def gate_for(
    method: Method, modalities: list[str], network: nn.Module, dominant: str | None, **changes: Any
) -> ModalityGate:
    """The gate of a method; ``changes`` (None: no change) replace its settings.

    The dominant modality may be left to detection, except where a method has none.
    """
    changed = {name: value for name, value in changes.items() if value is not None}
    settings = {**method.gate, **changed, "dominant": dominant}
    if dominant is None and (method.literal or method.auxiliary):
        raise TrimtabError("the methods literal and auxiliary need to be told the dominant modality")
    ratio = settings.get("target_balance_ratio", 0.15)
    if ratio > 1 / len(modalities) and "target_balance_ratio" not in changed:
        settings["target_balance_ratio"] = 1 / len(modalities)  # many modalities: even is the most there is
    return (LiteralGate if method.literal else ModalityGate)(modalities, network, **settings)
