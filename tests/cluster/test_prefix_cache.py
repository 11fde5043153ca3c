"""Prefix caching: the engine equals the oracle's nodes, and these come close to vLLM's blocks."""

from __future__ import annotations

from cluster.test_against_oracle import assert_equal
from hypothesis import HealthCheck, given, settings
from strategies import Cluster, sharing_clusters


@given(cluster=sharing_clusters())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_engine_equals_the_oracle(cluster: Cluster) -> None:
    assert_equal(cluster)
