"""Conversations: sessions whose every prompt is the history so far and the user's new words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab import scenario
from trimtab.engine.dtypes import NONE
from trimtab.errors import TrimtabError
from trimtab.workload import arrivals, lengths
from trimtab.workload.content import Traffic
from trimtab.workload.prefixes import Prefixed
from trimtab.workload.trace import Trace

Integers = NDArray[np.int64]
Lengths = Callable[[int], tuple[Integers, Integers]]  # the first n pairs of new prompt and answer
Prefixes = Callable[[int], Prefixed]  # of the first n sessions

PILOT = 20_000  # turns from which the share cut by max_context is taken


@dataclass(frozen=True)
class Turns:
    """The turns of whole sessions, one after the other (R,); tokens.

    ``prompt`` is prefix, history and new words; ``answer`` the output. ``drawn`` turns were there before
    ``max_context`` ended sessions.
    """

    session: Integers
    turn: Integers
    prompt: Integers
    answer: Integers
    prefix: Prefixed  # of each session
    drawn: int


class Conversations:
    """Draws sessions one after the other: the first n are the same whatever n is."""

    def __init__(
        self,
        workload: scenario.Workload,
        num_turns: Callable[[int], Integers],
        words: Lengths,
        prefixes: Prefixes,
    ):
        assert workload.sessions is not None
        self.workload, self.law = workload, workload.sessions
        self.num_turns, self.words, self.prefixes = num_turns, words, prefixes
        self.limit = min(self.law.max_context, workload.max_tokens or self.law.max_context)

    def turns_of(self, sessions: int, most: int | None = None) -> Turns:
        """All turns of the first ``sessions`` sessions, or the first ``most`` of these turns."""
        counts = self.num_turns(sessions)
        drawn = int(counts.sum()) if most is None else min(most, int(counts.sum()))
        session = np.repeat(np.arange(sessions), counts)[:drawn]
        turn = np.arange(drawn) - (np.cumsum(counts) - counts)[session]
        prefix = self.prefixes(sessions)
        # No turn alone passes the limit, so that every session has its first turn.
        limited = self.workload.model_copy(update={"max_tokens": self.limit})
        new, answer = lengths.cap(*self.words(drawn), limited, prefix.tokens[session])
        context = _within(new + answer, session, turn) + prefix.tokens[session]
        kept = context <= self.limit
        prompt = context - answer
        return Turns(session[kept], turn[kept], prompt[kept], answer[kept], prefix, drawn)

    def first(self, count: int) -> Turns:
        """The first ``count`` turns that are kept."""
        cumulated = np.cumsum(self.num_turns(count))
        sessions = int(np.searchsorted(cumulated, count)) + 1
        turns = self.turns_of(sessions, count)
        while len(turns.turn) < count:
            sessions += 8 + int(sessions * (count / len(turns.turn) - 1) * 1.02)
            turns = self.turns_of(sessions)
        columns = {name: getattr(turns, name)[:count] for name in ("session", "turn", "prompt", "answer")}
        return replace(turns, **columns)

    def mean_turns(self, most: int) -> float:
        """Turns per session: the stated mean times the share of turns that ``max_context`` leaves."""
        count = min(PILOT, most)
        sessions = int(np.searchsorted(np.cumsum(self.num_turns(count)), count)) + 1
        turns = self.turns_of(sessions, count)
        return self.law.turns * len(turns.turn) / turns.drawn


def _within(tokens: Integers, session: Integers, turn: Integers) -> Integers:
    """Running sum of ``tokens`` inside each session."""
    total = np.cumsum(tokens)
    opening = np.flatnonzero(turn == 0)
    before = (total - tokens)[opening]
    return np.asarray(total - before[session])


def number_of_turns(law: scenario.Sessions, count: int, rng: np.random.Generator) -> Integers:
    """(count,) turns of each session.

    Raises
    ------
    TrimtabError
        for a fixed number that is not whole.
    """
    if law.law == "geometric":
        return rng.geometric(1 / law.turns, count)
    if law.turns != int(law.turns):
        raise TrimtabError(
            f"workload.sessions.turns={law.turns:g} with law fixed; give a whole number, or law geometric"
        )
    return np.full(count, int(law.turns))


def start_times(
    workload: scenario.Workload, trace: Trace | None, count: int, turns: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """When sessions of ``turns`` turns on average begin: the arrivals at 1/``turns`` of their rate.

    Of the arrivals of a trace every ``turns``-th is taken. As ``arrival_times``, ``count`` of them, or
    all within duration_s.
    """
    law: Any = workload.arrivals
    if isinstance(law, scenario.TraceArrivals):
        assert trace is not None
        needed = min(int((count - 1) * turns) + 1, len(trace.prefill))
        times = arrivals.arrival_times(workload, trace, needed, rng)
        if workload.duration_s is not None:
            count = int(np.ceil(len(times) / turns))
        return times[np.minimum((np.arange(count) * turns).astype(np.int64), len(times) - 1)]
    if isinstance(law, scenario.StepArrivals):
        law = law.model_copy(update={"steps": [(start, qps / turns) for start, qps in law.steps]})
    elif law.qps is not None:
        law = law.model_copy(update={"qps": law.qps / turns})
    return arrivals.arrival_times(workload.model_copy(update={"arrivals": law}), trace, count, rng)


def fill(
    table: NDArray[Any], turns: Turns, starts: NDArray[np.float64], think_s: float, rng: np.random.Generator
) -> Traffic:
    """Write the turns into ``table`` (R,): the openers by time, then the rest session by session.

    A session is a node that grows, after the node of its prefix if it has one.
    """
    count = len(table)
    order = np.concatenate([np.flatnonzero(turns.turn == 0), np.flatnonzero(turns.turn > 0)])
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    goes_on = np.zeros(count, bool)
    goes_on[:-1] = turns.turn[1:] > 0
    think = rng.standard_exponential(count) * think_s
    following = np.where(goes_on, np.roll(place, -1), NONE)

    session = turns.session[order]
    table["session"], table["turn"] = session, turns.turn[order]
    table["prefill_tokens"], table["decode_tokens"] = turns.prompt[order], turns.answer[order]
    table["arrival"] = np.where(table["turn"] == 0, starts[session], np.inf)
    table["next_turn"] = following[order]
    table["think"] = np.where(goes_on, think, 0.0)[order]
    table["grows"] = goes_on[order]
    return _paths(table, session, turns.prefix)


def _paths(table: NDArray[Any], session: Integers, prefix: Prefixed) -> Traffic:
    group, ahead = prefix.group[session], prefix.tokens[session]
    lengths_ = 1 + (group != NONE)
    table["path_len"] = lengths_
    table["path_at"] = np.cumsum(lengths_) - lengths_
    last = table["path_at"] + lengths_ - 1
    node = np.empty(int(lengths_.sum()), np.int64)
    tokens = np.empty(len(node), np.int64)
    node[last] = prefix.groups + session
    tokens[last] = table["prefill_tokens"] - ahead
    begun = group != NONE
    node[table["path_at"][begun]] = group[begun]
    tokens[table["path_at"][begun]] = ahead[begun]
    return Traffic(table, node, tokens, prefix.groups + int(session.max()) + 1)
