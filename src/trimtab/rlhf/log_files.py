"""Logs of an RLHF run as the doctor reads them: console output, CSV, TensorBoard's event files.

Whatever the file, it ends as lines with their places and as measures by name, each a list of points with
the place that it was read from. Event files are read without TensorBoard.
"""

from __future__ import annotations

import csv
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trimtab.errors import TrimtabError

# 'name': 0.5, and as numpy and torch print: np.float64(0.5), tensor(0.5, ...)
ENTRY = re.compile(r"'([^']+)': (?:np\.float\d+\(|tensor\()?([-+]?(?:nan|inf|\d[\d.]*(?:e[-+]?\d+)?))", re.I)
STEP_LINE = re.compile(r"Global step (\d+): (\{.*)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STEP_COLUMNS = ("step", "global_step", "_step", "update")
ALIASES = {  # what others, and the guide, call OpenRLHF's measures
    "value_loss": "critic_loss",
    "clip_ratio": "ppo_clip_ratio",
    "clipfrac": "ppo_clip_ratio",
    "approx_kl": "ppo_kl",
    "entropy": "entropy_loss",
}
LARGEST = 2**29  # bytes of one file, all of which are held


@dataclass(frozen=True)
class Point:
    """One value of a measure, and where it stands."""

    step: int
    value: float
    place: str


@dataclass
class Logs:
    """All that was read. ``lines`` are (place, text) of console logs."""

    files: list[Path] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    measures: dict[str, list[Point]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps for which anything was measured."""
        return len({point.step for points in self.measures.values() for point in points})

    def add(self, name: str, point: Point) -> None:
        name = name.removeprefix("train/")
        self.measures.setdefault(ALIASES.get(name, name), []).append(point)


def read_logs(paths: list[Path]) -> Logs:
    """Every log of ``paths``; a folder stands for all logs below it.

    Raises
    ------
    TrimtabError
        for a path that is not there, and for a folder without logs.
    """
    logs = Logs()
    for path in paths:
        if not path.exists():
            raise TrimtabError(f"no log {str(path)!r}; give files or folders of OpenRLHF's output")
        logs.files += _below(path) if path.is_dir() else [path]
    for file in logs.files:
        if file.stat().st_size > LARGEST:
            raise TrimtabError(f"{file} has more than 512 MiB; give the part around the failure")
        if ".tfevents." in file.name:
            _read_events(file, logs)
        elif file.suffix == ".csv":
            _read_csv(file, logs)
        else:
            _read_console(file, logs)
    for points in logs.measures.values():
        points.sort(key=lambda point: point.step)
    return logs


def _below(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and (path.suffix in (".log", ".txt", ".out", ".err", ".csv") or ".tfevents." in path.name)
    )
    if not found:
        raise TrimtabError(f"no logs in {folder}; looked for .log .txt .out .err .csv and event files")
    return found


def _read_console(file: Path, logs: Logs) -> None:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, raw in enumerate(lines, 1):
            text, place = COLOUR.sub("", raw).strip(), f"{file}:{number}"
            if not text:
                continue
            logs.lines.append((place, text))
            step = STEP_LINE.search(text)
            if step:
                for name, value in ENTRY.findall(step[2]):
                    logs.add(name, Point(int(step[1]), float(value), place))


def _read_csv(file: Path, logs: Logs) -> None:
    with file.open(encoding="utf-8", errors="replace", newline="") as text:
        rows = csv.reader(text)
        header = [name.strip() for name in next(rows, [])]
        plain = [name.removeprefix("train/").lower() for name in header]
        at = next((plain.index(name) for name in STEP_COLUMNS if name in plain), None)
        for number, row in enumerate(rows, 2):
            step = _number(row[at]) if at is not None and at < len(row) else float(number - 1)
            if step is None:
                continue
            for column, (name, cell) in enumerate(zip(header, row, strict=False)):
                value = _number(cell)
                if column != at and value is not None:
                    logs.add(name, Point(int(step), value, f"{file}:{number}"))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# --- event files --------------------------------------------------------------------------------


def _read_events(file: Path, logs: Logs) -> None:
    """Scalars of TensorBoard: records of (length, checksum, message, checksum); a cut end is left out."""
    data, at, record = file.read_bytes(), 0, 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        message = data[at + 12 : at + 12 + length]
        if len(message) < length:
            break
        at, record = at + 16 + length, record + 1
        try:
            _read_event(message, logs, f"{file}:{record}")
        except (IndexError, struct.error, UnicodeDecodeError) as error:
            raise TrimtabError(
                f"{file} is no event file of TensorBoard, or is damaged: record {record}"
            ) from error


def _read_event(message: bytes, logs: Logs, place: str) -> None:
    step, summary = 0, b""
    for number, value in _fields(message):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            summary = value
    for number, entry in _fields(summary):
        if number == 1 and isinstance(entry, bytes):
            tag, scalar = _scalar(entry)
            if tag and scalar is not None:
                logs.add(tag, Point(step, scalar, place))


def _scalar(entry: bytes) -> tuple[str, float | None]:
    """Tag and value of one entry of a summary, also where the value is a tensor of one float."""
    tag, scalar = "", None
    for number, value in _fields(entry):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            tag = value.decode()
        elif number == 2:
            scalar = struct.unpack("<f", value)[0]
        elif number == 8:
            floats = [inner for name, inner in _fields(value) if name == 5 and isinstance(inner, bytes)]
            scalar = struct.unpack("<f", floats[0][:4])[0] if floats else None
    return tag, scalar


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field, value) of a protocol buffer: whole numbers as such, all else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise IndexError(kind)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
