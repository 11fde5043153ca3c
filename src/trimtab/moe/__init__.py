"""Mixtures of experts: gates of real models, balanced while they run. Needs the extra ``gates``.

Names are fetched when first used, so that what needs no torch loads none.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "attach": "trimtab.moe.attachment",
    "trained_bias": "trimtab.moe.attachment",
    "apply_sidecar": "trimtab.moe.sidecar",
}

__all__ = ["apply_sidecar", "attach", "trained_bias"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'trimtab.moe' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
