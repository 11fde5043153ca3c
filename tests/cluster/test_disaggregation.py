"""Prefill here, decode there: the engine equals the oracle, nothing is lost, and free transfers cost nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from cluster.conftest import run_engine
from cluster.test_faults import EXAMPLES, assert_equal, outcomes, relaxed
from hypothesis import given, settings
from oracle import OracleClass, OracleConditions, OracleFault, OracleReplica, request_table, simulate_split
from strategies import Cluster, clusters, plain_tables, split_clusters

from trimtab.engine.dtypes import NONE
from trimtab.engine.state import State


def assert_split_equal(cluster: Cluster, conditions: OracleConditions) -> State:
    state = assert_equal(cluster, conditions, simulate_split)
    expected, _ = simulate_split(
        cluster.requests, cluster.replicas, cluster.router, conditions, cluster.traffic
    )
    assert state.requests["prefill_replica"].tolist() == [request.prefilled_by for request in expected]
    waits = [request.transfer for request in expected]
    np.testing.assert_allclose(state.requests["transfer"], waits, rtol=1e-9, atol=1e-9)
    return state


@given(split_clusters(harm=False))
@settings(relaxed, max_examples=2 * EXAMPLES)
def test_random_roles_equal_the_oracle(drawn: tuple[Cluster, OracleConditions]) -> None:
    assert_split_equal(*drawn)


@given(split_clusters())
@settings(relaxed, max_examples=4 * EXAMPLES)
def test_random_roles_under_faults_equal_the_oracle(drawn: tuple[Cluster, OracleConditions]) -> None:
    """And whatever happens every request ends, and replicas and links end empty."""
    cluster, conditions = drawn
    state = assert_split_equal(cluster, conditions)
    ends = [int(state.control[name][0]) for name in ("finished", "failed", "aborted", "rejected")]
    assert sum(ends) == len(cluster.requests)
    for name in ("outstanding", "waiting", "running", "coming", "kv_used", "pending_prefill", "aborting"):
        assert not state.replicas[name].any(), name
    assert (state.replicas["received_head"] == NONE).all() and not state.pools["held"].any()
    assert (state.requests["bound_for"] == NONE).all()
    assert not state.lanes["count"].any() and not state.phases.any()
