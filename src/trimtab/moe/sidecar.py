"""The bias of a model that has no place for one: a small file beside the checkpoint.

``trimtab_bias.safetensors`` has one float32 tensor (experts,) per router, under the router's name;
``trimtab_bias.json`` says which model it is for and how a serving engine is to use it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from torch import nn

from trimtab.errors import TrimtabError
from trimtab.moe.attachment import Attachment, attach
from trimtab.moe.routers import Router

TENSORS, WORDS = "trimtab_bias.safetensors", "trimtab_bias.json"
USE = (
    "Add each router's tensor to its logits when experts are selected (top-k of logits + bias; for sigmoid "
    "routers of sigmoid(logits) + bias); take the experts' weights from the logits without it."
)


def write_sidecar(folder: Path, routers: list[Router], bias: np.ndarray, model_type: str) -> None:
    """Write both files into ``folder``; ``bias`` is (layers, experts)."""
    rows = {router.name: row.astype(np.float32) for router, row in zip(routers, bias, strict=True)}
    save_file(rows, folder / TENSORS)
    words = {
        "model_type": model_type,
        "experts": routers[0].experts,
        "top_k": routers[0].top_k,
        "routers": [router.name for router in routers],
        "use": USE,
    }
    (folder / WORDS).write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")


def read_sidecar(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(router name -> bias (experts,), what is said about it)."""
    try:
        words = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        return load_file(folder / TENSORS), words
    except (OSError, ValueError) as error:
        raise TrimtabError(f"{folder} has no bias written by trimtab moe calibrate: {error}") from error


def apply_sidecar(model: nn.Module, folder: str | Path) -> Attachment:
    """Serve ``model`` with the bias in ``folder``, until ``detach()``. One for another model is refused."""
    rows, words = read_sidecar(Path(folder))
    attached = attach(model)
    here = [router.name for router in attached.routers]
    same = set(here) == set(rows) and all(row.shape == (attached.experts,) for row in rows.values())
    if not same or words.get("top_k") != attached.top_k:
        attached.detach()
        kind = words.get("model_type")
        raise TrimtabError(
            f"the bias in {folder} is for another model, a {kind} with {len(rows)} routers "
            f"of {words.get('experts')} experts; this one has {len(here)} of {attached.experts}"
        )
    attached.set_bias(np.stack([rows[name] for name in here]))
    return attached
