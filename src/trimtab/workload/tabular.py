"""CSV and Parquet traces, read block by block into numbers; the first bad value is named."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError, did_you_mean
from trimtab.workload.values import BadValue, Clock, numbered, tokens

BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Layout:
    """The names of a format's columns; ``prefill`` and ``decode`` must exist, the others may.

    ``from_first``: numeric times count from the first row too, because the format's origin is
    arbitrary (BurstGPT's third file begins 225 days after it).
    """

    arrived_at: str
    prefill: str
    decode: str
    session: str | None = None
    from_first: bool = False

    def required(self) -> list[str]:
        return [self.prefill, self.decode]


Columns = tuple[NDArray[np.float64] | None, NDArray[np.int32], NDArray[np.int32], NDArray[np.int32] | None]


def header(path: Path) -> list[str]:
    """The column names of a CSV or Parquet file."""
    if _is_parquet(path):
        return list(_parquet(path).schema_arrow.names)
    try:
        with _text(path) as lines:
            return [name.strip() for name in next(csv.reader(lines), [])]
    except (UnicodeDecodeError, csv.Error):
        raise TrimtabError(
            f"{path} is not text; a trace is CSV, Parquet (.parquet) or JSONL (.jsonl)"
        ) from None


def read(path: Path, layout: Layout, needs_times: bool) -> Columns:
    """Arrival (s, or None), prefill and decode (tokens), session (or None) of every row.

    Date-times count from the first row; numbers are seconds as they stand, unless ``from_first``.

    Raises
    ------
    TrimtabError
        naming file, line and column.
    """
    names = header(path)
    for name in [*layout.required(), *([layout.arrived_at] if needs_times else [])]:
        if name not in names:
            hint = did_you_mean(name, names)
            raise TrimtabError(
                f"{path} has no column {name!r}; it has {', '.join(names) or 'nothing'}.{hint}"
            )
    timed = layout.arrived_at in names
    session = layout.session if layout.session in names else None
    wanted = [*layout.required(), *([layout.arrived_at] if timed else []), *([session] if session else [])]

    clock = Clock(layout.arrived_at, needs_times, layout.from_first)
    times: list[NDArray[np.float64]] = []
    prefill, decode = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    sessions: list[Any] = []
    done = 0
    for block in _blocks(path, wanted):
        try:
            prefill.append(tokens(block[layout.prefill], layout.prefill))
            decode.append(tokens(block[layout.decode], layout.decode))
            if timed:
                times.append(clock.seconds(block[layout.arrived_at]))
        except BadValue as bad:
            raise TrimtabError(
                f"{_place(path, done + bad.row)}, column {bad.column!r}: {bad.reason}"
            ) from None
        if session:
            sessions.append(block[session])
        done += len(prefill[-1])
    return (
        np.concatenate(times) if times else None,
        np.concatenate(prefill),
        np.concatenate(decode),
        numbered(sessions) if sessions else None,
    )


def _blocks(path: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """The wanted columns as Arrow arrays, a few megabytes at a time; the values of a CSV stay text."""
    import pyarrow

    refused: list[Any] = []
    try:
        for batch in (
            _parquet(path).iter_batches(columns=names) if _is_parquet(path) else _csv(path, names, refused)
        ):
            yield {name: batch.column(name) for name in names}
    except pyarrow.ArrowInvalid as error:
        if not refused:
            raise TrimtabError(f"{path}: {str(error).splitlines()[0]}") from None
        row = refused[0]
        raise TrimtabError(
            f"{_place(path, row.number - 2)}: {row.actual_columns} fields where the header has "
            f"{row.expected_columns}: {row.text[:80]!r}"
        ) from None


def _csv(path: Path, names: list[str], refused: list[Any]) -> Iterator[Any]:
    """Record batches of text; a row with too few or too many fields is noted in ``refused``."""
    import pyarrow
    import pyarrow.csv

    def refuse(row: Any) -> str:
        refused.append(row)
        return "error"

    with pyarrow.csv.open_csv(
        str(path),
        # one thread, because only then are refused rows numbered
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=refuse),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pyarrow.string()), null_values=[]
        ),
    ) as reader:
        yield from reader


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid:
        raise TrimtabError(f"{path} is not a Parquet file") from None


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _text(path: Path) -> IO[str]:
    import pyarrow

    return io.TextIOWrapper(pyarrow.input_stream(str(path)), encoding="utf-8-sig", newline="")


def _place(path: Path, row: int) -> str:
    """``FILE: line N`` of data row ``row``; empty lines are no rows, but they are lines."""
    if _is_parquet(path):
        return f"{path}: row {row + 1}"
    with _text(path) as lines:
        filled = -1  # the header is row -1
        for number, line in enumerate(lines, start=1):
            if line.strip("\r\n"):
                if filled == row:
                    return f"{path}: line {number}"
                filled += 1
    return f"{path}: row {row + 1}"
