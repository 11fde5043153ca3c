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
from trimtab.workload import arrivals, content, conversations, lengths, prefixes, sessions
from trimtab.workload.content import Traffic
from trimtab.workload.trace import Trace, read_trace

DEFAULT_REQUESTS = 1000
STREAMS = (  # new ones at the end: the others stay as they were
    "arrivals",
    "lengths",
    "coin_a",
    "coin_b",
    "sessions",
    "think",
    "turns",
    "prefixes",
    "prefix_tokens",
)
Streams = dict[str, np.random.SeedSequence]


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
    return build_traffic(workload, seed, base_dir).requests


def build_traffic(workload: scenario.Workload, seed: int, base_dir: Path | None = None) -> Traffic:
    """The requests of ``build_requests``, and what their prompts share.

    Raises
    ------
    TrimtabError
        as ``build_requests``, and for prefix hashes that do not cover their prompt.
    """
    streams = dict(zip(STREAMS, np.random.SeedSequence(seed).spawn(len(STREAMS)), strict=True))
    trace = _trace_of(workload, base_dir)
    _check_sharing(workload, trace)
    if workload.sessions is not None:
        traffic = _conversations(workload, trace, streams, base_dir)
    else:
        traffic = _single_requests(workload, trace, streams, base_dir)
    table = traffic.requests
    table["target"] = table["prefill_tokens"]
    table["expected_decode"] = table["decode_tokens"].mean()
    table["coin_a"] = _rng(streams, "coin_a").random(len(table))
    table["coin_b"] = _rng(streams, "coin_b").random(len(table))
    return traffic


def _rng(streams: Streams, name: str) -> np.random.Generator:
    """The stream of that name from its beginning."""
    return np.random.default_rng(streams[name])


def _single_requests(
    workload: scenario.Workload, trace: Trace | None, streams: Streams, base_dir: Path | None
) -> Traffic:
    if workload.users is None:
        times = arrivals.arrival_times(workload, trace, _count(workload, trace), _rng(streams, "arrivals"))
    else:
        _refuse_duration(workload)
        times = np.full(_count(workload, trace), np.inf)
    table = _empty_table(times)
    count = len(table)
    prefix = prefixes.draw(workload, count, _rng(streams, "prefixes"), _rng(streams, "prefix_tokens"))
    prefill, decode = lengths.draw(workload, trace, count, _rng(streams, "lengths"), base_dir)
    prefill, decode = lengths.cap(prefill, decode, workload, prefix.tokens)
    table["prefill_tokens"], table["decode_tokens"] = prefill + prefix.tokens, decode
    if workload.users is None:
        sessions.open_loop(table, workload, trace, _rng(streams, "sessions"))
    else:
        sessions.closed_loop(table, workload, _rng(streams, "think"))
    if workload.prefixes is not None:
        return content.begun(table, prefix)
    if _replays_hashes(workload, trace):
        assert trace is not None
        assert workload.trace is not None
        assert isinstance(workload.lengths, scenario.TraceLengths)
        rows = lengths.trace_rows(workload.lengths, trace, count, _rng(streams, "lengths"))
        return content.hashed(table, trace, rows, workload.trace.hash_tokens)
    return content.private(table)


def _conversations(
    workload: scenario.Workload, trace: Trace | None, streams: Streams, base_dir: Path | None
) -> Traffic:
    law = workload.sessions
    assert law is not None
    drawn = conversations.Conversations(
        workload,
        num_turns=lambda n: conversations.number_of_turns(law, n, _rng(streams, "turns")),
        words=lambda n: lengths.draw(workload, trace, n, _rng(streams, "lengths"), base_dir),
        prefixes=lambda n: prefixes.draw(
            workload, n, _rng(streams, "prefixes"), _rng(streams, "prefix_tokens")
        ),
    )
    limited = trace is not None and workload.lengths.kind == "trace"
    most = len(trace.prefill) if limited and trace is not None else conversations.PILOT
    mean = drawn.mean_turns(most)
    if workload.duration_s is not None:
        times = conversations.start_times(
            workload, trace, _count(workload, trace), mean, _rng(streams, "arrivals")
        )
        turns = drawn.turns_of(max(len(times), 1))
    else:
        turns = drawn.first(_count(workload, trace))
        count = int(turns.session[-1]) + 1
        times = conversations.start_times(workload, trace, count, mean, _rng(streams, "arrivals"))
    table = _empty_table(np.zeros(len(turns.turn) if len(times) else 0))
    return conversations.fill(table, turns, times, law.think_s, _rng(streams, "think"))


def _check_sharing(workload: scenario.Workload, trace: Trace | None) -> None:
    """Ways of sharing that contradict each other."""
    if workload.sessions is not None:
        if workload.users is not None:
            raise TrimtabError(
                f"workload.users={workload.users} with workload.sessions: arrivals start sessions, and their "
                "turns close the loop; drop one of the two"
            )
        if workload.requests_per_session > 1:
            raise TrimtabError(
                f"workload.requests_per_session={workload.requests_per_session} with workload.sessions; "
                "give the number of turns as workload.sessions.turns"
            )
    given = (
        "sessions" if workload.sessions is not None else "prefixes" if workload.prefixes is not None else None
    )
    if given is not None and _replays_hashes(workload, trace):
        raise TrimtabError(
            f"workload.{given} with a trace that says itself what its prompts share (hash_ids); "
            f"drop workload.{given}, or take lengths of kind 'empirical' from the trace"
        )


def _replays_hashes(workload: scenario.Workload, trace: Trace | None) -> bool:
    """Whether the requests are rows of a trace with prefix hashes, each at most once."""
    if trace is None or trace.hash_values is None or workload.lengths.kind != "trace":
        return False
    return len(trace.hash_values) > 0


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
