"""Runs that are asked from outside, many per call: each goes on to its next question, and leaves what the
learner sees and what the time since the last question cost. A door of its own: it compiles on first use.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from trimtab.cluster.entrance import reachable
from trimtab.cluster.whole import advance_whole, answer_whole
from trimtab.engine.dtypes import NONE, Outcome, Status
from trimtab.engine.jit import door, jit
from trimtab.engine.state import State, state_at
from trimtab.routers.features import NUM_FEATURES, observe
from trimtab.routers.learned import POOLED, pool

ASKING = int(Outcome.ASKING)
PENDING, REJECTED = int(Status.PENDING), int(Status.REJECTED)
FAILED, ABORTED = int(Status.FAILED), int(Status.ABORTED)

UNTIL, SINCE, AREA, WAITED, DWELT, UNSERVED = range(6)  # columns of a ledger
OUTCOME, OPEN, SENT = range(3)  # and of notes
LEDGER, NOTES = 6, 3


@door
def step_runs(
    runs: Any,
    first: int,
    last: int,
    actions: NDArray[Any],
    seen: NDArray[Any],
    pooled: NDArray[Any],
    masks: NDArray[Any],
    opened: NDArray[Any],
    ledger: NDArray[Any],
    notes: NDArray[Any],
    prices: NDArray[Any],
    rewards: NDArray[Any],
) -> None:
    """Answer the questions of runs ``first`` to before ``last``, and let each go on to its next one.

    runs: addresses (E,) uintp of their states; uncompiled, a list of states. actions (E,) i8: replicas, or
    NONE where there is no question yet. seen (E, M, NUM_FEATURES), pooled (E, POOLED) f4 and masks (E, M) i1
    are what the learner sees next, zero where a run has ended. opened (E, N) i8: requests that were
    routed and wait for their first token; notes (E, NOTES) i8 counts them, and has each run's ``Outcome`` and
    the replica that got the request. ledger (E, LEDGER) f8: s until which a run may go on; s of the last
    question and request-seconds on replicas until then; since then request-seconds without a first token,
    request-seconds on replicas, and requests lost. rewards (E,) f8: minus these three at ``prices`` (3,) f8.
    """
    for run in range(first, last):
        state = state_at(runs, run)
        if actions[run] != NONE:
            notes[run, SENT] = destination(state, actions[run])
            answer_whole(state, notes[run, SENT])
        lost = unserved(state)
        notes[run, OUTCOME] = advance_whole(state, ledger[run, UNTIL])
        ledger[run, UNSERVED] = unserved(state) - lost
        charge(state, run, opened, ledger, notes)
        width = masks.shape[1]
        if notes[run, OUTCOME] == ASKING:
            enlist(state, run, opened, ledger, notes)
            observe_asked(state)
            show(state, run, width, seen, pooled, masks)
        else:
            show_nothing(run, width, seen, pooled, masks)
        rewards[run] = -prices[0] * ledger[run, WAITED] - prices[1] * ledger[run, DWELT]
        rewards[run] -= prices[2] * ledger[run, UNSERVED]


@jit
def destination(state: State, action: int) -> int:
    """A replica of the asked pool, counted round where there are fewer; the next one that accepts."""
    first, last = state.control["first"][0], state.control["last"][0]
    if action < first or action >= last:
        action = first + action % (last - first)
    return reachable(state, action)


@jit
def unserved(state: State) -> int:
    """Requests that ended without an answer."""
    control = state.control
    return control["failed"][0] + control["aborted"][0] + control["rejected"][0]


@jit
def charge(state: State, run: int, opened: NDArray[Any], ledger: NDArray[Any], notes: NDArray[Any]) -> None:
    """Request-seconds since the last question; who has a first token, or is lost, leaves the list.

    A lost request counts until the question before that.
    """
    requests = state.requests
    now, since, waited = state.control["now"][0], ledger[run, SINCE], 0.0
    index = 0
    while index < notes[run, OPEN]:
        request = opened[run, index]
        first = requests["first_token"][request]
        if math.isnan(first) and not is_lost(requests["status"][request]):
            waited += now - since
            index += 1
        else:
            waited += max(first - since, 0.0) if not math.isnan(first) else 0.0
            notes[run, OPEN] -= 1
            opened[run, index] = opened[run, notes[run, OPEN]]
    area = request_seconds(state, now)
    ledger[run, WAITED], ledger[run, DWELT] = waited, area - ledger[run, AREA]
    ledger[run, SINCE], ledger[run, AREA] = now, area


@jit
def is_lost(status: int) -> bool:
    return status in (REJECTED, FAILED, ABORTED)


@jit
def request_seconds(state: State, now: float) -> float:
    """Request-seconds in queues and batches of all replicas, from the start."""
    replicas, area = state.replicas, 0.0
    for replica in range(len(replicas)):
        there = replicas["waiting"][replica] + replicas["running"][replica]
        area += replicas["waiting_area"][replica] + replicas["running_area"][replica]
        area += (now - replicas["last_change"][replica]) * there
    return area


@jit
def enlist(state: State, run: int, opened: NDArray[Any], ledger: NDArray[Any], notes: NDArray[Any]) -> None:
    """The asked request counts from its arrival, which is now unless nobody accepted it until now."""
    request = state.control["asking"][0]
    if not math.isnan(state.requests["first_token"][request]):
        return  # had before its replica crashed
    if state.requests["status"][request] != PENDING:  # another retry is on the list
        for index in range(notes[run, OPEN]):
            if opened[run, index] == request:
                return
    opened[run, notes[run, OPEN]] = request
    notes[run, OPEN] += 1
    ledger[run, WAITED] += state.control["now"][0] - state.requests["arrival"][request]


@jit
def observe_asked(state: State) -> None:
    """What the learned router would see of the question that waits, into ``features`` and ``pooled``."""
    table, base = state.replicas, 0
    if state.control["stale"][0]:
        table, base = state.seen, state.control["seen_at"][0]
    observe(state, table, base, state.control["asking"][0])
    pool(state, state.control["first"][0], state.control["last"][0])


@jit
def show(
    state: State, run: int, width: int, seen: NDArray[Any], pooled: NDArray[Any], masks: NDArray[Any]
) -> None:
    """Copy features, rounded to f4; replicas that cannot serve the request are zero."""
    first, last = state.control["first"][0], state.control["last"][0]
    for replica in range(width):
        inside = first <= replica < last
        masks[run, replica] = state.replicas["accepting"][replica] if inside else 0
        for index in range(NUM_FEATURES):
            seen[run, replica, index] = state.features[replica, index] if inside else 0.0
    for index in range(POOLED):
        pooled[run, index] = state.pooled[index]


@jit
def show_nothing(run: int, width: int, seen: NDArray[Any], pooled: NDArray[Any], masks: NDArray[Any]) -> None:
    for replica in range(width):
        masks[run, replica] = 0
        for index in range(NUM_FEATURES):
            seen[run, replica, index] = 0.0
    for index in range(POOLED):
        pooled[run, index] = 0.0
