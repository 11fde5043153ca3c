"""Under any faults, timeouts and admission limits: the engine equals the oracle, and nothing is lost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cluster.conftest import conditions_of, fleet_of, run_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import (
    OracleClass,
    OracleConditions,
    OracleFault,
    OracleReplica,
    request_table,
    simulate,
    simulate_faults,
)
from oracle.schedulers import SCHEDULERS
from strategies import Cluster, clusters, plain_tables, sharing_clusters, troubled

from trimtab.cluster import prepare, run
from trimtab.engine.dtypes import Status
from trimtab.engine.state import State
from trimtab.routers import Router
from trimtab.routers.view import RouterView

ENDS = {
    Status.FINISHED: "finished",
    Status.FAILED: "failed",
    Status.ABORTED: "aborted",
    Status.REJECTED: "rejected",
}
EXAMPLES = 100
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


def assert_equal(cluster: Cluster, conditions: OracleConditions, oracle: Any = simulate_faults) -> State:
    requests, traffic = cluster.requests, cluster.traffic
    expected, iterations = oracle(requests, cluster.replicas, cluster.router, conditions, traffic)
    state = run_engine(requests, cluster.replicas, cluster.router, traffic, conditions)
    table = state.requests
    assert [ENDS[Status(status)] for status in table["status"]] == [request.end for request in expected]
    for request in expected:
        if request.replica >= 0:  # else never routed; an assignment for the replay router stays
            assert table["replica"][request.index] == request.replica
    for name in ("preemptions", "retries"):
        assert table[name].tolist() == [getattr(request, name) for request in expected], name
    for name in ("arrival", "scheduled", "first_token"):
        times = [getattr(request, name) for request in expected]
        np.testing.assert_allclose(table[name], times, rtol=1e-9, atol=1e-9, err_msg=name)
    served = table["status"] == Status.FINISHED
    finished = np.array([request.finished for request in expected])[served]
    np.testing.assert_allclose(table["finished"][served], finished, rtol=1e-9, atol=1e-9)
    executed = [request.execution for request in expected]
    np.testing.assert_allclose(table["execution"], executed, rtol=1e-9, atol=1e-9)
    assert_same_iterations(state, iterations)
    return state


def assert_same_iterations(state: State, iterations: list[Any]) -> None:
    """In the order of forming; batches that a crash cut short end there."""
    count = int(state.control["iterations"][0])
    assert count == len(iterations)
    ours = state.iterations[:count]
    ours = ours[np.argsort(ours["replica"], kind="stable")]
    theirs = sorted(iterations, key=lambda one: one.replica)
    for name in ("replica", "prefill_tokens", "prefills", "decodes", "waiting", "running", "kv_used"):
        assert ours[name].tolist() == [getattr(one, name) for one in theirs], name
    for name in ("start", "end"):
        np.testing.assert_allclose(ours[name], [getattr(one, name) for one in theirs], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@given(data=st.data())
@settings(relaxed, max_examples=EXAMPLES)
def test_every_scheduler_equals_the_oracle(scheduler: str, data: st.DataObject) -> None:
    assert_equal(*data.draw(troubled(schedulers=(scheduler,))))


@given(troubled(peaceful=sharing_clusters()))
@settings(relaxed, max_examples=2 * EXAMPLES)
def test_prefix_caches_under_faults_equal_the_oracle(drawn: tuple[Cluster, OracleConditions]) -> None:
    replicas = assert_equal(*drawn).replicas
    assert (replicas["kv_cached"] + replicas["kv_blank"] == replicas["kv_total"]).all()


@given(troubled())
@settings(relaxed, max_examples=2 * EXAMPLES)
def test_mixed_clusters_equal_the_oracle(drawn: tuple[Cluster, OracleConditions]) -> None:
    assert_equal(*drawn)


@given(troubled())
@settings(relaxed, max_examples=EXAMPLES)
def test_every_request_ends_and_replicas_end_empty(drawn: tuple[Cluster, OracleConditions]) -> None:
    cluster, conditions = drawn
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, given=conditions)
    ends = [int(state.control[name][0]) for name in ("finished", "failed", "aborted", "rejected")]
    assert sum(ends) == len(cluster.requests)
    assert set(state.requests["status"].tolist()) <= set(ENDS)
    for name in ("outstanding", "waiting", "running", "kv_used", "pending_prefill", "in_flight", "aborting"):
        assert not state.replicas[name].any(), name
    for name in ("count", "decodes", "prefilling", "fresh", "kv_sum", "held"):
        assert not state.lanes[name].any(), name
    assert not state.phases.any()
    assert (state.requests["retries"] <= conditions.max_retries).all()


@given(clusters())
@settings(relaxed, max_examples=EXAMPLES)
def test_faults_that_do_nothing_change_nothing(cluster: Cluster) -> None:
    """Watched, but unharmed: bit for bit the run without. The oracle without faults says the same."""
    calm = OracleConditions(
        faults=[
            OracleFault(1.5, "slow", 0, 1.0),
            OracleFault(2.5, "recover", 0),
            OracleFault(3.5, "check", 0),
        ],
        classes=[OracleClass(timeout=1e9, ttft_timeout=1e9, limit=1e9)],
    )
    plain = run_engine(cluster.requests, cluster.replicas, cluster.router)
    watched = run_engine(cluster.requests, cluster.replicas, cluster.router, given=calm)
    for ours, theirs in ((plain.requests, watched.requests), (plain.replicas, watched.replicas)):
        for name in ours.dtype.names:  # rows have padding between the columns
            assert ours[name].tobytes() == theirs[name].tobytes(), name
    expected, _ = simulate(cluster.requests, cluster.replicas, cluster.router)
    found, _ = simulate_faults(cluster.requests, cluster.replicas, cluster.router, calm)
    assert [request.finished for request in found] == [request.finished for request in expected]


# --- by hand: a batch takes 1 s, two prompt tokens, one output token unless said otherwise -------


def serve(
    rows: list[dict[str, Any]], replicas: int = 2, router: str = "round_robin", **conditions: Any
) -> State:
    tables = plain_tables(fixed=1.0, per_token=0.0, send=0.0)
    tables = replace(tables, kv_write_s=np.zeros_like(tables.token_s))
    table = request_table([{"prefill_tokens": 2, "decode_tokens": 1, **row} for row in rows])
    given_conditions = OracleConditions(**conditions)
    cluster = Cluster(table, [OracleReplica(tables=tables)] * replicas, router)
    return assert_equal(cluster, given_conditions)


def outcomes(state: State) -> list[tuple[str, int, float]]:
    """(end, retries, s of the last token) of each request."""
    return [
        (Status(row["status"]).name.lower(), int(row["retries"]), float(row["finished"]))
        for row in state.requests
    ]


def test_a_crash_moves_what_it_loses_elsewhere() -> None:
    """Lost at 0.5 s, tried again at 1 s on replica 1."""
    state = serve([{"arrival": 0.0}], faults=[OracleFault(0.5, "crash", 0)])
    assert outcomes(state) == [("finished", 1, 2.0)]
    assert state.requests["replica"][0] == 1
    assert state.requests["execution"][0] == 1.0
    assert state.replicas["busy"].tolist() == [0.5, 1.0]


def test_the_first_token_counts_once() -> None:
    """First token at 1 s, crash at 1.5 s: at 2 s it starts again from the prompt, for three batches."""
    state = serve([{"arrival": 0.0, "decode_tokens": 3}], faults=[OracleFault(1.5, "crash", 0)])
    assert outcomes(state) == [("finished", 1, 5.0)]
    assert (state.requests["scheduled"][0], state.requests["first_token"][0]) == (0.0, 1.0)
    assert state.requests["execution"][0] == 4.0


def test_the_pause_doubles_and_the_last_retry_fails() -> None:
    """Alone and never seen to be down: attempts at 0, 0.5 (+0.5), 1.5 (+1) and so on."""
    faults = [OracleFault(0.5, "crash", 0)]
    state = serve([{"arrival": 0.0}], replicas=1, faults=faults, health_delay=100.0, max_retries=3)
    assert outcomes(state) == [("failed", 3, 0.0)]
    assert state.control["now"][0] == 0.5 + 0.5 + 1.0 + 2.0


def test_requests_wait_for_a_replica_and_fail_if_none_comes_back() -> None:
    faults = [OracleFault(0.5, "crash", 0), OracleFault(9.0, "recover", 0), OracleFault(12.0, "drain", 0)]
    rows = [{"arrival": 1.0}, {"arrival": 13.0}]
    state = serve(rows, replicas=1, faults=faults)
    assert outcomes(state) == [("finished", 0, 10.0), ("failed", 0, 0.0)]


def test_a_draining_replica_finishes_what_it_has() -> None:
    faults = [OracleFault(0.5, "drain", 0), OracleFault(6.0, "undrain", 0)]
    rows = [{"arrival": 0.0, "decode_tokens": 4}, {"arrival": 1.0}, {"arrival": 2.0}, {"arrival": 7.0}]
    state = serve(rows, faults=faults)
    assert state.requests["replica"].tolist() == [0, 1, 1, 0]
    assert state.requests["finished"].tolist() == [4.0, 2.0, 3.0, 8.0]


def test_a_straggler_stretches_what_starts_after() -> None:
    """The batch under way at 0.5 s ends at 1 s; the next two take 3 s each; the last one 1 s."""
    faults = [OracleFault(0.5, "slow", 0, 3.0), OracleFault(5.0, "slow", 0, 1.0)]
    state = serve([{"arrival": 0.0, "decode_tokens": 4}], replicas=1, faults=faults)
    assert outcomes(state) == [("finished", 0, 8.0)]


def test_a_batch_that_ends_as_its_replica_crashes_counts() -> None:
    state = serve([{"arrival": 0.0}, {"arrival": 1.0}], faults=[OracleFault(1.0, "crash", 0)])
    assert outcomes(state) == [("finished", 0, 1.0), ("finished", 0, 2.0)]
    assert state.requests["replica"].tolist() == [0, 1]


def test_a_request_that_arrives_with_a_crash_is_routed_by_what_is_left() -> None:
    state = serve([{"arrival": 1.0}], faults=[OracleFault(1.0, "crash", 0)])
    assert outcomes(state) == [("finished", 0, 2.0)]
    assert state.requests["replica"][0] == 1


def test_an_answer_at_the_timeout_is_in_time() -> None:
    patience = [OracleClass(timeout=2.0)]
    assert outcomes(serve([{"arrival": 0.0, "decode_tokens": 2}], classes=patience)) == [("finished", 0, 2.0)]
    state = serve([{"arrival": 0.0, "decode_tokens": 3}], classes=patience)
    assert outcomes(state)[0][0] == "aborted"


def test_what_is_given_up_in_flight_leaves_when_its_batch_ends() -> None:
    """Given up at 1.5 s, gone at 2 s; the queue of a one-sequence replica moves up then, not before."""
    rows = [{"arrival": 0.0, "decode_tokens": 9}, {"arrival": 0.1}]
    table = request_table([{"prefill_tokens": 2, "decode_tokens": 1, **row} for row in rows])
    table["klass"] = [0, 1]
    tables = plain_tables(fixed=1.0, per_token=0.0, send=0.0)
    tables = replace(tables, kv_write_s=np.zeros_like(tables.token_s))
    cluster = Cluster(table, [OracleReplica(tables=tables, max_num_seqs=1)], "round_robin")
    state = assert_equal(cluster, OracleConditions(classes=[OracleClass(timeout=1.5), OracleClass()]))
    assert [row[0] for row in outcomes(state)] == ["aborted", "finished"]
    assert state.requests["finished"][1] == 3.0


def test_a_late_first_token_is_given_up_a_late_answer_is_not() -> None:
    patience = [OracleClass(ttft_timeout=1.5)]
    rows = [{"arrival": 0.0, "decode_tokens": 9}, {"arrival": 0.1}]
    assert [row[0] for row in outcomes(serve(rows, replicas=1, classes=patience))] == ["finished", "aborted"]


def test_the_next_turn_follows_whatever_the_end() -> None:
    """Given up at 0.5 s, after 1 s of thought the next turn; rejected, and the next after that."""
    rows = [
        {"arrival": 0.0, "next_turn": 1, "think": 1.0},
        {"arrival": math.inf, "next_turn": 2, "think": 1.0},
        {"arrival": math.inf},
    ]
    state = serve(rows, classes=[OracleClass(timeout=0.5)], rate=0.5)
    assert [row[0] for row in outcomes(state)] == ["aborted", "rejected", "aborted"]
    assert state.requests["arrival"].tolist() == [0.0, 1.5, 2.5]


def test_a_breaker_opens_after_failures_and_closes_in_time() -> None:
    """Replica 0 is down, unseen. Its second failure opens the breaker at 2 s; it closes at 7 s, and the
    failure at 9 s opens it again at once."""
    faults = [OracleFault(0.5, "crash", 0)]
    rows = [{"arrival": float(at)} for at in (1, 2, 3, 4, 5, 9, 10)]
    state = serve(rows, faults=faults, health_delay=99.0, breaker_failures=2, breaker_open=5.0)
    assert state.requests["retries"].tolist() == [1, 1, 0, 0, 0, 1, 0]


def test_admission_counts_what_is_outstanding() -> None:
    """Two replicas, a limit of 1.5 each: the fourth of four simultaneous requests is turned away."""
    state = serve([{"arrival": 0.0}] * 4, classes=[OracleClass(limit=1.5)])
    assert [row[0] for row in outcomes(state)] == ["finished"] * 3 + ["rejected"]


def test_a_python_router_sees_who_accepts() -> None:
    """Its choice of a replica that does not accept goes to the next that does."""
    table = request_table(
        [{"arrival": float(at), "prefill_tokens": 2, "decode_tokens": 1} for at in range(4)]
    )
    tables = replace(plain_tables(), kv_write_s=np.zeros(4097))
    fleets = [fleet_of(OracleReplica(tables=tables))] * 3
    faults = [OracleFault(0.5, "crash", 0), OracleFault(2.5, "recover", 0)]
    state = prepare(table, fleets, Router.OUTSIDE, conditions=conditions_of(OracleConditions(faults=faults)))
    view = RouterView(state)
    seen: list[list[int]] = []

    def ask(_: State, request: int) -> int:
        view.request = request
        seen.append(view.accepting.tolist())
        return 0

    run(state, ask)
    assert seen == [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1]]
    assert state.requests["retries"].tolist() == [1, 0, 0, 0]
    assert (state.requests["status"] == Status.FINISHED).all()
