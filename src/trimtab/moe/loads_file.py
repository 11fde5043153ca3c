"""Loads and placements in files: what a serving engine has counted, and where its experts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.moe.packing import Floats
from trimtab.moe.placement import Placement, check_loads

SUFFIXES = (".json", ".csv", ".npy", ".safetensors")
LOADS = ("loads", "logical_count")  # the second is what SGLang's recorder calls them
MAPS = ("phy2log", "physical_to_logical_map")  # EPLB's name and SGLang's


def read_loads(path: str | Path) -> Floats:
    """Loads (layers, experts) or (windows, layers, experts) of a file.

    .json: nested lists, or an object with them under `loads` or `logical_count`; .csv: a line per layer;
    .npy; .safetensors: the tensor `loads`, or the only one.

    Raises
    ------
    TrimtabError
        where the file cannot be read as loads; ``OSError`` where it cannot be opened.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise TrimtabError(f"{path}: loads are read from {', '.join(SUFFIXES)}, not {path.suffix or 'this'}")
    path.stat()  # says what is wrong with the path, where safetensors would not
    readers = {".json": _from_json, ".csv": _from_csv, ".npy": _from_npy, ".safetensors": _from_safetensors}
    try:
        return check_loads(readers[path.suffix](path))
    except TrimtabError as error:
        raise TrimtabError(f"{path}: {error}") from None


def read_placement(path: str | Path, devices: int, experts: int) -> Placement:
    """The placement of a .json file with EPLB's `phy2log` or SGLang's `physical_to_logical_map`."""
    try:
        found = _named(_parsed(Path(path)), MAPS, "it")
        return Placement.from_phy2log(found, devices, experts)
    except TrimtabError as error:
        raise TrimtabError(f"{path}: {error}") from None


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise TrimtabError("this is not JSON") from None


def _named(found: Any, names: tuple[str, ...], what: str) -> Any:
    if not isinstance(found, dict):
        return found
    for name in names:
        if name in found:
            return found[name]
    raise TrimtabError(
        f"{what} has neither {' nor '.join(names)}, but {', '.join(map(str, found)) or 'nothing'}"
    )


def _from_json(path: Path) -> Any:
    return _named(_parsed(path), LOADS, "it")


def _from_csv(path: Path) -> Any:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    rows = [line.split(",") for line in lines if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise TrimtabError(f"line {number} has {len(row)} numbers, the first {len(rows[0])}")
    return rows


def _from_npy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise TrimtabError("this is not an array of numbers in NumPy's format") from None


def _from_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except SafetensorError:
        raise TrimtabError("this is not a safetensors file") from None
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    return _named(tensors, LOADS, "it")
