"""Mooncake traces: one JSON object per line, with the hashes of the prompt's blocks.

Keys: ``timestamp`` (ms), ``input_length`` and ``output_length`` (tokens), ``hash_ids`` (one whole
number per 512 tokens of prompt; equal leading numbers mean an equal prefix).
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.workload.values import MOST_TOKENS

Columns = tuple[
    NDArray[np.float64],
    NDArray[np.int32],
    NDArray[np.int32],
    None,
    NDArray[np.int64],
    NDArray[np.int64],
]


def read(path: Path, needs_times: bool) -> Columns:
    """Arrival (s from the first row), prefill, decode (tokens), no sessions, hash offsets and values.

    Raises
    ------
    TrimtabError
        naming file, line and key of the first bad value.
    """
    arrival, prefill, decode = array("d"), array("i"), array("i")
    offsets, hashes = array("q", [0]), array("q")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(_decoded(lines, path), start=1):
            if not line.strip():
                continue
            place = f"{path}: line {number}"
            row = _object(line, place)
            time = _number(row, "timestamp", place)
            if needs_times and arrival and time < arrival[-1]:
                _refuse(place, "timestamp", row["timestamp"], "is earlier than the row before")
            arrival.append(time)
            prefill.append(_tokens(row, "input_length", place))
            decode.append(_tokens(row, "output_length", place))
            hashes.extend(_hashes(row, place))
            offsets.append(len(hashes))
    milliseconds = np.array(arrival, np.float64)
    return (
        (milliseconds - milliseconds[:1]) / 1000,
        np.array(prefill, np.int32),
        np.array(decode, np.int32),
        None,
        np.array(offsets, np.int64),
        np.array(hashes, np.int64),
    )


def _decoded(lines: Any, path: Path) -> Any:
    try:
        yield from lines
    except UnicodeDecodeError:
        raise TrimtabError(f"{path} is not text; a Mooncake trace has one JSON object per line") from None


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise TrimtabError(f"{place}, column {error.colno}: not valid JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise TrimtabError(f"{place}: wanted a JSON object, got {line.strip()[:60]!r}")
    return row


def _number(row: dict[str, Any], key: str, place: str) -> float:
    """A finite number that is not negative."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        _refuse(place, key, value, "is not a number")
    if value < 0:
        _refuse(place, key, value, "is negative")
    return float(value)


def _tokens(row: dict[str, Any], key: str, place: str) -> int:
    value = _number(row, key, place)
    if value != int(value) or value > MOST_TOKENS:
        _refuse(place, key, row[key], f"is not a whole number of at most {MOST_TOKENS:,} tokens")
    return int(value)


def _hashes(row: dict[str, Any], place: str) -> list[int]:
    value = row.get("hash_ids", [])
    if not isinstance(value, list) or not all(type(item) is int and abs(item) < 2**63 for item in value):
        _refuse(place, "hash_ids", value, "is not a list of whole numbers")
    return value


def _refuse(place: str, key: str, value: object, problem: str) -> NoReturn:
    shown = "nothing" if value is None else repr(value)[:60]
    raise TrimtabError(f"{place}, column {key!r}: {shown} {problem}")
