"""What routers see: snapshots at hand-computed times, late, late by chance, by several routers.

Iterations take 1 s and every replica serves one request at a time, so that each snapshot can be told by hand.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle.parts import request_table
from strategies import plain_tables

import trimtab as tt
from trimtab.cluster import Fleet, Signals, prepare, run
from trimtab.engine.dtypes import Scheduler
from trimtab.engine.state import State
from trimtab.errors import TrimtabError
from trimtab.routers import Router
from trimtab.routers.view import COLUMNS, RouterView
from trimtab.simulation import simulate


def one_by_one(count: int = 2) -> Fleet:
    tables = plain_tables(fixed=1.0, per_token=0.0, send=0.0)
    return Fleet(
        name="one by one",
        scheduler=Scheduler.VLLM_V1,
        tables=replace(tables, kv_write_s=np.zeros_like(tables.token_s)),
        count=count,
        num_blocks=10_000,
        max_seqs=1,
        token_budget=1000,
    )


def served(
    arrivals: list[float], signals: Signals, router: Router = Router.LEAST_OUTSTANDING, **row: Any
) -> State:
    """Requests of 10 prompt tokens and 4 output tokens (4 s); ties go to replica 0."""
    rows = [
        {"arrival": at, "prefill_tokens": 10, "decode_tokens": 4, "expected_decode": 4, **row}
        for at in arrivals
    ]
    state = prepare(request_table(rows), [one_by_one()], router, speed_aware=False, signals=signals)
    run(state)
    return state


def chosen(*args: Any, **kwargs: Any) -> list[int]:
    return served(*args, **kwargs).requests["replica"].tolist()  # type: ignore[no-any-return]


def seen_by(
    arrivals: list[float], signals: Signals, answers: list[int], columns: tuple[str, ...] = ("outstanding",)
) -> list[tuple[Any, ...]]:
    """What a Python router saw at each arrival."""
    rows = [
        {"arrival": at, "prefill_tokens": 10, "decode_tokens": 4, "expected_decode": 4} for at in arrivals
    ]
    state = prepare(request_table(rows), [one_by_one()], Router.OUTSIDE, speed_aware=False, signals=signals)
    view = RouterView(state)
    looks: list[tuple[Any, ...]] = []

    def ask(_: State, request: int) -> int:
        view.request = request
        looks.append(tuple(getattr(view, name).tolist() for name in columns))
        return answers[request]

    run(state, ask)
    return looks


def test_fresh_signals_have_no_age_and_see_everything() -> None:
    looks = seen_by([0.0, 0.5, 1.0], Signals(), [0, 0, 1], ("outstanding", "age_of_signal"))
    assert looks == [([0, 0], [0, 0]), ([1, 0], [0, 0]), ([2, 0], [0, 0])]


def test_a_snapshot_is_taken_after_everything_of_its_instant() -> None:
    """Every 2 s: what arrives at 2 s is in the snapshot of 2 s, but its own router does not see that yet."""
    looks = seen_by([1.0, 2.0, 2.0, 3.0, 3.5], Signals(refresh=2.0, count_own=False), [0, 1, 1, 0, 0])
    assert looks == [([0, 0],), ([0, 0],), ([0, 0],), ([1, 2],), ([1, 2],)]


def test_a_router_counts_what_it_sent_until_the_next_snapshot() -> None:
    """Request 0 ends at 5 s; the snapshot of 4 s still holds it, that of 6 s no more."""
    columns = ("outstanding", "waiting", "pending_prefill_tokens", "expected_decode_tokens", "age_of_signal")
    looks = seen_by([1.0, 1.5, 4.5, 6.5], Signals(refresh=2.0), [0, 0, 1, 1], columns)
    assert looks[0] == ([0, 0], [0, 0], [0, 0], [0, 0], [1.0, 1.0])
    assert looks[1] == ([1, 0], [1, 0], [10, 0], [4, 0], [1.5, 1.5])
    assert looks[2] == ([2, 0], [1, 0], [10, 0], [8, 0], [0.5, 0.5])
    assert looks[3] == ([1, 1], [0, 0], [0, 0], [4, 4], [0.5, 0.5])


def test_snapshots_are_seen_late() -> None:
    """Taken at 1, 2, ... s, seen 2.5 s later; with what was sent since they were taken."""
    arrivals = [0.5, 1.5, 3.4, 3.6, 4.6]
    looks = seen_by(
        arrivals,
        Signals(refresh=1.0, delay=2.5, count_own=False),
        [0, 0, 1, 1, 1],
        ("outstanding", "age_of_signal"),
    )
    assert [outstanding for outstanding, _ in looks] == [[0, 0], [0, 0], [0, 0], [1, 0], [2, 0]]
    assert [round(age[0], 9) for _, age in looks] == [0.5, 1.5, 3.4, 2.6, 2.6]
    looks = seen_by(arrivals, Signals(refresh=1.0, delay=2.5), [0, 0, 1, 1, 1])
    assert looks == [([0, 0],), ([1, 0],), ([2, 0],), ([2, 1],), ([2, 2],)]


@pytest.mark.parametrize("delay", [0.0, 3.0])
def test_counting_answers_a_lone_router_knows_all_that_is_in_flight(delay: float) -> None:
    """However old the snapshots are; so it chooses as with fresh signals."""
    table = prepare(request_table([{"decode_tokens": 1}]), [one_by_one()], Router.RANDOM).requests
    rng = np.random.default_rng(4)
    table = table.repeat(60)
    table["arrival"] = np.sort(rng.uniform(0, 90, 60))
    table["decode_tokens"] = rng.integers(1, 6, 60)
    table["expected_decode"] = 3
    table["prefill_tokens"] = table["target"] = 10
    table["coin_a"] = rng.random(60)
    chosen = []
    for signals in (Signals(), Signals(refresh=7.0, delay=delay, count_answers=True)):
        state = prepare(table, [one_by_one()], Router.LEAST_OUTSTANDING, signals=signals)
        for until in (*np.linspace(0.5, 80, 40), math.inf):
            run(state, until=until)
            for number in range(len(state.seen) // 2):
                seen = state.seen[2 * number : 2 * number + 2]
                if signals.refresh and number == state.views["shown"][0] % signals.snapshots:
                    assert seen["outstanding"].tolist() == state.replicas["outstanding"].tolist()
                    assert seen["expected_decode"].tolist() == state.replicas["expected_decode"].tolist()
        chosen.append(state.requests["replica"].tolist())
    assert chosen[0] == chosen[1]


def test_routers_know_only_what_they_sent_themselves() -> None:
    """Two routers in turn; router 1 reads at 5 s, router 0 at 10 s."""
    looks = seen_by([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Signals(refresh=10.0, routers=2), [0] * 6)
    assert looks == [([0, 0],), ([0, 0],), ([1, 0],), ([1, 0],), ([2, 0],), ([4, 0],)]


def test_jitter_puts_a_snapshot_off_by_its_coin() -> None:
    """Snapshot 1 is due at 2 s * (1 + 0.5 * 0.5) = 2.5 s: the third of three coins is drawn for it."""
    signals = Signals(refresh=2.0, jitter=0.5, count_own=False)
    rows = [
        {"arrival": at, "prefill_tokens": 10, "decode_tokens": 4, "coin_b": 0.5} for at in (1.0, 2.4, 2.6)
    ]
    state = prepare(request_table(rows), [one_by_one()], Router.LEAST_OUTSTANDING, signals=signals)
    run(state)
    assert state.requests["replica"].tolist() == [0, 0, 1]


def test_round_robins_count_for_themselves() -> None:
    """Two routers over two replicas: one starts at replica 0, the other at replica 1."""
    assert chosen([1.0] * 6, Signals(routers=2), Router.ROUND_ROBIN) == [0, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    "router", [Router.LEAST_OUTSTANDING, Router.VLLM_DP, Router.LEAST_KV, Router.LEAST_WORK]
)
def test_blind_routers_send_everything_to_one_replica_until_they_look(router: Router) -> None:
    assert chosen([1.0, 2.0, 3.0, 6.5], Signals(refresh=6.0, count_own=False), router) == [0, 0, 0, 1]


def test_counting_its_own_a_lone_router_alternates() -> None:
    assert chosen([1.0, 2.0, 3.0, 3.5], Signals(refresh=60.0)) == [0, 1, 0, 1]


def test_snapshots_between_all_events_equal_fresh_signals() -> None:
    """Twenty requests, snapshots every 10 ms, arrivals 30 ms or more after anything happens."""
    arrivals = [0.31 + 0.97 * i for i in range(20)]
    often = served(arrivals, Signals(refresh=0.01, count_own=False))
    assert often.requests["replica"].tolist() == chosen(arrivals, Signals())


def test_one_router_with_fresh_signals_is_the_default() -> None:
    overrides = {"workload.num_requests": 400}
    usual = simulate("azure-conv", overrides=overrides)
    said = {"signals": {"refresh_s": 0, "count_own": True, "count_answers": True, "routers": 1}}
    assert (simulate("azure-conv", overrides=overrides | said).requests == usual.requests).all()
    several = simulate("azure-conv", overrides=overrides | {"signals.routers": 5})
    for column in ("replica", "first_token", "finished"):
        assert (several.requests[column] == usual.requests[column]).all()


def test_stale_signals_make_least_outstanding_herd() -> None:
    """In every 15 s most requests of equal load go to one replica, and the tail suffers."""
    overrides = {"workload.num_requests": 3000, "workload.arrivals": {"kind": "poisson", "qps": 16.0}}
    fresh = simulate("azure-conv", overrides=overrides)
    stale = simulate(
        "azure-conv", overrides=overrides | {"signals.refresh_s": 15.0, "signals.count_own": False}
    )
    counted = simulate("azure-conv", overrides=overrides | {"signals.refresh_s": 15.0})

    def concentration(result: tt.Result) -> float:
        """Mean share that the most popular replica has of the arrivals of each 15 s."""
        slot = (result.requests["arrival"] / 15.0).astype(int)
        shares = []
        for one in range(slot.max()):
            counts = np.bincount(result.requests["replica"][slot == one], minlength=4)
            shares.append(counts.max() / counts.sum())
        return float(np.mean(shares))

    assert concentration(fresh) < 0.35
    assert concentration(stale) > 0.65  # the rest: several replicas stood empty at the snapshot
    assert concentration(counted) < 0.35
    assert stale.summary()["p99_ttft_ms"] > 5 * fresh.summary()["p99_ttft_ms"]


@pytest.mark.parametrize(
    ("signals", "words"),
    [
        ({"delay_s": 1.0}, "signals.delay_s is 1, but fresh signals have none; set signals.refresh_s > 0"),
        ({"jitter": 0.5}, "signals.jitter is 0.5, but fresh signals have none"),
        ({"refresh_s": 1e-6}, "signals.refresh_s must be 0 (fresh) or at least 0.001, got 1e-06"),
        ({"refresh_s": 0.01, "delay_s": 60.0}, "signals.delay_s must be at most 1000 times refresh_s"),
        ({"routers": 0}, "signals.routers"),
        ({"jitter": 1.0}, "signals.jitter"),
    ],
)
def test_contradictions_are_refused_in_one_line(signals: dict[str, Any], words: str) -> None:
    with pytest.raises(TrimtabError) as caught:
        simulate("azure-conv", overrides={"signals": signals})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_every_column_of_the_view_is_read_only() -> None:
    def ask(view: RouterView) -> int:
        for name in COLUMNS:
            column = getattr(view, name)
            assert len(column) == view.num_replicas, name
        with pytest.raises(ValueError):
            view.outstanding[0] = 7
        return 0

    for refresh in (0.0, 1.0):
        simulate(
            "azure-conv", router=ask, overrides={"workload.num_requests": 5, "signals.refresh_s": refresh}
        )
