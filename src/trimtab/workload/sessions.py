"""Sessions: which requests belong together, and closed loops in which an answer brings the next."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab import scenario
from trimtab.engine.dtypes import NONE
from trimtab.workload.trace import Trace

LIVE_SESSIONS = 16  # open loop: sessions that take turns at a time


def open_loop(
    table: NDArray[Any], workload: scenario.Workload, trace: Trace | None, rng: np.random.Generator
) -> None:
    """Fill ``session`` and ``turn``: from the trace when it is replayed row by row, else at random.

    At random: sessions have ``requests_per_session`` requests each; ``LIVE_SESSIONS`` of them share
    a stretch of consecutive requests, in shuffled order, and then the next ones begin.
    """
    count, each = len(table), workload.requests_per_session
    replayed = workload.lengths.kind == "trace" and not workload.lengths.shuffle
    if trace is not None and trace.session is not None and replayed:
        table["session"] = trace.session[:count]
    elif each > 1:
        stretch = np.arange(count) // (LIVE_SESSIONS * each)
        order = np.argsort(stretch + rng.random(count), kind="stable")
        table["session"][order] = np.arange(count) // each
    else:
        return
    table["turn"] = _turns(table["session"])


def closed_loop(table: NDArray[Any], workload: scenario.Workload, rng: np.random.Generator) -> None:
    """Chains of requests, one per user: row i + users follows row i of the same user.

    The first request of a user comes after one think time, so that users do not march in step
    (all at zero when ``think_s`` is 0). Users beyond the number of requests have nothing to ask.
    ``requests_per_session`` consecutive requests of a user share a session.
    """
    assert workload.users is not None
    count, users, each = len(table), min(workload.users, len(table)), workload.requests_per_session
    table["arrival"][:users] = np.sort(rng.standard_exponential(users) * workload.think_s)
    following = np.arange(users, count)
    table["next_turn"][: count - users] = following
    table["think"][: count - users] = rng.standard_exponential(count - users) * workload.think_s
    if each > 1:
        step = np.arange(count) // users
        table["session"] = (step // each) * users + np.arange(count) % users
        table["turn"] = step % each


def _turns(session: NDArray[np.int32]) -> NDArray[np.int64]:
    """Position of each row among the rows of its session; 0 where there is none."""
    order = np.argsort(session, kind="stable")
    ordered = session[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    turn = np.empty(len(session), np.int64)
    turn[order] = np.arange(len(session)) - np.repeat(first, np.diff([*first, len(session)]))
    turn[session == NONE] = 0
    return turn
