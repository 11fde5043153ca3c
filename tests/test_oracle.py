"""The oracle itself: numbers worked out by hand, and Vidur's own reference runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from oracle import Deadlock, OracleReplica, request_table, simulate
from oracle.vidur_cases import SHARED, case_folders, read_case
from strategies import Cluster, clusters, plain_tables

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
CASES = case_folders()
ROUTED = [folder for folder in CASES if "_lor_" in folder.name or "_round_robin_" in folder.name]
needs_cases = pytest.mark.skipif(not CASES, reason=f"no reference cases of Vidur under {SHARED}")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_scenarios_worked_out_by_hand(path: Path) -> None:
    """An iteration takes 10 s and 1 s per token on each stage; sending takes 1 s."""
    golden = json.loads(path.read_text())
    replica = OracleReplica(tables=plain_tables(), **golden["replica"])
    rows = [{"replica": 0, **row} for row in golden["requests"]]
    requests, iterations = simulate(request_table(rows), [replica])
    found = [{name: getattr(it, name) for name in golden["iterations"][0]} for it in iterations]
    assert found == golden["iterations"]
    served = [{name: getattr(request, name) for name in golden["served"][0]} for request in requests]
    assert served == golden["served"]


@needs_cases
@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_equals_vidur_on_every_reference_case(folder: Path) -> None:
    """None of these cases rests on a fault of Vidur: restarts and times agree request by request."""
    case = read_case(folder)
    requests, iterations = simulate(case.requests, case.replicas, "replay")
    assert len(iterations) == case.num_batches
    for name in ("scheduled", "first_token", "finished"):
        found = np.array([getattr(request, name) for request in requests])
        assert np.abs(found - getattr(case, name)).max() < 1e-12, name
    assert [request.preemptions for request in requests] == case.preemptions.tolist()


@needs_cases
@pytest.mark.parametrize("folder", ROUTED, ids=lambda folder: folder.name)
def test_routes_as_vidur_does(folder: Path) -> None:
    case = read_case(folder)
    router = "vidur_lor" if case.router == "lor" else case.router
    requests, _ = simulate(case.requests, case.replicas, router)
    assert [request.replica for request in requests] == case.requests["replica"].tolist()


@needs_cases
def test_a_changed_rule_is_noticed() -> None:
    """The comparison can fail: one block more or less shows in the preemption case."""
    case = next(read_case(folder) for folder in CASES if read_case(folder).preemptions.sum() > 0)
    case.replicas[0].num_blocks -= 1
    _, iterations = simulate(case.requests, case.replicas, "replay")
    assert len(iterations) != case.num_batches


@given(clusters())
@settings(max_examples=200, deadline=None)
def test_every_request_is_served_in_order(cluster: Cluster) -> None:
    requests, iterations = simulate(cluster.requests, cluster.replicas, cluster.router)
    for request in requests:
        assert request.arrival <= request.scheduled < request.first_token <= request.finished
        assert request.blocks == 0
        assert (request.first_token < request.finished) == (request.output > 1)
    computed = sum(it.prefill_tokens + it.decodes for it in iterations)
    needed = sum(request.prompt + request.output - 1 for request in requests)
    restarts = sum(request.preemptions for request in requests)
    assert (computed == needed) if restarts == 0 else (computed > needed)
    for it in iterations:
        assert it.kv_used <= cluster.replicas[it.replica].num_blocks
        assert it.formed <= it.start < it.end


def four_short_requests(**fields: list[float]) -> Any:
    rows = [{"arrival": index / 4, "prefill_tokens": 2, "decode_tokens": 1} for index in range(4)]
    return request_table(
        [{**row, **{name: values[i] for name, values in fields.items()}} for i, row in enumerate(rows)]
    )


@pytest.mark.parametrize(
    ("router", "fields", "expected"),
    [
        ("replay", {"replica": [1, 1, 0, 1]}, [1, 1, 0, 1]),
        ("random", {"coin_a": [0.0, 0.49, 0.5, 0.999]}, [0, 0, 1, 1]),
        ("round_robin", {}, [0, 1, 0, 1]),
        ("least_outstanding", {}, [0, 1, 0, 1]),
        ("vidur_lor", {}, [0, 0, 1, 1]),
    ],
)
def test_routers(router: str, fields: dict[str, list[float]], expected: list[int]) -> None:
    """vidur_lor sees that request 1 waits, but neither request 0 nor request 2 at work."""
    pair = [OracleReplica(tables=plain_tables(), num_blocks=10)] * 2
    requests, _ = simulate(four_short_requests(**fields), pair, router)
    assert [request.replica for request in requests] == expected


def test_the_next_turn_arrives_after_the_answer_and_a_pause() -> None:
    """0 to 13 for three tokens, think 5, 18 to 30 for two; the follower had no arrival of its own."""
    table = request_table(
        [
            {"arrival": 0.0, "prefill_tokens": 3, "decode_tokens": 1, "next_turn": 1, "think": 5.0},
            {"arrival": math.inf, "prefill_tokens": 2, "decode_tokens": 1},
        ]
    )
    requests, _ = simulate(table, [OracleReplica(tables=plain_tables())], "round_robin")
    assert [(request.arrival, request.finished) for request in requests] == [(0.0, 13.0), (18.0, 30.0)]


def test_a_batch_is_formed_from_all_that_ended_and_arrived_by_then() -> None:
    """B arrives when A's prompt ends: A's decode and B's prompt share the next batch."""
    table = request_table(
        [
            {"arrival": 0.0, "prefill_tokens": 3, "decode_tokens": 2},
            {"arrival": 13.0, "prefill_tokens": 2, "decode_tokens": 1},
        ]
    )
    _, iterations = simulate(table, [OracleReplica(tables=plain_tables())], "round_robin")
    assert [it.requests for it in iterations] == [[0], [0, 1]]


def test_requests_that_arrive_together_share_a_batch() -> None:
    """Three find an idle replica at the same instant."""
    rows = [{"arrival": 1.0, "prefill_tokens": 3, "decode_tokens": 1}] * 3
    _, iterations = simulate(request_table(rows), [OracleReplica(tables=plain_tables())], "round_robin")
    assert [it.requests for it in iterations] == [[0, 1, 2]]


def test_a_request_that_never_fits_is_reported() -> None:
    table = request_table([{"arrival": 0.0, "prefill_tokens": 30, "decode_tokens": 1}])
    small = OracleReplica(tables=plain_tables(), scheduler="vllm", block_size=1, num_blocks=20)
    with pytest.raises(Deadlock, match=r"\[0\] are never served"):
        simulate(table, [small], "round_robin")
