"""Autoscaling: the engine equals the oracle under anything, nothing is lost, and only what is on is paid."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cluster.conftest import run_engine, scalers_of
from cluster.test_event_order import second_long
from cluster.test_faults import ENDS, assert_same_iterations, outcomes, relaxed
from hypothesis import given, settings
from oracle import (
    OracleClass,
    OracleConditions,
    OracleFault,
    OracleReplica,
    OracleScaler,
    request_table,
    simulate_scaled,
)
from strategies import Cluster, clusters, plain_tables, scaled, sharing_clusters

from trimtab.cluster import prepare, run
from trimtab.engine.dtypes import Power, Status
from trimtab.engine.state import Conditions, State
from trimtab.routers import Router

EXAMPLES = 60
Drawn = tuple[Cluster, OracleConditions, list[OracleScaler]]


def assert_equal(cluster: Cluster, conditions: OracleConditions, scalers: list[OracleScaler]) -> State:
    expected, iterations, history = simulate_scaled(
        cluster.requests, cluster.replicas, cluster.router, conditions, scalers, cluster.traffic
    )
    state = run_engine(
        cluster.requests, cluster.replicas, cluster.router, cluster.traffic, conditions, scalers
    )
    found = sorted((float(at), int(who), Power(power).name.lower()) for at, who, power in changes(state))
    assert [one[1:] for one in found] == [one[1:] for one in sorted(history)]
    np.testing.assert_allclose([one[0] for one in found], [one[0] for one in sorted(history)], rtol=1e-9)
    table = state.requests
    assert [ENDS[Status(status)] for status in table["status"]] == [request.end for request in expected]
    for request in expected:
        if request.replica >= 0:
            assert table["replica"][request.index] == request.replica
    served = table["status"] == Status.FINISHED
    for name in ("arrival", "first_token", "finished"):
        times = np.array([getattr(request, name) for request in expected])
        np.testing.assert_allclose(table[name][served], times[served], rtol=1e-9, atol=1e-9, err_msg=name)
    assert_same_iterations(state, iterations)
    return state


def changes(state: State) -> Any:
    """(T,) SCALING as written down."""
    return state.scalings[: int(state.control["scalings"][0])]


@given(scaled())
@settings(relaxed, max_examples=5 * EXAMPLES)
def test_equals_the_oracle(drawn: Drawn) -> None:
    assert_equal(*drawn)


@given(scaled(peaceful=sharing_clusters()))
@settings(relaxed, max_examples=EXAMPLES)
def test_with_prefix_caches_equals_the_oracle(drawn: Drawn) -> None:
    assert_equal(*drawn)


@given(scaled())
@settings(relaxed, max_examples=EXAMPLES)
def test_nothing_is_lost_and_the_bounds_hold(drawn: Drawn) -> None:
    """Also: what is paid for is the integral over the written changes."""
    cluster, conditions, scalers = drawn
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, None, conditions, scalers)
    ends = [int(state.control[name][0]) for name in ("finished", "failed", "aborted", "rejected")]
    assert sum(ends) == len(cluster.requests)
    for name in ("outstanding", "waiting", "running", "kv_used", "in_flight"):
        assert not state.replicas[name].any(), name
    assert not (state.replicas["power"] == Power.LEAVING).any()
    start, end = float(cluster.requests["arrival"].min()), float(state.control["now"][0])
    for scaler in scalers:
        for replica in range(scaler.first, scaler.last):
            row = state.replicas[replica]
            since = start if replica < scaler.first + scaler.start else None
            paid = 0.0
            for change in changes(state)[np.argsort(changes(state)["time"], kind="stable")]:
                if change["replica"] != replica:
                    continue
                if change["power"] == Power.OFF:
                    assert since is not None
                    paid += change["time"] - since
                    since = None
                elif since is None:
                    assert change["power"] == Power.PROVISIONING
                    since = float(change["time"])
            assert (since is None) == (row["power"] == Power.OFF)
            assert math.isclose(row["on"], paid, abs_tol=1e-9)
            assert since is None or since == row["on_since"] <= end


@given(scaled())
@settings(relaxed, max_examples=EXAMPLES)
def test_without_faults_the_group_stays_between_its_bounds(drawn: Drawn) -> None:
    """And is never more than the rule asked for: what is called was advised at that moment."""
    cluster, conditions, scalers = drawn
    calm = OracleConditions(classes=conditions.classes)
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, None, calm, scalers)
    for scaler in scalers:
        present = {
            replica: replica - scaler.first < scaler.start for replica in range(scaler.first, scaler.last)
        }
        for time in np.unique(changes(state)["time"]):
            for change in changes(state)[changes(state)["time"] == time]:
                if change["replica"] in present:
                    present[int(change["replica"])] = change["power"] in (Power.ON, Power.PROVISIONING)
            assert scaler.least <= sum(present.values()) <= scaler.last - scaler.first


@given(clusters())
@settings(relaxed, max_examples=EXAMPLES)
def test_a_group_that_may_not_change_is_the_fixed_fleet(cluster: Cluster) -> None:
    """Bit for bit."""
    size = len(cluster.replicas)
    fixed = run_engine(cluster.requests, cluster.replicas, cluster.router)
    scaler = OracleScaler(0, size, start=size, least=size, target=0.01, interval=0.5, keep=1)
    bound = run_engine(cluster.requests, cluster.replicas, cluster.router, scalers=[scaler])
    for ours, theirs in ((fixed.requests, bound.requests), (fixed.replicas, bound.replicas)):
        for name in ours.dtype.names:
            assert ours[name].tobytes() == theirs[name].tobytes(), name
    count = int(fixed.control["samples"][0])
    assert fixed.samples[:count].tobytes() == bound.samples[:count].tobytes()


# --- by hand: a batch takes 1 s and holds one request, one output token unless said otherwise ----


def serve(
    rows: list[dict[str, Any]],
    scaler: OracleScaler,
    router: str = "least_outstanding",
    **conditions: Any,
) -> State:
    tables = plain_tables(fixed=1.0, per_token=0.0, send=0.0)
    tables = replace(tables, kv_write_s=np.zeros_like(tables.token_s))
    table = request_table([{"prefill_tokens": 2, "decode_tokens": 1, **row} for row in rows])
    replica = OracleReplica(tables=tables, max_num_seqs=1, num_blocks=10)
    return assert_equal(
        Cluster(table, [replica] * scaler.last, router), OracleConditions(**conditions), [scaler]
    )


def told(state: State) -> list[tuple[float, int, str]]:
    """(s, replica, power) of every change."""
    return [(float(at), int(who), Power(power).name) for at, who, power in changes(state)]


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [(6, 2), (12, 3), (15, 3), (16, 3), (17, 4), (40, 4)],
)
def test_a_queue_calls_for_as_many_as_its_target_says(waiting: int, expected: int) -> None:
    """ceil(waiting / 5), at most 4, and 3 stay 3 within a tenth of 15. Long requests, so that all wait."""
    rows = [{"arrival": 0.0, "decode_tokens": 100}] + [{"arrival": 0.5, "decode_tokens": 2}] * waiting
    start = 3 if waiting > 15 else 1
    rows = [{"arrival": 0.0, "decode_tokens": 100}] * (start - 1) + rows
    scaler = OracleScaler(0, 4, start=start, target=5.0, interval=1.0, provision=1000.0)
    state = serve(rows, scaler, "round_robin")
    at_first = [change for change in told(state) if change[0] == 1.0]
    assert start + len(at_first) == expected


@pytest.mark.parametrize(
    ("metric", "target", "start", "expected"),
    [(90, 75.0, 50, 60), (200, 100.0, 3, 6), (50, 100.0, 50, 25), (80, 75.0, 50, 50), (90, 100.0, 50, 50)],
)
def test_the_examples_of_kubernetes(metric: int, target: float, start: int, expected: int) -> None:
    """Its documentation: 50 replicas at 90 of 75 make 60; twice the target doubles, half of it halves; a
    tenth more or less is let be."""
    scaler = OracleScaler(0, 60, start, metric="outstanding", target=target, interval=1.0, keep=1)
    conditions = Conditions(scalers=scalers_of([scaler]), starts=(start,))
    table = request_table([{"prefill_tokens": 2, "decode_tokens": 9}])
    state = prepare(table, [second_long(count=60)], Router.ROUND_ROBIN, conditions=conditions)
    run(state, until=0.5)
    state.replicas["outstanding"][:start] = metric
    run(state, until=1.0)
    counts = np.bincount(state.replicas["power"], minlength=4)
    assert counts[Power.ON] + counts[Power.PROVISIONING] == expected


def test_a_step_of_load_to_the_second() -> None:
    """Two requests a second from 10 s to 20 s, one each 2 s otherwise; one replica serves one a second.

    At 15 s five wait (ten came, five were begun): 2 = ceil(5 / 3), a second is ordered and serves at 18 s.
    At 20 s twelve of twenty have begun and eight wait: 3 = ceil(8 / 3), a third from 23 s. The queue is gone
    by 30 s; the recommendation of 20 s is forgotten at 35 s, when only those of 25 to 35 s count.
    """
    arrivals = sorted([*np.arange(0, 10, 2), *np.arange(10, 20, 0.5), *np.arange(20, 60, 2)])
    scaler = OracleScaler(0, 3, start=1, target=3.0, interval=5.0, provision=3.0, keep=3)
    state = serve([{"arrival": float(at)} for at in arrivals], scaler)
    assert told(state) == [
        (15.0, 1, "PROVISIONING"),
        (18.0, 1, "ON"),
        (20.0, 2, "PROVISIONING"),
        (23.0, 2, "ON"),
        (35.0, 2, "LEAVING"),
        (35.0, 1, "LEAVING"),
        (35.0, 1, "OFF"),
        (35.0, 2, "OFF"),
    ]
    assert state.replicas["on"].tolist() == [0.0, 20.0, 15.0]


def test_a_leaving_replica_finishes_what_it_has() -> None:
    """Sent away at 2 s in the middle of five tokens, off at 6 s with the fifth; nothing new goes there."""
    rows = [{"arrival": 0.0}, {"arrival": 1.0, "decode_tokens": 5}, {"arrival": 3.0}, {"arrival": 4.0}]
    scaler = OracleScaler(0, 2, start=2, target=5.0, interval=2.0, keep=1)
    state = serve(rows, scaler, "round_robin")
    assert told(state) == [(2.0, 1, "LEAVING"), (6.0, 1, "OFF")]
    assert state.requests["replica"].tolist() == [0, 1, 0, 0]
    assert state.requests["finished"].tolist() == [1.0, 6.0, 4.0, 5.0]


def test_a_leaving_replica_is_taken_back_before_one_is_ordered() -> None:
    rows = [{"arrival": 0.0}, {"arrival": 1.0, "decode_tokens": 9}, *[{"arrival": 3.0}] * 9]
    scaler = OracleScaler(0, 3, start=2, target=4.0, interval=2.0, keep=1, provision=50.0)
    state = serve(rows, scaler, "round_robin")
    assert told(state)[:2] == [(2.0, 1, "LEAVING"), (4.0, 1, "ON")]


def test_from_zero_requests_wait_at_the_router() -> None:
    """Looked at 2 s after the first arrival, in service 3 s later."""
    scaler = OracleScaler(0, 1, start=0, least=0, target=5.0, interval=2.0, provision=3.0)
    state = serve([{"arrival": 1.0}, {"arrival": 2.5}], scaler)
    assert told(state) == [(3.0, 0, "PROVISIONING"), (6.0, 0, "ON")]
    assert state.requests["finished"].tolist() == [7.0, 8.0]


def test_who_waits_for_replicas_that_never_come_back_has_failed() -> None:
    """The only replica is down for good, and there is no other to order."""
    scaler = OracleScaler(0, 1, start=1, interval=2.0)
    state = serve([{"arrival": 1.0}], scaler, faults=[OracleFault(0.5, "crash", 0)])
    assert outcomes(state)[0][0] == "failed"


def test_a_crashed_replica_is_replaced_until_it_is_back() -> None:
    """Down from 2.5 s: at 4 s one is ordered. Back at 9 s: at 10 s there is one too many."""
    faults = [OracleFault(2.5, "crash", 0), OracleFault(9.0, "recover", 0)]
    rows = [{"arrival": float(at)} for at in range(0, 16, 3)]
    scaler = OracleScaler(0, 2, start=1, interval=2.0, provision=1.0, keep=1)
    state = serve(rows, scaler, faults=faults)
    assert told(state)[:2] == [(4.0, 1, "PROVISIONING"), (5.0, 1, "ON")]
    assert told(state)[2:] == [(10.0, 1, "LEAVING"), (10.0, 1, "OFF")]


def test_late_first_tokens_double_the_group_and_none_shrink_it_by_one() -> None:
    """Ten at once on two replicas: within 4 s half of eight first tokens are later than 2 s, ten times what
    0.95 allows: twice two. Once the window holds none that is late, one replica goes at each look."""
    rows = [{"arrival": 0.0}] * 10 + [{"arrival": float(at)} for at in range(12, 24, 2)]
    scaler = OracleScaler(
        0, 5, start=2, metric="slo", target=0.95, interval=4.0, provision=1.0, window=4.0, keep=1
    )
    state = serve(rows, scaler, classes=[OracleClass(bound=2.0)])
    assert told(state)[:4] == [
        (4.0, 2, "PROVISIONING"),
        (4.0, 3, "PROVISIONING"),
        (5.0, 2, "ON"),
        (5.0, 3, "ON"),
    ]
    sent = [change for change in told(state) if change[2] == "LEAVING"]
    assert [change[0] for change in sent] == [12.0, 16.0, 20.0]
