"""Mixtures of experts: real models balanced while they run, experts placed on devices.

Names are fetched when first used: placement needs no torch, the others need the extra ``gates``.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "TopKGate": "trimtab.moe.gate",
    "attach": "trimtab.moe.attachment",
    "trained_bias": "trimtab.moe.attachment",
    "apply_sidecar": "trimtab.moe.sidecar",
    "Placement": "trimtab.moe.placement",
    "even_placement": "trimtab.moe.placement",
    "place": "trimtab.moe.placement",
    "published_placement": "trimtab.moe.placement",
    "rebalance": "trimtab.moe.placement",
}

__all__ = [
    "Placement",
    "TopKGate",
    "apply_sidecar",
    "attach",
    "even_placement",
    "place",
    "published_placement",
    "rebalance",
    "trained_bias",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'trimtab.moe' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
