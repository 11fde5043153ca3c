"""The profile on disk: a CSV that grows by one line per point, so that a stopped run goes on from there.

A line is written at once and whole; what a kill cut short at the end of the file is dropped when it is
opened again. One file may hold several models, degrees and devices.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from trimtab.errors import TrimtabError
from trimtab.exectime.profile.points import Point
from trimtab.exectime.profile_schema import COLUMNS

KEY = tuple(COLUMNS.index(name) for name in COLUMNS if name not in ("median_ms", "min_ms", "repeats"))
SUBJECT = 3  # device, model, tp


class Journal:
    """Rows of one (device, model, tp) in ``path``; other rows of the file are left alone."""

    def __init__(self, path: Path, device: str, model: str, tp: int, fresh: bool = False) -> None:
        """``fresh`` forgets earlier rows of this device, model and degree.

        Raises
        ------
        TrimtabError
            for a file that is no profile, or cannot be written.
        """
        self.path = path
        self.subject = (device, model, str(tp))
        rows = _read(path)
        if fresh:
            rows = [row for row in rows if tuple(row[:SUBJECT]) != self.subject]
        _replace(path, rows)
        self.done = {_key(row) for row in rows}

    def row(self, point: Point, median_ms: float, min_ms: float, repeats: int) -> list[str]:
        """The cells of a line; columns that do not apply are empty."""
        sizes = (point.tokens, point.batch, point.kv, point.chunk, point.m, point.k, point.n)
        return [
            *self.subject,
            point.operator,
            *("" if size is None else str(size) for size in sizes),
            f"{point.bytes:.0f}",
            f"{point.flops:.0f}",
            str(int(point.graph)),
            f"{median_ms:.6g}",
            f"{min_ms:.6g}",
            str(repeats),
        ]

    def has(self, point: Point) -> bool:
        return _key(self.row(point, 0.0, 0.0, 0)) in self.done

    def append(self, point: Point, median_ms: float, min_ms: float, repeats: int) -> None:
        row = self.row(point, median_ms, min_ms, repeats)
        line = _lines([row]).encode()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TrimtabError(f"cannot write {str(self.path)!r}: {error.strerror}") from None
        self.done.add(_key(row))


def _key(row: list[str]) -> tuple[str, ...]:
    return tuple(row[at] for at in KEY)


def _lines(rows: Iterable[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read(path: Path) -> list[list[str]]:
    """The whole lines of the file, without its header; none if there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise TrimtabError(f"{path} is not UTF-8 text, so no profile; give another --out") from None
    except OSError as error:
        raise TrimtabError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if not text:
        return []
    whole = text[: text.rfind("\n") + 1]
    header, *rows = list(csv.reader(io.StringIO(whole))) or [[]]
    if header != list(COLUMNS):
        raise TrimtabError(f"{path} exists and is no profile of ours, so it is kept; give another --out")
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(COLUMNS)), None)
    if wrong is not None:
        raise TrimtabError(
            f"{path}: line {wrong + 2}: {len(rows[wrong])} cells where the header has {len(COLUMNS)}"
        )
    return rows


def _replace(path: Path, rows: list[list[str]]) -> None:
    """Header and rows, under another name first."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(_lines([list(COLUMNS), *rows]), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise TrimtabError(f"cannot write {str(path)!r}: {error.strerror}") from None
