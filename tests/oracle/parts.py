"""The nouns: a request with its counters, a batch, a replica's settings, and what is written down.

Counting follows Vidur. ``processed`` counts the tokens whose turn has come: prefilled ones, plus one
for every output token. The last prefill chunk also emits an output token, so ``processed`` goes from
``target`` straight to ``target + 1``, and a request is done at ``prompt + output``. A decode at
``processed`` tokens attends to, and needs KV blocks for, ``processed`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.engine.dtypes import NONE, REQUEST
from trimtab.exectime.tables import ExecTables
from trimtab.scenario import Speculation


@dataclass
class OracleReplica:
    """One replica: how fast it is (``tables``, drafting included), how it
    batches, how much KV it has.

    ``token_budget`` is max_tokens_in_batch for vllm and lightllm, the chunk size for sarathi and
    max_num_batched_tokens for vllm_v1. ``max_blocks_per_sequence`` is what orca and
    faster_transformer reserve for each request.
    """

    tables: ExecTables
    scheduler: str = "vllm_v1"
    num_stages: int = 1
    max_num_seqs: int = 128
    token_budget: int = 2048
    block_size: int = 16
    num_blocks: int = 1000
    watermark_blocks: int = 0
    max_blocks_per_sequence: int = 0
    max_waiting_iters: int = 10
    policy: str = "fcfs"
    send_s: float = 0.0  # s per prompt token whose KV it sends elsewhere
    speculation: Speculation | None = None  # vllm_v1 with one stage alone
    prefix_caching: str = "off"  # vllm_v1 alone: off, nodes (as the engine), blocks (as vLLM)


@dataclass(eq=False)
class Request:
    """One request: what was asked, what happened, where it is now. Times in s; NaN = not yet."""

    index: int
    arrival: float
    prompt: int
    output: int
    priority: int = 0
    assigned: int = NONE
    coin: float = 0.0
    next_turn: int = NONE
    think: float = 0.0
    klass: int = 0
    path: list[tuple[int, int]] = field(default_factory=list)  # (node of content, tokens of it)
    grows: bool = False  # the answer goes on the last node of the path

    replica: int = NONE
    preemptions: int = 0
    scheduled: float = math.nan
    first_token: float = math.nan
    finished: float = math.nan
    execution: float = 0.0

    target: int = 0
    processed: int = 0
    blocks: int = 0
    private: int = 0  # of these, blocks that no cache knows
    hit_tokens: int = 0  # prompt tokens found in the cache, in the last attempt
    in_flight: bool = False

    retries: int = 0
    pausing: bool = False  # before a retry
    given_up: bool = False  # by its client
    end: str = ""  # finished, failed, aborted or rejected

    prefilled_by: int = NONE  # replica that handed it over, in this attempt
    bound_for: int = NONE  # replica that its KV is on the way to
    sent: float = math.nan  # end of its prefill
    transfer: float = 0.0  # from there until its KV had come

    @property
    def decoding(self) -> bool:
        """The prefill of this attempt is complete."""
        return self.processed > self.target

    @property
    def done(self) -> bool:
        return self.processed == self.prompt + self.output

    @property
    def left(self) -> int:
        """Tokens that are still to be processed."""
        return self.prompt + self.output - self.processed

    def token(self, position: int) -> tuple[object, ...]:
        """What stands at a position of prompt and answer: equal where content is shared."""
        start = 0
        for index, (node, length) in enumerate(self.path):
            endless = self.grows and index == len(self.path) - 1
            if position < start + length or endless:
                return (node, position - start)
            start += length
        return ("own", self.index, position)

    def preempt(self) -> None:
        """Start again later by recomputing every token so far.

        Halfway through a prefill there are no new tokens, so the target stays. (Vidur's sarathi
        shortens the prompt to what was processed: a fault.)
        """
        if self.decoding:
            self.target = self.processed
        self.processed = 0
        self.preemptions += 1

    def advance(self, tokens: int, now: float) -> None:
        """A batch that computed ``tokens`` of this request has left the last stage."""
        self.processed += min(tokens, self.left)
        if self.processed == self.target:
            self.processed += 1
        if self.decoding and math.isnan(self.first_token):
            self.first_token = now
        if self.done:
            self.finished = now


@dataclass
class Entry:
    """One request's share of a batch: ``tokens`` computed on top of ``past``.

    Of a decode with speculation: those that are accepted, the end of the answer aside.
    """

    request: Request
    tokens: int
    past: int
    decode: bool


@dataclass(eq=False)
class Batch:
    """What one replica computes together. ``group`` belongs to faster_transformer alone."""

    entries: list[Entry]
    group: list[Request] = field(default_factory=list)
    iteration: Iteration | None = None
    slow: float = 1.0
    spent: float = 0.0

    def seconds(self, settings: OracleReplica, last_stage: bool) -> float:
        """Time on one stage; the stage that sends its activations on is busy while it sends."""
        decodes = [entry.past for entry in self.entries if entry.decode]
        prefills = [(entry.past, entry.tokens) for entry in self.entries if not entry.decode]
        drafts = settings.speculation.tokens if settings.speculation else 0
        return settings.tables.stage_seconds(decodes, prefills, last_stage, drafts)


def scramble(word: int) -> int:
    """One 31-bit word from another, as if at random."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = ((word ^ (word >> shift)) * factor) % 2**31
    return word ^ (word >> 16)


def drafts_accepted(speculation: Speculation, seed: int, replica: int, number: int) -> int:
    """Of the drafts of every decode in the ``number``-th batch of a replica; they share their luck."""
    word = scramble(seed % 2**31 ^ scramble(seed // 2**31))
    for key in (replica, number):
        word = scramble((word + (key + 1) * 0x9E3779B1) % 2**31)
    accepted = 0
    while accepted < speculation.tokens and word / 2**31 < speculation.acceptance ** (accepted + 1):
        accepted += 1
    return accepted


@dataclass
class Iteration:
    """One batch, written down when it was formed; ``start`` and ``end`` are filled in later.

    ``start`` is on the first stage, ``end`` on the last, ``stage`` the seconds on the last stage.
    ``waiting``, ``running`` (admitted, not finished) and ``kv_used`` are counted just after forming.
    """

    replica: int
    formed: float
    requests: list[int]
    prefill_tokens: int
    prefills: int
    decodes: int
    waiting: int
    running: int
    kv_used: int
    attention_pairs: float
    stage: float = math.nan
    start: float = math.nan
    end: float = math.nan


def request_table(rows: Sequence[dict[str, Any]]) -> Any:
    """A REQUEST table from rows that name only the fields that matter.

    >>> request_table([{"arrival": 0.5, "prefill_tokens": 3, "decode_tokens": 2}])["session"][0]
    -1
    """
    table = np.zeros(len(rows), REQUEST)
    for name in ("session", "next_turn", "next_waiting", "replica"):
        table[name] = NONE
    for index, row in enumerate(rows):
        for name, value in row.items():
            table[name][index] = value
    table["target"] = table["prefill_tokens"]
    return table


def requests_of(table: Any, path_node: Any = (), path_tokens: Any = ()) -> list[Request]:
    """One Request per row of a REQUEST table; ``replica`` is the replay router's assignment.

    ``path_node`` and ``path_tokens`` say what the prompts share (see ``trimtab.workload.Traffic``).
    """
    requests = []
    for index, row in enumerate(table):
        steps = range(int(row["path_at"]), int(row["path_at"] + row["path_len"]))
        requests.append(
            Request(
                index=index,
                arrival=float(row["arrival"]),
                prompt=int(row["prefill_tokens"]),
                output=int(row["decode_tokens"]),
                priority=int(row["priority"]),
                assigned=int(row["replica"]),
                coin=float(row["coin_a"]),
                next_turn=int(row["next_turn"]),
                think=float(row["think"]),
                klass=int(row["klass"]),
                target=int(row["prefill_tokens"]),
                path=[(int(path_node[step]), int(path_tokens[step])) for step in steps],
                grows=bool(row["grows"]),
            )
        )
    return requests
