"""A trained policy on disk: ``NAME.safetensors`` with one tensor per part, ``NAME.json`` with what it is.

Read without torch and without pickle (safetensors, Hugging Face: a header and raw numbers).
``learn.policy`` writes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.routers.features import CONTEXT, FEATURES
from trimtab.routers.learned import parts

SHIPPED = Path(__file__).parent.parent / "data" / "policies" / "learned.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Policy:
    """``values`` (policy_size(hidden),) in the engine's order; ``about``: how it was trained."""

    values: NDArray[np.float64]
    hidden: int
    about: dict[str, Any]


def load_policy(path: str | Path | None = None) -> Policy:
    """A policy file; by default the one that ships with the package.

    Raises
    ------
    TrimtabError
        for a missing or damaged file, and one trained on other features than this version's.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    chosen = Path(path) if path else SHIPPED
    try:
        about = json.loads(chosen.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(chosen)
    except OSError as error:
        raise TrimtabError(f"cannot read policy {str(chosen)!r}: {error.strerror or error}") from None
    except (ValueError, SafetensorError):
        raise TrimtabError(f"policy {str(chosen)!r} is damaged, or is none") from None
    known = [*FEATURES, *CONTEXT]
    if about.get("format") != FORMAT or about.get("features") != known:
        raise TrimtabError(
            f"policy {str(chosen)!r} was trained on other features than this version's; train it again"
        )
    hidden = int(about["hidden"])
    shapes = parts(hidden)
    if {name: value.shape for name, value in tensors.items()} != shapes:
        raise TrimtabError(f"policy {str(chosen)!r} does not have the parts of a policy of {hidden} units")
    values = np.concatenate([tensors[name].astype(np.float64).ravel() for name in shapes])
    if not np.isfinite(values).all():
        raise TrimtabError(f"policy {str(chosen)!r} holds numbers that are not finite")
    return Policy(values, hidden, about)
