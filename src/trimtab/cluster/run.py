"""The Python door of the compiled cluster: fleets and requests in, tables out."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import GROUP, NONE, Outcome, Scheduler
from trimtab.engine.state import (
    BRAINLESS,
    NOTHING_WRONG,
    Brain,
    Conditions,
    State,
    allocate,
    pack_tables,
    whole_fleet,
)
from trimtab.errors import TrimtabError
from trimtab.exectime.tables import ExecTables
from trimtab.routers import FIRST_PUBLISHED, ROUTERS, Router
from trimtab.routers.learned import make_brain
from trimtab.routers.policy_file import load_policy
from trimtab.scenario import Speculation
from trimtab.workload.content import Traffic, private

MAX_ITERATIONS = 2_000_000  # recorded; beyond that only counted
SHORTEST_REFRESH = 0.001  # s
MOST_ON_THE_WAY = 1000  # snapshots of one router
SLICES = 64  # of simulated time between two looks at the clock (progress, Ctrl-C)

Ask = Callable[[State, int], int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Signals:
    """What routers see: the fleet as it is, or (``refresh`` > 0) snapshots of it.

    Each of ``routers`` takes one every ``refresh`` s, put off by up to ``jitter`` of that interval, and sees
    it ``delay`` s later; with ``count_own`` it adds the requests that it has dispatched since, with
    ``count_answers`` it also subtracts those that were answered since.
    """

    refresh: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    count_own: bool = True
    count_answers: bool = False
    routers: int = 1

    @property
    def snapshots(self) -> int:
        """How many of one router can be on their way at once, and the visible one."""
        return int(self.delay / self.refresh) + 3 if self.refresh else 0


FRESH = Signals()


@dataclass(frozen=True)
class Fleet:
    """``count`` identical replicas as the engine sees them. Sizes in tokens, blocks, sequences.

    With ``speculation`` the ``tables`` hold the drafting already (``ExecTables.with_drafting``).
    """

    name: str
    scheduler: Scheduler
    tables: ExecTables
    count: int
    num_blocks: int
    max_seqs: int
    token_budget: int
    block_size: int = 16
    watermark_blocks: int = 0
    stages: int = 1
    reserve_blocks: int = 0
    max_waiting_iters: int = 10
    priority: bool = False
    prefix_caching: bool = False
    speculation: Speculation | None = None
    speed: float = 1.0
    role: str = "both"
    send_s: float = 0.0  # s per token of KV that goes to another replica

    @property
    def micro_seqs(self) -> int:
        """Sequences in one batch: Orca and FasterTransformer fill every stage's batch."""
        return self.max_seqs if self.reserve_blocks else self.max_seqs // self.stages


def check_fleet(fleet: Fleet) -> None:
    """Settings that no scheduler could run with."""
    who = f"group {fleet.name!r}"
    if fleet.micro_seqs < 1:
        raise TrimtabError(
            f"{who}: max_num_seqs {fleet.max_seqs} is less than its {fleet.stages} pipeline stages"
        )
    if fleet.scheduler == Scheduler.LIGHTLLM and (fleet.block_size != 1 or fleet.stages != 1):
        raise TrimtabError(
            f"{who}: lightllm works with block_size 1 and pp 1, "
            f"got block_size {fleet.block_size} and pp {fleet.stages}"
        )

    if fleet.prefix_caching and fleet.scheduler != Scheduler.VLLM_V1:
        raise TrimtabError(
            f"{who}: prefix caching works with scheduler vllm_v1, not {fleet.scheduler.name.lower()}"
        )
    if fleet.speculation and (fleet.scheduler != Scheduler.VLLM_V1 or fleet.stages != 1):
        raise TrimtabError(
            f"{who}: speculation works with scheduler vllm_v1 and pp 1, "
            f"got {fleet.scheduler.name.lower()} and pp {fleet.stages}"
        )
    if fleet.speculation and fleet.token_budget <= fleet.speculation.tokens:
        raise TrimtabError(
            f"{who}: speculation.tokens must be less than the token budget {fleet.token_budget}, "
            f"got {fleet.speculation.tokens}"
        )


def check_signals(signals: Signals) -> None:
    """Snapshots must have an interval, and not thousands of them may be on their way."""
    if not signals.refresh:
        for name in ("delay", "jitter"):
            if getattr(signals, name):
                key = "delay_s" if name == "delay" else name
                raise TrimtabError(
                    f"signals.{key} is {getattr(signals, name):g}, but fresh signals have none; "
                    "set signals.refresh_s > 0"
                )
    elif signals.refresh < SHORTEST_REFRESH:
        raise TrimtabError(
            f"signals.refresh_s must be 0 (fresh) or at least {SHORTEST_REFRESH:g}, got {signals.refresh:g}"
        )
    elif signals.delay > MOST_ON_THE_WAY * signals.refresh:
        raise TrimtabError(
            f"signals.delay_s must be at most {MOST_ON_THE_WAY} times refresh_s = {signals.refresh:g}, "
            f"got {signals.delay:g}"
        )


def check_requests(requests: NDArray[Any], eligible: NDArray[np.bool_], fleet: Fleet) -> None:
    """Every eligible request (N,) must be servable by every replica, alone in an empty cache."""
    total = requests["prefill_tokens"] * eligible
    if fleet.role != "prefill":
        total = total + requests["decode_tokens"] * eligible
    longest = int(total.argmax())
    tokens = int(total[longest])
    spare = max(fleet.watermark_blocks, 0 if fleet.scheduler == Scheduler.VLLM_V1 else 1)
    room = (fleet.num_blocks - spare) * fleet.block_size
    if fleet.reserve_blocks:
        room = fleet.reserve_blocks * fleet.block_size if fleet.reserve_blocks <= fleet.num_blocks else 0
    if tokens > room:
        raise TrimtabError(
            f"request {longest} needs KV for {tokens} tokens, but a replica of group {fleet.name!r} "
            f"has room for {max(room, 0)}; cap the workload with max_tokens or give the group more memory"
        )


def prepare(
    requests: NDArray[Any],
    fleets: list[Fleet],
    router: Router,
    choices: int = 2,
    speed_aware: bool = True,
    max_iterations: int | None = None,
    traffic: Traffic | None = None,
    signals: Signals = FRESH,
    temperature: float = 0.0,
    weights: tuple[float, ...] | None = None,
    conditions: Conditions = NOTHING_WRONG,
    pools: NDArray[Any] | None = None,
    decode_router: Router = Router.LEAST_OUTSTANDING,
    seed: int = 0,
    brain: Brain = BRAINLESS,
) -> State:
    """Validate and allocate a run at time zero. ``requests`` (N,) REQUEST is copied.

    ``traffic`` says what the prompts of those requests share; without it they share nothing.
    ``temperature`` is Dynamo's; ``weights`` (prefix, queue, kv) replace those of llm-d and the gateway.
    ``seed`` is for what is tossed while the run goes on: accepted drafts.
    """
    check_signals(signals)
    groups = np.zeros(len(fleets), GROUP)
    replicas = np.cumsum([0, *(fleet.count for fleet in fleets)])
    pools = whole_fleet(int(replicas[-1])) if pools is None else pools
    pool_of = conditions.classes["pool"][requests["klass"]]
    for row, fleet, first in zip(groups, fleets, replicas[:-1], strict=True):
        check_fleet(fleet)
        comes = (pools["first"] <= first) & (first < pools["last"])
        comes |= (pools["decode"] != NONE) & comes[pools["decode"]]
        check_requests(requests, comes[pool_of], fleet)
        _fill_group(row, fleet)
    if Router.LEARNED in (router, decode_router) and not brain.hidden:
        policy = load_policy()  # the compiled scorer must never run without weights
        brain = make_brain(policy.values, policy.hidden, int(replicas[-1]))
    assert not brain.hidden or len(brain.features) >= replicas[-1]
    curves = pack_tables(groups, [fleet.tables for fleet in fleets])
    if max_iterations is None:
        tokens = int(requests["decode_tokens"].sum()) + int(requests["prefill_tokens"].sum())
        max_iterations = min(MAX_ITERATIONS, 4 * tokens)
    state = allocate(
        traffic or private(requests),
        groups,
        [fleet.count for fleet in fleets],
        [fleet.num_blocks for fleet in fleets],
        [fleet.speed for fleet in fleets],
        curves,
        max_iterations,
        signals.routers,
        signals.snapshots,
        conditions,
        pools,
        brain,
    )
    state.control["router"] = int(router)
    state.control["choices"] = choices
    state.control["speed_aware"] = speed_aware
    state.control["decode_router"] = int(decode_router)
    routers = {router, decode_router}
    asks = routers & {Router.OUTSIDE, *(info.kind for info in ROUTERS.values() if info.matches)}
    state.control["matching"] = bool(asks) and bool(groups["prefix_caching"].any())
    state.control["temperature"] = temperature
    state.control["seed"] = seed % 2**62
    if weights is None:
        weights = (3.0, 2.0, 2.0) if Router.GIE in routers else (2.0, 1.0, 1.0)
    for name, weight in zip(("weight_prefix", "weight_queue", "weight_kv"), weights, strict=True):
        state.control[name] = weight
    if signals.refresh:
        _install(signals, state)
    return state


def _install(signals: Signals, state: State) -> None:
    """Let the routers see snapshots instead of the replicas themselves."""
    state.control["stale"] = 1
    state.control["signal_every"] = signals.refresh
    state.control["signal_delay"] = signals.delay
    state.control["signal_jitter"] = signals.jitter
    state.control["count_own"] = signals.count_own
    state.control["count_answers"] = signals.count_own and signals.count_answers
    state.control["next_signal"] = -1.0  # before the first event, to fix when the first ones are due


def _fill_group(row: Any, fleet: Fleet) -> None:
    row["scheduler"] = int(fleet.scheduler)
    row["stages"] = fleet.stages
    row["max_seqs"] = fleet.max_seqs
    row["micro_seqs"] = fleet.micro_seqs
    row["token_budget"] = fleet.token_budget
    row["block_size"] = fleet.block_size
    row["watermark"] = fleet.watermark_blocks
    row["reserve"] = fleet.reserve_blocks
    row["max_waiting_iters"] = fleet.max_waiting_iters
    row["priority"] = fleet.priority
    row["prefix_caching"] = fleet.prefix_caching
    row["spare"] = fleet.scheduler in (Scheduler.VLLM, Scheduler.SARATHI)
    chunk, batch, kv = 512, 64, 1024
    tables = fleet.tables
    if fleet.role != "decode":
        row["prefill_s"] = fleet.stages * tables.stage_seconds([], [(0, chunk)]) / chunk
    if fleet.role != "prefill":
        row["decode_s"] = fleet.stages * tables.stage_seconds([kv] * batch, []) / batch
    if fleet.speculation:
        tokens = batch * fleet.speculation.tokens_per_step
        row["decode_s"] = tables.stage_seconds([kv] * batch, [], drafts=fleet.speculation.tokens) / tokens
        row["draft_tokens"] = fleet.speculation.tokens
        row["acceptance"] = fleet.speculation.acceptance
    row["send_s"] = fleet.send_s


def run(
    state: State,
    ask: Ask | None = None,
    until: float = math.inf,
    progress: Progress | None = None,
) -> float:
    """Run to the end (or simulated second ``until``); returns the CPU seconds spent.

    ``ask(state, request)`` names the replica when the router is OUTSIDE. ``progress(finished,
    total)`` is called now and then; Ctrl-C is noticed as often.
    """
    if state.control["router"][0] >= FIRST_PUBLISHED or state.control["watching"][0]:
        from trimtab.cluster.whole import advance_whole as go_on
        from trimtab.cluster.whole import answer_whole as tell
    else:
        from trimtab.cluster.loop import advance as go_on
        from trimtab.cluster.loop import answer as tell
    _compile(go_on, state)
    started = time.thread_time()
    total = len(state.requests)
    limits = _slices(state, until)
    limit = next(limits)
    while True:
        outcome = go_on(state, limit)
        if outcome == Outcome.ASKING:
            assert ask is not None
            replica = ask(state, int(state.control["asking"][0]))
            tell(state, _checked(replica, state))
        elif outcome == Outcome.PAUSED and limit < until:
            limit = next(limits)
        else:
            break
        if progress is not None and outcome == Outcome.PAUSED:
            progress(_closed(state), total)
    if progress is not None:
        progress(_closed(state), total)
    if outcome == Outcome.DONE and _closed(state) < total:
        raise RuntimeError("the cluster came to rest with requests unserved; please report this scenario")
    return time.thread_time() - started


def _closed(state: State) -> int:
    """Requests that are done with, served or not."""
    return sum(int(state.control[name][0]) for name in ("finished", "failed", "aborted", "rejected"))


def _compile(go_on: Callable[[State, float], int], state: State) -> None:
    """Compile (or load) the loop by a call in which nothing happens.

    Without the garbage collector: walking the compiler's many objects costs a twentieth of its time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        go_on(state, -math.inf)
    finally:
        if collecting:
            gc.enable()


def _slices(state: State, until: float) -> Any:
    """Simulated times at which to come up for air, then ``until``."""
    arrivals = state.requests["arrival"][: int(state.control["num_timed"][0])]
    for index in range(1, SLICES):
        limit = float(arrivals[len(arrivals) * index // SLICES]) if len(arrivals) else until
        if limit < until:
            yield limit
    yield until


def _checked(replica: Any, state: State) -> int:
    count = len(state.replicas)
    if isinstance(replica, bool) or not isinstance(replica, (int, np.integer)):
        raise TrimtabError(f"a router must return the index of a replica (int), got {replica!r}")
    if not 0 <= replica < count:
        raise TrimtabError(f"the router chose replica {int(replica)}; there are {count}, counted from 0")
    first, last = int(state.control["first"][0]), int(state.control["last"][0])
    if not first <= replica < last:
        raise TrimtabError(
            f"the router chose replica {int(replica)}; this request may go to {first} to {last - 1} only"
        )
    return int(replica)
