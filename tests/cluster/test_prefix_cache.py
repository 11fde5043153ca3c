"""Prefix caching: the engine equals the oracle's nodes, and these come close to vLLM's blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cluster.conftest import fleet_of, run_engine
from cluster.test_against_oracle import assert_equal
from hypothesis import HealthCheck, given, settings
from oracle import OracleReplica, request_table, simulate
from strategies import Cluster, plain_tables, sharing_clusters

from trimtab import scenario
from trimtab.cluster import prepare
from trimtab.engine.dtypes import Status
from trimtab.errors import TrimtabError
from trimtab.routers import Router
from trimtab.workload import Traffic, build_traffic

many = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
BRISK = replace(plain_tables(fixed=0.01, per_token=5e-5, send=0.0), kv_write_s=np.zeros(4097))
SHORT = scenario.UniformLengths(min_tokens=100, max_tokens=500, prefill_to_decode=2.0)


def traffic_of(rows: list[dict[str, object]], paths: list[list[tuple[int, int]]]) -> Traffic:
    """Requests with the (node, tokens) of their prompts."""
    table = request_table(rows)
    table["path_len"] = [len(path) for path in paths]
    table["path_at"] = np.cumsum(table["path_len"]) - table["path_len"]
    steps = np.array([step for path in paths for step in path], np.int64).reshape(-1, 2)
    nodes = int(steps[:, 0].max()) + 1
    return Traffic(table, steps[:, 0].copy(), steps[:, 1].copy(), nodes)


def one_after_the_other(*prompts: int, output: int = 1) -> list[dict[str, object]]:
    """Requests that arrive a thousand seconds apart."""
    return [
        {"arrival": 1000.0 * index, "prefill_tokens": prompt, "decode_tokens": output}
        for index, prompt in enumerate(prompts)
    ]


def hits_of(traffic: Traffic, **settings_of_replica: object) -> list[int]:
    """Hit tokens of each request on one replica; engine and both caches of the oracle agree."""
    found = []
    for caching in ("nodes", "blocks"):
        replica = OracleReplica(tables=BRISK, prefix_caching=caching, **settings_of_replica)
        requests, _ = simulate(traffic.requests, [replica], "round_robin", traffic)
        found.append([request.hit_tokens for request in requests])
    state = run_engine(traffic.requests, [replica], "round_robin", traffic)
    found.append(state.requests["hit_tokens"].tolist())
    assert found[0] == found[1] == found[2]
    return found[0]


# --- against the oracle -------------------------------------------------------------------------


@given(cluster=sharing_clusters())
@many
def test_the_engine_equals_the_oracle(cluster: Cluster) -> None:
    assert_equal(cluster)
    expected, _ = simulate(cluster.requests, cluster.replicas, cluster.router, cluster.traffic)
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, cluster.traffic)
    assert state.requests["hit_tokens"].tolist() == [request.hit_tokens for request in expected]


@given(cluster=sharing_clusters())
@many
def test_all_are_served_and_all_blocks_come_back(cluster: Cluster) -> None:
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, cluster.traffic)
    requests, replicas = state.requests, state.replicas
    assert (requests["status"] == Status.FINISHED).all()
    assert (requests["shared"] == 0).all()
    assert (replicas["kv_used"] == 0).all()
    assert (replicas["kv_cached"] + replicas["kv_blank"] == replicas["kv_total"]).all()
    assert (state.cache["pins"] == 0).all()
    # The last prompt token at least is computed; after a preemption answers are recomputed as well.
    asked = requests["prefill_tokens"] + np.where(requests["preemptions"] > 0, requests["decode_tokens"], 0)
    assert (requests["hit_tokens"] < asked).all()
    assert replicas["pending_prefill"].tolist() == [0] * len(replicas)


@given(cluster=sharing_clusters())
@many
def test_without_content_caching_changes_nothing(cluster: Cluster) -> None:
    off = [replace(replica, prefix_caching="off") for replica in cluster.replicas]
    plain = run_engine(cluster.requests, off, cluster.router, cluster.traffic)
    table = cluster.requests.copy()
    table["path_len"] = 0
    cached = run_engine(table, cluster.replicas, cluster.router)
    for name in ("scheduled", "first_token", "finished", "preemptions"):
        assert plain.requests[name].tolist() == cached.requests[name].tolist()


# --- by hand ------------------------------------------------------------------------------------


def test_full_blocks_are_hit_and_one_token_is_left() -> None:
    """Blocks of 16: 40 shared tokens are 2 blocks; a whole prompt of 48 that is there is hit for 32."""
    traffic = traffic_of(one_after_the_other(50, 45, 48, 48), [[(0, 40)], [(0, 40)], [(1, 48)], [(1, 48)]])
    assert hits_of(traffic, num_blocks=100) == [0, 32, 0, 32]


def test_a_block_across_two_nodes_is_the_second_ones() -> None:
    """A ends at 20: the block of tokens 16 to 31 is hit only where the same child follows."""
    paths = [[(0, 20), (1, 30)], [(0, 20), (2, 30)], [(0, 20), (1, 30)]]
    assert hits_of(traffic_of(one_after_the_other(60, 60, 60), paths), num_blocks=100) == [0, 16, 48]


def test_the_next_turn_hits_the_answer_but_for_its_last_token() -> None:
    """40 of prompt and 9 of answer have KV for 48 tokens: three blocks."""
    for output, expected in ((8, 32), (9, 48)):
        rows = one_after_the_other(40, 80, output=output)
        rows[0] |= {"grows": 1}
        assert hits_of(traffic_of(rows, [[(0, 40)], [(0, 80)]]), num_blocks=100) == [0, expected]


def test_the_longest_unused_goes_first_and_from_its_tail() -> None:
    """A and B leave 4 blocks each; C takes 4, what is blank before A's first and then A's last ones."""
    rows = one_after_the_other(65, 65, 63, 65)
    paths = [[(0, 65)], [(1, 65)], [(2, 63)], [(0, 65)]]
    for num_blocks, expected in ((13, 64), (12, 48), (10, 16)):
        assert hits_of(traffic_of(rows, paths), num_blocks=num_blocks, token_budget=100)[3] == expected


def test_private_blocks_push_shared_ones_out() -> None:
    """What is freed goes to the end of one queue, whether it can be hit or not."""
    rows = one_after_the_other(65, 100, 65)
    paths: list[list[tuple[int, int]]] = [[(0, 65)], [], [(0, 65)]]
    assert hits_of(traffic_of(rows, paths), num_blocks=12, token_budget=200) == [0, 0, 64]
    assert hits_of(traffic_of(rows, paths), num_blocks=8, token_budget=200) == [0, 0, 16]


def test_a_request_that_just_fits_is_served_though_its_whole_prompt_is_cached() -> None:
    """64 + 16 tokens fill all 5 blocks: the one that it computes again takes the cached one's place."""
    traffic = traffic_of(one_after_the_other(64, 64, output=16), [[(0, 64)], [(0, 64)]])
    assert hits_of(traffic, num_blocks=5) == [0, 48]


def test_only_vllm_v1_keeps_a_prefix_cache() -> None:
    fleet = replace(fleet_of(OracleReplica(tables=BRISK, scheduler="sarathi")), prefix_caching=True)
    with pytest.raises(TrimtabError, match="prefix caching works with scheduler vllm_v1, not sarathi"):
        prepare(request_table(one_after_the_other(5)), [fleet], Router.RANDOM)


# --- nodes against blocks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "workload"),
    [
        (4000, {"arrivals": {"kind": "poisson", "qps": 6}, "sessions": {"turns": 6, "think_s": 8}}),
        (2000, {"arrivals": {"kind": "poisson", "qps": 6}, "sessions": {"turns": 6, "think_s": 8}}),
        (3000, {"arrivals": {"kind": "poisson", "qps": 12}, "prefixes": {"groups": 40, "tokens": 800}}),
        (1500, {"arrivals": {"kind": "poisson", "qps": 12}, "prefixes": {"groups": 40, "tokens": 800}}),
    ],
)
def test_nodes_hit_what_blocks_hit(blocks: int, workload: dict[str, object]) -> None:
    """Under pressure of memory too: vLLM's block by block gives the same hit rate and TTFT."""
    asked = scenario.Workload(num_requests=400, lengths=SHORT, **workload)
    traffic = build_traffic(asked, 0)
    prompts = traffic.requests["prefill_tokens"].sum()
    rates, medians = [], []
    for caching in ("nodes", "blocks"):
        replica = OracleReplica(tables=BRISK, num_blocks=blocks, prefix_caching=caching)
        served, _ = simulate(traffic.requests, [replica], "round_robin", traffic)
        rates.append(sum(request.hit_tokens for request in served) / prompts)
        medians.append(np.median([request.first_token - request.arrival for request in served]))
    assert 0.3 < rates[1] < 0.9
    assert rates[0] == pytest.approx(rates[1], abs=0.005)
    assert medians[0] == pytest.approx(medians[1], rel=0.05)
