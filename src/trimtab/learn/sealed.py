"""Files that are whole or not there: tensors and JSON in one safetensors file under a checksum. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_whole(path: Path, content: bytes) -> None:
    """The file is there with all of ``content``, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)


def seal(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """A safetensors file with ``about`` as JSON in its header, and a checksum over both."""
    from safetensors.torch import save

    text = json.dumps(about)
    return bytes(save(tensors, {"trimtab": text, "sha256": _checksum(tensors, text)}))


def unseal(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and JSON of a file that is whole, else None."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])["__metadata__"]
        if header["sha256"] != _checksum(tensors, header["trimtab"]):
            return None
        about: dict[str, Any] = json.loads(header["trimtab"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return tensors, about


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
