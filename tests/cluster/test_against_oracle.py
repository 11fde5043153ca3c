"""The compiled engine equals the readable oracle: every time, every batch, every preemption."""

from __future__ import annotations

import numpy as np
import pytest
from cluster.conftest import run_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import simulate
from oracle.schedulers import SCHEDULERS
from strategies import Cluster, clusters, crowds


def assert_equal(cluster: Cluster) -> None:
    expected, iterations = simulate(cluster.requests, cluster.replicas, cluster.router, cluster.traffic)
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, cluster.traffic)
    table = state.requests
    assert table["replica"].tolist() == [request.replica for request in expected]
    assert table["preemptions"].tolist() == [request.preemptions for request in expected]
    for name in ("arrival", "scheduled", "first_token", "finished"):
        times = [getattr(request, name) for request in expected]
        np.testing.assert_allclose(table[name], times, rtol=1e-9, atol=1e-9, err_msg=name)
    executed = [request.execution for request in expected]
    np.testing.assert_allclose(table["execution"], executed, rtol=1e-9, atol=1e-9)
    count = int(state.control["iterations"][0])
    assert count == len(iterations)
    ours = np.sort(state.iterations[:count], order=["replica", "end"])
    theirs = sorted(iterations, key=lambda one: (one.replica, one.end))
    for name in ("replica", "prefill_tokens", "prefills", "decodes", "waiting", "running", "kv_used"):
        assert ours[name].tolist() == [getattr(one, name) for one in theirs], name
    for name in ("start", "end"):
        np.testing.assert_allclose(ours[name], [getattr(one, name) for one in theirs], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours["attention_pairs"], [one.attention_pairs for one in theirs])


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_scheduler_equals_the_oracle(scheduler: str, data: st.DataObject) -> None:
    assert_equal(data.draw(clusters(schedulers=(scheduler,))))


@given(cluster=clusters())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_mixed_clusters_equal_the_oracle(cluster: Cluster) -> None:
    assert_equal(cluster)


@given(cluster=crowds())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_replicas_equal_the_oracle(cluster: Cluster) -> None:
    """The least loaded of many is the one that the oracle finds by looking at each."""
    assert_equal(cluster)
