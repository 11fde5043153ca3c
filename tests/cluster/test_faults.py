"""Under any faults, timeouts and admission limits: the engine equals the oracle, and nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cluster.conftest import run_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import OracleConditions, simulate_faults
from oracle.schedulers import SCHEDULERS
from strategies import Cluster, clusters, troubled

from trimtab.engine.dtypes import Status
from trimtab.engine.state import State

ENDS = {
    Status.FINISHED: "finished",
    Status.FAILED: "failed",
    Status.ABORTED: "aborted",
    Status.REJECTED: "rejected",
}
import os
EXAMPLES = int(os.environ.get("FE", 100))
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


def assert_equal(cluster: Cluster, conditions: OracleConditions) -> State:
    expected, iterations = simulate_faults(cluster.requests, cluster.replicas, cluster.router, conditions)
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, conditions)
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


@given(troubled())
@settings(relaxed, max_examples=2*EXAMPLES)
def test_mixed_clusters_equal_the_oracle(drawn: tuple[Cluster, OracleConditions]) -> None:
    assert_equal(*drawn)
