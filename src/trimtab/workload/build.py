"""From a workload description and a seed to the table of requests that the engine serves."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab import scenario
from trimtab.engine.dtypes import NONE, REQUEST
from trimtab.errors import TrimtabError
from trimtab.workload import arrivals, lengths, sessions
from trimtab.workload.trace import Trace, read_trace

DEFAULT_REQUESTS = 1000
STREAMS = ("arrivals", "lengths", "coin_a", "coin_b", "sessions", "think")


def build_requests(workload: scenario.Workload, seed: int, base_dir: Path | None = None) -> NDArray[Any]:
    """The (N,) REQUEST table of a workload, sorted by arrival, every engine column initialised.

    Each purpose draws from its own stream of the seed, row by row: changing the arrivals leaves the
    lengths and coins as they were, and a longer workload begins with the shorter one.

    Parameters
    ----------
    workload
        what to build. ``duration_s`` wins over ``num_requests``; with neither, the whole trace or
        1,000 requests.
    seed
        same workload and seed, same table, bit for bit.
    base_dir
        folder that relative trace and mix paths refer to; the working directory when None.

    Returns
    -------
    Arrival in seconds; requests of a closed loop that wait for an answer have arrival inf and follow
    the first ones. ``expected_decode`` is the mean output of the whole table (tokens), because a
    router does not know the output length of a request.

    Raises
    ------
    TrimtabError
        for a workload that contradicts itself or a trace or mix that cannot be read.
    """
    streams = dict(zip(STREAMS, np.random.SeedSequence(seed).spawn(len(STREAMS)), strict=True))
    rng = {name: np.random.default_rng(stream) for name, stream in streams.items()}
    trace = _trace_of(workload, base_dir)

    if workload.users is None:
        times = arrivals.arrival_times(workload, trace, _count(workload, trace), rng["arrivals"])
    else:
        _refuse_duration(workload)
        times = np.full(_count(workload, trace), np.inf)
    table = _empty_table(times)
    prefill, decode = lengths.draw(workload, trace, len(table), rng["lengths"], base_dir)
    table["prefill_tokens"], table["decode_tokens"] = lengths.cap(prefill, decode, workload)
    if workload.users is None:
        sessions.open_loop(table, workload, trace, rng["sessions"])
    else:
        sessions.closed_loop(table, workload, rng["think"])

    table["target"] = table["prefill_tokens"]
    table["expected_decode"] = table["decode_tokens"].mean()
    table["coin_a"] = rng["coin_a"].random(len(table))
    table["coin_b"] = rng["coin_b"].random(len(table))
    return table


def _count(workload: scenario.Workload, trace: Trace | None) -> int:
    """How many requests are wanted where no duration says so."""
    if workload.num_requests is not None:
        return workload.num_requests
    replayed = workload.arrivals.kind == "trace" and workload.users is None
    uses_trace = replayed or workload.lengths.kind == "trace"
    return len(trace.prefill) if trace is not None and uses_trace else DEFAULT_REQUESTS


def _refuse_duration(workload: scenario.Workload) -> None:
    if workload.duration_s is not None:
        raise TrimtabError(
            f"duration_s={workload.duration_s:g} with users={workload.users}: how many requests a closed "
            "loop makes depends on the cluster; give num_requests, or time_limit_s of the scenario"
        )


def _empty_table(times: NDArray[np.float64]) -> NDArray[Any]:
    if len(times) == 0:
        raise TrimtabError("the workload has no requests; allow a longer duration_s or a higher rate")
    table = np.zeros(len(times), REQUEST)
    table["arrival"] = times
    for column in ("session", "next_turn", "replica", "next_waiting"):
        table[column] = NONE
    for column in ("scheduled", "first_token", "finished"):
        table[column] = np.nan
    return table


def _trace_of(workload: scenario.Workload, base_dir: Path | None) -> Trace | None:
    """The trace that arrivals or lengths need; None when they need none."""
    kinds: dict[str, str] = {"lengths": workload.lengths.kind}
    if workload.users is None:  # a closed loop has no arrivals of its own
        kinds["arrivals"] = workload.arrivals.kind
    needing = [part for part, kind in kinds.items() if kind in ("trace", "empirical")]
    if workload.trace is None:
        if needing:
            part = needing[0]
            raise TrimtabError(
                f"{part} of kind {kinds[part]!r} need a trace; set workload.trace.path to its file"
            )
        return None
    if not needing:
        raise TrimtabError(
            f"workload.trace.path={workload.trace.path!r} is not used: set workload.lengths.kind to "
            "'trace' or 'empirical', or workload.arrivals.kind to 'trace'"
        )
    path = resolve(workload.trace.path, base_dir)
    columns = tuple(sorted((workload.trace.columns or {}).items()))
    try:
        stat = os.stat(path)
    except OSError as error:
        raise TrimtabError(f"cannot read trace {str(path)!r}: {error.strerror}") from None
    needs_times = kinds.get("arrivals") == "trace"
    return _read_cached(path, stat.st_mtime_ns, stat.st_size, workload.trace.format, columns, needs_times)


def resolve(path: str, base_dir: Path | None) -> Path:
    """``path``, taken relative to ``base_dir`` when there is one."""
    return Path(base_dir, path) if base_dir is not None else Path(path)


@lru_cache(maxsize=2)
def _read_cached(
    path: Path,
    _mtime: int,
    _size: int,
    trace_format: str,
    columns: tuple[tuple[str, str], ...],
    needs_times: bool,
) -> Trace:
    """A comparison builds the same workload for many seeds; the file is read once."""
    return read_trace(path, trace_format, dict(columns) or None, needs_times=needs_times)
