"""Trace files: one reader for every format, chosen by the header, with one kind of table at the end."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError, unknown
from trimtab.workload import mooncake, tabular
from trimtab.workload.tabular import Layout

LAYOUTS = {
    "azure": Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "vidur": Layout("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    "burstgpt": Layout("Timestamp", "Request tokens", "Response tokens", "Session ID", from_first=True),
    "table": Layout("arrived_at", "prefill", "decode", "session"),
}
FORMATS = ("auto", "azure", "burstgpt", "mooncake", "table", "vidur")
KEYS = ("arrived_at", "prefill", "decode", "session")


@dataclass(frozen=True)
class Trace:
    """The requests of a trace file, in file order.

    ``name`` file name for messages; ``arrival`` (N,) s, not sorted unless that was asked for, None
    where the file has no times; ``prefill`` and ``decode`` (N,) tokens, 0 or more; ``session`` (N,)
    numbered from 0 in order of appearance, -1 for none. Row i of a trace with prefix hashes owns
    ``hash_values[hash_offsets[i]:hash_offsets[i + 1]]``. ``dropped`` rows of failed requests are not
    in the arrays.
    """

    name: str
    arrival: NDArray[np.float64] | None
    prefill: NDArray[np.int32]
    decode: NDArray[np.int32]
    session: NDArray[np.int32] | None = None
    hash_offsets: NDArray[np.int64] | None = None
    hash_values: NDArray[np.int64] | None = None
    dropped: int = 0


def read_trace(
    path: Path | str,
    trace_format: str = "auto",
    columns: dict[str, str] | None = None,
    *,
    needs_times: bool = False,
) -> Trace:
    """Read and check a trace file, block by block.

    Parameters
    ----------
    path
        CSV (also .csv.gz), Parquet or JSONL.
    trace_format
        one of ``FORMATS``; ``auto`` looks at the header.
    columns
        the file's own names of ``KEYS`` (format ``table``); a key that is left out keeps its name.
    needs_times
        whether arrival times must exist and be sorted.

    Raises
    ------
    TrimtabError
        naming file, line and column of the first bad value; also for an empty trace.
    """
    path = Path(path)
    if trace_format not in FORMATS:
        raise unknown("trace format", trace_format, FORMATS)
    try:
        trace = _read(path, trace_format, columns, needs_times)
    except OSError as error:
        raise TrimtabError(f"cannot read trace {str(path)!r}: {error.strerror or error}") from None
    if len(trace.prefill) == 0:
        raise TrimtabError(f"trace {str(path)!r} holds no requests")
    return trace


def _read(path: Path, trace_format: str, columns: dict[str, str] | None, needs_times: bool) -> Trace:
    if columns is None and (
        trace_format == "mooncake" or (trace_format == "auto" and path.suffix in (".jsonl", ".json"))
    ):
        return Trace(path.name, *mooncake.read(path, needs_times))
    if columns is not None:
        layout = _mapped(columns, trace_format, path)
    else:
        layout = LAYOUTS[trace_format] if trace_format != "auto" else _detect(path)
    trace = Trace(path.name, *tabular.read(path, layout, needs_times))
    return _without_failures(trace) if layout is LAYOUTS["burstgpt"] else trace


def _mapped(columns: dict[str, str], trace_format: str, path: Path) -> Layout:
    """The layout of a table whose columns the user names; a name that is given must exist."""
    if trace_format not in ("auto", "table"):
        raise TrimtabError(f"columns are for format 'table'; format {trace_format!r} has names of its own")
    header = tabular.header(path)
    for key, name in columns.items():
        if key not in KEYS:
            raise unknown("trace column", key, KEYS)
        if name not in header:
            raise unknown(f"column for {key!r} in {path}:", name, header)
    names = {key: columns.get(key, key) for key in KEYS}
    return Layout(names["arrived_at"], names["prefill"], names["decode"], names["session"])


def _detect(path: Path) -> Layout:
    header = tabular.header(path)
    if not header:
        raise TrimtabError(f"trace {str(path)!r} is empty")
    for layout in LAYOUTS.values():
        if layout.prefill in header and layout.decode in header:
            return layout
    known = "; ".join(f"{name}: {', '.join(layout.required())}" for name, layout in LAYOUTS.items())
    raise TrimtabError(
        f"{path}: no known trace has the columns {', '.join(header)}; give columns "
        f"(arrived_at, prefill, decode, session -> your names), or use one of {known}"
    )


def _without_failures(trace: Trace) -> Trace:
    """BurstGPT logs failed requests with no response tokens; they are dropped, and that is said."""
    good = trace.decode > 0
    dropped = int(len(good) - good.sum())
    if dropped == 0:
        return trace
    warnings.warn(f"{trace.name}: {dropped:,} failed requests (no response tokens) dropped", stacklevel=4)
    return replace(
        trace,
        arrival=None if trace.arrival is None else trace.arrival[good],
        prefill=trace.prefill[good],
        decode=trace.decode[good],
        session=None if trace.session is None else trace.session[good],
        dropped=dropped,
    )
