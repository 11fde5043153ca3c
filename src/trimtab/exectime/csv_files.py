"""Reads profile and look-up CSVs into columns; a bad cell is named by file, line and column."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError, did_you_mean

Columns = dict[str, NDArray[np.float64]]
_WORDS = {"true": 1.0, "false": 0.0}


def read_text(path: Path) -> str:
    """The text of a file, unpacked if it ends in ``.gz``."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise TrimtabError(f"{path} is not UTF-8 text") from None
    except (gzip.BadGzipFile, EOFError):
        raise TrimtabError(f"{path} is not a complete gzip file") from None
    except OSError as error:
        raise TrimtabError(f"cannot read {str(path)!r}: {error.strerror}") from None


def read_columns(path: Path, required: list[str], optional: list[str] | None = None) -> Columns:
    """The named columns as float64 (true/false as 1/0). Optional ones may be absent.

    Raises
    ------
    TrimtabError
        for an unreadable or empty file, a missing column, or a cell that is not a finite number.
    """
    text = read_text(path)
    header = next(csv.reader(io.StringIO(text)), [])
    for name in required:
        if name not in header:
            raise TrimtabError(f"{path}: line 1: no column {name!r}.{did_you_mean(name, header)}")
    wanted = required + [name for name in optional or [] if name in header]
    positions = [header.index(name) for name in wanted]
    values = _fast(text, len(header), positions)
    if values is None:
        values = _careful(path, text, len(header), wanted, positions)
    if len(values) == 0:
        raise TrimtabError(f"{path}: no rows below the header")
    return {name: np.ascontiguousarray(values[:, i]) for i, name in enumerate(wanted)}


def _fast(text: str, width: int, positions: list[int]) -> NDArray[np.float64] | None:
    """All cells at once, or None when any needs a closer look."""
    if width != len(positions) or text.count("\n") < 2:
        return None
    try:
        values = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1, ndmin=2, comments=None)
    except ValueError:
        return None
    return values[:, positions] if np.isfinite(values).all() else None


def _careful(
    path: Path, text: str, width: int, names: list[str], positions: list[int]
) -> NDArray[np.float64]:
    rows = []
    reader = csv.reader(io.StringIO(text))
    next(reader, None)
    for cells in reader:
        if not cells:
            continue
        line = reader.line_num
        if len(cells) != width:
            raise TrimtabError(f"{path}: line {line}: {len(cells)} cells where the header has {width}")
        rows.append([_number(path, line, name, cells[at]) for name, at in zip(names, positions, strict=True)])
    return np.array(rows, dtype=np.float64).reshape(-1, len(names))


def _number(path: Path, line: int, name: str, cell: str) -> float:
    word = _WORDS.get(cell.strip().lower())
    if word is not None:
        return word
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise TrimtabError(f"{path}: line {line}, column {name!r}: {cell!r} is not a finite number")
    return value
