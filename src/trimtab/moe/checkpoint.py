"""A safetensors checkpoint in which the biases are other numbers, and nothing else has changed.

A safetensors file is a header (8 bytes of length, JSON with each tensor's dtype, shape and place) and the
tensors' bytes. The files are copied, and the bytes of the biases are overwritten where they lie: header,
order, dtypes, shards and index stay, so whatever reads the original reads the copy.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trimtab.errors import TrimtabError
from trimtab.moe.routers import BIAS_NAMES, Router

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LARGEST_HEADER = 100_000_000  # bytes, as the format's own readers have it


class Stored(NamedTuple):
    """Where one tensor of a checkpoint lies."""

    file: Path
    dtype: str  # as the format spells it: "F32", "BF16"
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the checkpoint in ``folder``, by name; an error where it has no safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    if not files:
        raise TrimtabError(f"{folder} has no *.safetensors files; save it with save_pretrained() first")
    found: dict[str, Stored] = {}
    for file in files:
        found |= tensors_of(file)
    return found


def tensors_of(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise TrimtabError(f"{file} is not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: Stored(
            file,
            entry["dtype"],
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }


def values_of(stored: Stored) -> np.ndarray:
    """A tensor's numbers, float64, flat."""
    with stored.file.open("rb") as stream:
        stream.seek(stored.begin)
        raw = bytearray(stream.read(stored.end - stored.begin))
    values: np.ndarray = torch.frombuffer(raw, dtype=DTYPES[stored.dtype]).double().numpy()
    return values


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """``values`` as a tensor of this dtype would hold them, float64."""
    held: np.ndarray = torch.from_numpy(np.asarray(values, np.float64)).to(DTYPES[dtype]).double().numpy()
    return held


def bias_names(stored: Mapping[str, Stored], routers: Sequence[Router]) -> list[str]:
    """The name under which the checkpoint keeps each router's bias.

    Modules and checkpoints name tensors differently (Kolibri's ``mlp.gate.e_score_correction_bias`` is stored
    as ``moe.router.expert_bias``, DeepSeek-V4's as ``ffn.gate.bias``): a bias is known by what it is: of the
    router's layer, called a bias, as many numbers as experts, and the ones that the model has loaded (to half
    a step of bfloat16). Where several are, all zero for instance, the usual names go first.
    """
    names = []
    for router in routers:
        held = router.stored().detach().double().cpu().numpy().reshape(-1)
        fitting = [
            name
            for name, tensor in stored.items()
            if layer_of(name) == layer_of(router.bias_name)
            and "bias" in name.rpartition(".")[2]
            and math.prod(tensor.shape) == router.experts
            and tensor.dtype in DTYPES
            and np.allclose(values_of(tensor), held, rtol=2.0**-8, atol=1e-30)
        ]
        usual = [name for name in fitting if name.rpartition(".")[2] in BIAS_NAMES]
        fitting = usual if len(fitting) > 1 else fitting
        if len(fitting) != 1:
            what = f"{len(fitting)} tensors" if fitting else "no tensor"
            raise TrimtabError(
                f"the checkpoint has {what} that could be {router.bias_name} ({router.experts} numbers "
                "equal to the loaded ones); cannot tell what to patch"
            )
        names += fitting
    return names


def layer_of(name: str) -> int | None:
    """The layer number in a tensor's name.

    >>> layer_of("model.layers.12.mlp.gate.e_score_correction_bias")
    12
    """
    found = re.search(r"layers?\.(\d+)\.", name) or re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def copy_files(source: Path, target: Path) -> None:
    """Everything in ``source`` but hidden files, into the empty folder ``target``."""
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def patch(folder: Path, biases: Mapping[str, np.ndarray]) -> None:
    """Overwrite tensors of the checkpoint in ``folder``, in their own dtype and place."""
    stored = stored_tensors(folder)
    for name, values in biases.items():
        tensor = stored[name]
        raw = torch.from_numpy(np.ascontiguousarray(values)).to(DTYPES[tensor.dtype])
        data = raw.contiguous().view(torch.uint8).numpy().tobytes()
        assert len(data) == tensor.end - tensor.begin
        with tensor.file.open("r+b") as stream:
            stream.seek(tensor.begin)
            stream.write(data)


def differing(source: Path, target: Path) -> list[str]:
    """Names of the tensors whose bytes are not the same in both checkpoints, or which only one has."""
    before, after = stored_tensors(source), stored_tensors(target)
    changed = sorted(set(before) ^ set(after))
    for name in sorted(set(before) & set(after)):
        first, second = before[name], after[name]
        same_kind = (first.dtype, first.shape) == (second.dtype, second.shape)
        if not same_kind or not same_bytes(first, second):
            changed.append(name)
    return changed


def same_bytes(first: Stored, second: Stored, block: int = 1 << 24) -> bool:
    """Whether two tensors of the same dtype and shape are equal, 16 MB at a time."""
    with first.file.open("rb") as one, second.file.open("rb") as other:
        one.seek(first.begin)
        other.seek(second.begin)
        left = first.end - first.begin
        while left:
            size = min(block, left)
            if one.read(size) != other.read(size):
                return False
            left -= size
    return True
