"""Prefill here, decode there: the engine equals the oracle, nothing is lost, free transfers cost nothing."""

from __future__ import annotations

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


# --- when transfers are free --------------------------------------------------------------------


@given(clusters(schedulers=("vllm_v1",), most_stages=1))
@settings(relaxed, max_examples=EXAMPLES)
def test_one_pool_that_serves_both_is_colocated(cluster: Cluster) -> None:
    """Everybody may prefill and decode, and the decode router picks the replica that prefilled: the run
    without disaggregation, bit for bit."""
    everyone = (0, len(cluster.replicas))
    both = OracleConditions(
        classes=[OracleClass(replicas=everyone, decodes=everyone)], decode_router="replay"
    )
    plain = run_engine(cluster.requests, cluster.replicas, cluster.router)
    split = run_engine(cluster.requests, cluster.replicas, cluster.router, given=both)
    several = cluster.requests["decode_tokens"] > 1
    assert (split.requests["prefill_replica"][several] == split.requests["replica"][several]).all()
    assert_same_columns(plain.requests, split.requests, {"coin_a", "prefill_replica"})
    assert_same_columns(plain.replicas, split.replicas, {"hands_over"})
    count = int(plain.control["iterations"][0])
    assert_same_columns(plain.iterations[:count], split.iterations[:count], set())
    assert (plain.itl == split.itl).all()


def assert_same_columns(ours: Any, theirs: Any, but: set[str]) -> None:
    for name in set(ours.dtype.names) - but:
        assert ours[name].tobytes() == theirs[name].tobytes(), name


@given(clusters(schedulers=("vllm_v1",), most_stages=1, turns=False, counts=(1,)))
@settings(relaxed, max_examples=EXAMPLES)
def test_one_at_a_time_two_replicas_and_a_free_link_are_one_replica(cluster: Cluster) -> None:
    """Requests that never overlap: prefill there and decode here, at the same times to the last bit."""
    cluster.requests["arrival"] += 1e4 * np.arange(len(cluster.requests))
    cluster.requests["replica"] = 0
    free = OracleConditions(classes=[OracleClass(replicas=(0, 1), decodes=(1, 2))])
    one = run_engine(cluster.requests, cluster.replicas, "replay").requests
    two = run_engine(cluster.requests, cluster.replicas * 2, "replay", given=free).requests
    several = one["decode_tokens"] > 1
    assert (two["replica"][several] == 1).all() and (two["prefill_replica"][several] == 0).all()
    assert not two["transfer"].any()
    for name in ("arrival", "scheduled", "first_token", "finished"):
        assert one[name].tobytes() == two[name].tobytes(), name
    np.testing.assert_allclose(one["execution"], two["execution"], rtol=1e-12)


# --- by hand: a batch takes 1 s, a prompt of two tokens 1.25 s to send, two decode steps follow --


def serve(
    rows: list[dict[str, Any]],
    prefill: tuple[int, int],
    decode: tuple[int, int],
    patience: dict[str, float] | None = None,
    **conditions: Any,
) -> State:
    tables = plain_tables(fixed=1.0, per_token=0.0, send=0.0)
    table = request_table([{"prefill_tokens": 2, "decode_tokens": 3, **row} for row in rows])
    klass = OracleClass(replicas=prefill, decodes=decode, **(patience or {}))
    split = OracleConditions(classes=[klass], link_latency=0.25, decode_router="round_robin", **conditions)
    replica = OracleReplica(tables=tables, send_s=0.5)
    cluster = Cluster(table, [replica] * max(prefill[1], decode[1]), "round_robin")
    return assert_split_equal(cluster, split)


def test_a_transfer_takes_latency_and_size_over_bandwidth() -> None:
    """First token at 1 s, KV there at 1 + 0.25 + 2 x 0.5 s, and two steps."""
    state = serve([{"arrival": 0.0}], (0, 1), (1, 2))
    request = state.requests[0]
    assert (request["first_token"], request["transfer"], request["finished"]) == (1.0, 1.25, 4.25)
    assert (request["prefill_replica"], request["replica"]) == (0, 1)
    assert state.replicas["sending"].tolist() == [1.25, 0.0]
    assert state.replicas["decode_done"].tolist() == [0, 2]


def test_two_senders_wait_for_one_receiver() -> None:
    """Both prompts are done at 1 s; the second transfer goes from 2.25 to 3.5 s and its request misses the
    step that began at 3.25 s."""
    state = serve([{"arrival": 0.0}] * 2, (0, 2), (2, 3))
    assert state.requests["transfer"].tolist() == [1.25, 2.5]
    assert state.requests["finished"].tolist() == [4.25, 6.25]


def test_one_sender_serves_two_receivers_in_turn() -> None:
    state = serve([{"arrival": 0.0}] * 2, (0, 1), (1, 3))
    assert state.requests["replica"].tolist() == [1, 2]
    assert state.requests["transfer"].tolist() == [1.25, 2.5]
    assert state.requests["finished"].tolist() == [4.25, 5.5]


def test_one_output_token_is_never_handed_over() -> None:
    state = serve([{"arrival": 0.0, "decode_tokens": 1}], (0, 1), (1, 2))
    assert (state.requests["finished"][0], state.requests["prefill_replica"][0]) == (1.0, NONE)


def test_the_prompt_stays_in_the_senders_memory_until_it_has_gone() -> None:
    """Four tokens take 2.25 s to send; the sender has room for six: the second prompt starts at 3.25 s."""
    tables = plain_tables(fixed=1.0, per_token=0.0, send=0.0)
    table = request_table([{"arrival": 0.0, "prefill_tokens": 4, "decode_tokens": 2}] * 2)
    replica = OracleReplica(tables=tables, send_s=0.5, block_size=1, num_blocks=6)
    split = OracleConditions(classes=[OracleClass(replicas=(0, 1), decodes=(1, 2))], link_latency=0.25)
    state = assert_split_equal(Cluster(table, [replica] * 2, "round_robin"), split)
    assert state.requests["first_token"].tolist() == [1.0, 4.25]
    assert state.requests["finished"].tolist() == [4.25, 7.5]


def test_a_crash_of_the_sender_loses_what_is_on_the_way() -> None:
    """Again at 2 s on the other one: prefilled at 3, there at 4.25, done at 6.25 s."""
    state = serve([{"arrival": 0.0}], (0, 2), (2, 3), faults=[OracleFault(1.5, "crash", 0)])
    assert outcomes(state) == [("finished", 1, 6.25)]
    assert (state.requests["first_token"][0], state.requests["prefill_replica"][0]) == (1.0, 1)


def test_a_crash_of_the_receiver_fails_the_attempt() -> None:
    """On the way at 1.5 s, or there and decoding at 3.5 s: from the prompt again after half a second."""
    for at, finished in ((1.5, 6.25), (3.5, 8.25)):
        state = serve([{"arrival": 0.0}], (0, 1), (1, 3), faults=[OracleFault(at, "crash", 1)])
        assert outcomes(state) == [("finished", 1, finished)]
        assert state.requests["replica"][0] == 2


def test_a_client_that_gives_up_in_a_transfer_leaves_when_it_ends() -> None:
    state = serve([{"arrival": 0.0}], (0, 1), (1, 2), patience={"timeout": 1.5})
    assert outcomes(state)[0][0] == "aborted"
    assert state.control["now"][0] == 2.25


def test_while_nobody_decodes_a_prompt_waits_where_it_is() -> None:
    """Prefilled at 1 s, sent from 5 to 6.25 s. Given up at 3 s it leaves at once; without an end it fails."""
    drain, undrain = OracleFault(0.5, "drain", 1), OracleFault(5.0, "undrain", 1)
    state = serve([{"arrival": 0.0}], (0, 1), (1, 2), faults=[drain, undrain])
    assert outcomes(state) == [("finished", 0, 8.25)]
    assert state.requests["transfer"][0] == 5.25
    impatient = serve([{"arrival": 0.0}], (0, 1), (1, 2), {"timeout": 3.0}, faults=[drain, undrain])
    assert outcomes(impatient)[0][0] == "aborted"
    assert outcomes(serve([{"arrival": 0.0}], (0, 1), (1, 2), faults=[drain]))[0][0] == "failed"
    lost = serve(
        [{"arrival": 0.0}], (0, 2), (2, 3), faults=[OracleFault(0.5, "drain", 2), OracleFault(2, "crash", 0)]
    )
    assert outcomes(lost) == [("failed", 1, 0.0)]


def test_a_draining_replica_that_does_both_finishes_what_it_has() -> None:
    state = serve([{"arrival": 0.0}], (0, 1), (0, 1), faults=[OracleFault(0.5, "drain", 0)])
    assert outcomes(state) == [("finished", 0, 3.0)]


def test_admission_counts_both_pools() -> None:
    """One outstanding per accepting replica: the third at a time is turned away, wherever the others are."""
    rows = [{"arrival": at} for at in (0.0, 1.5, 1.75)]
    state = serve(rows, (0, 1), (1, 2), patience={"limit": 1.0})
    assert [row[0] for row in outcomes(state)] == ["finished", "finished", "rejected"]
