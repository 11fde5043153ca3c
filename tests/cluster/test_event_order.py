"""The order of simultaneous events, which is a decision (see ``trimtab.cluster.loop``):

batch ends, lower replica first; then faults, breakers, clients that give up (see ``test_faults``); then
autoscaling and what it ordered (see ``test_scaling``); then arrivals, lower request first; then replicas form
their batches, lower first; then load samples. Iterations here take 1 s, so that times coincide exactly.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle.parts import request_table
from strategies import plain_tables

from trimtab.cluster import Fleet, prepare, run
from trimtab.engine.dtypes import Event, Scheduler
from trimtab.engine.state import State
from trimtab.routers import Router


def second_long(scheduler: Scheduler = Scheduler.VLLM_V1, count: int = 1, stages: int = 1) -> Fleet:
    """``count`` replicas on which a batch takes 1 s per stage, whatever is in it."""
    tables = plain_tables(fixed=1.0, per_token=0.0, send=0.0)
    return Fleet(
        name="one second",
        scheduler=scheduler,
        tables=replace(tables, kv_write_s=np.zeros_like(tables.token_s)),
        count=count,
        num_blocks=10_000,
        max_seqs=64,
        token_budget=1000,
        block_size=1 if scheduler == Scheduler.LIGHTLLM else 16,
        reserve_blocks=10 if scheduler in (Scheduler.ORCA, Scheduler.FASTER_TRANSFORMER) else 0,
        stages=stages,
    )


def ready(rows: list[dict[str, Any]], fleet: Fleet, router: Router = Router.ROUND_ROBIN) -> State:
    """At time zero; a row has two prompt tokens and one output token unless it says otherwise."""
    table = request_table([{"prefill_tokens": 2, "decode_tokens": 1, **row} for row in rows])
    return prepare(table, [fleet], router)


def served(rows: list[dict[str, Any]], fleet: Fleet, router: Router = Router.ROUND_ROBIN) -> State:
    state = ready(rows, fleet, router)
    run(state)
    return state


def batches(state: State) -> list[tuple[int, float, int, int]]:
    """(replica, start, prefills, decodes) in the order in which they were formed."""
    rows = state.iterations[: int(state.control["iterations"][0])]
    return [
        (int(row["replica"]), float(row["start"]), int(row["prefills"]), int(row["decodes"])) for row in rows
    ]


def test_kinds_are_ranked() -> None:
    assert [event.name for event in sorted(Event)] == [
        "BATCH_END",
        "HANDOVER",
        "FAULT",
        "BREAKER",
        "TIMEOUT",
        "FIRST_TOKEN_TIMEOUT",
        "SCALE",
        "PROVISIONED",
        "ARRIVAL",
        "FORM",
    ]


@pytest.mark.parametrize("scheduler", list(Scheduler), ids=lambda one: one.name.lower())
def test_requests_that_arrive_together_are_batched_together(scheduler: Scheduler) -> None:
    assert batches(served([{"arrival": 3.0}] * 3, second_long(scheduler))) == [(0, 3.0, 3, 0)]


@pytest.mark.parametrize(
    ("scheduler", "second"),
    [
        (Scheduler.VLLM_V1, (0, 1.0, 1, 1)),  # mixes
        (Scheduler.SARATHI, (0, 1.0, 1, 1)),
        (Scheduler.ORCA, (0, 1.0, 1, 1)),
        (Scheduler.VLLM, (0, 1.0, 1, 0)),  # the prompt goes first
        (Scheduler.LIGHTLLM, (0, 1.0, 0, 1)),  # decodes for ten iterations
        (Scheduler.FASTER_TRANSFORMER, (0, 1.0, 0, 1)),  # until the batch is done
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Scheduler) else "",
)
def test_an_arrival_at_a_batch_end_joins_the_next_batch(scheduler: Scheduler, second: Any) -> None:
    """Batch end, arrival, formation: the batch formed at 1 s knows the request that came at 1 s."""
    rows = [{"arrival": 0.0, "decode_tokens": 3}, {"arrival": 1.0}]
    assert batches(served(rows, second_long(scheduler)))[:2] == [(0, 0.0, 1, 0), second]


def test_all_stages_of_a_pipeline_are_filled_once_everybody_is_there() -> None:
    """Two stages, two batches of half the sequences; one formed early would hold one prompt."""
    fleet = second_long(Scheduler.VLLM, stages=2)
    assert batches(served([{"arrival": 0.0}] * 33, fleet)) == [(0, 0.0, 32, 0), (0, 1.0, 1, 0)]


def test_a_router_sees_the_batches_that_end_as_its_request_arrives() -> None:
    """At 1 s replica 0 has finished its request, replica 1 has not: the third goes to replica 0."""
    rows = [
        {"arrival": 0.0, "replica": 0},
        {"arrival": 0.0, "replica": 1, "decode_tokens": 2},
        {"arrival": 1.0, "coin_a": 0.99},
    ]
    state = ready(rows, second_long(count=2), Router.REPLAY)
    run(state, until=0.5)
    state.control["router"] = Router.LEAST_OUTSTANDING
    run(state)
    assert state.requests["replica"].tolist() == [0, 1, 0]


def test_a_router_sees_the_earlier_of_two_arrivals_waiting() -> None:
    """The first of two simultaneous requests is queued, not in a batch, when the second is routed."""
    state = served([{"arrival": 0.0}] * 2, second_long(count=2), Router.VIDUR_LOR)
    assert state.requests["replica"].tolist() == [0, 1]


def test_lower_requests_are_routed_first() -> None:
    state = served([{"arrival": 2.0}] * 6, second_long(count=3))
    assert state.requests["replica"].tolist() == [0, 1, 2, 0, 1, 2]


def test_known_arrivals_come_before_later_turns() -> None:
    """Request 2 follows request 0 after a second's thought and arrives with request 1."""
    rows = [
        {"arrival": 0.0, "next_turn": 2, "think": 1.0},
        {"arrival": 2.0},
        {"arrival": math.inf},
    ]
    state = served(rows, second_long(count=3))
    assert state.requests["arrival"].tolist() == [0.0, 2.0, 2.0]
    assert state.requests["replica"].tolist() == [0, 1, 2]


def test_lower_turns_are_routed_first_though_triggered_later() -> None:
    """Request 3 is triggered at 1 s, request 2 at 2 s; both arrive at 4 s."""
    rows = [
        {"arrival": 0.0, "decode_tokens": 2, "next_turn": 2, "think": 2.0},
        {"arrival": 0.0, "next_turn": 3, "think": 3.0},
        {"arrival": math.inf},
        {"arrival": math.inf},
    ]
    state = served(rows, second_long(count=4))
    assert state.requests["arrival"].tolist() == [0.0, 0.0, 4.0, 4.0]
    assert state.requests["replica"].tolist() == [0, 1, 2, 3]


def test_turns_without_a_pause_arrive_after_every_batch_end() -> None:
    """Both replicas end at 1 s; the answer of replica 0 triggers a request at once. It is routed when
    replica 1 has ended too, and joins the batches formed then."""
    rows = [
        {"arrival": 0.0, "replica": 0, "next_turn": 2},
        {"arrival": 0.0, "replica": 1},
        {"arrival": math.inf, "coin_a": 0.6},
    ]
    state = ready(rows, second_long(count=2), Router.REPLAY)
    run(state, until=0.5)
    state.control["router"] = Router.LEAST_OUTSTANDING
    run(state)
    assert state.requests["replica"].tolist() == [0, 1, 1]  # both are empty, the coin points to 1
    assert batches(state)[-1] == (1, 1.0, 1, 0)


def test_lower_replicas_form_first() -> None:
    """Requests come for replicas 2, 0, 1; the batches are formed, and written down, as 0, 1, 2."""
    rows = [{"arrival": 0.0, "replica": replica, "decode_tokens": 2} for replica in (2, 0, 1)]
    state = served(rows, second_long(count=3), Router.REPLAY)
    assert [replica for replica, *_ in batches(state)] == [0, 1, 2, 0, 1, 2]


def test_load_is_sampled_after_everything_of_its_instant() -> None:
    """Sampled every second: at 0 s the request runs, at 1 s the next runs and the first is gone."""
    rows = [{"arrival": 0.0}, {"arrival": 1.0}, {"arrival": 1.0}, {"arrival": 5.0}]
    state = ready(rows, second_long())
    state.control["sample_every"] = 1.0
    run(state)
    assert state.sample_times[:5].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert state.samples["running"][:5, 0].tolist() == [1, 2, 0, 0, 0]
    assert state.samples["waiting"][:5, 0].tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("limit", [1.0, np.nextafter(1.0, 0.0)])
def test_a_limit_includes_everything_of_its_instant(limit: float) -> None:
    """Paused at 1 s, the batch has ended, the arrival is in and the next batch is formed."""
    state = ready([{"arrival": 0.0, "decode_tokens": 3}, {"arrival": 1.0}], second_long())
    run(state, until=limit)
    assert len(batches(state)) == (2 if limit == 1.0 else 1)
    assert state.replicas["running"][0] == (2 if limit == 1.0 else 1)
