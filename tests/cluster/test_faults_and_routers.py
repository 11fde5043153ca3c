"""Faults under every router, and with snapshots that are old: who accepts is known, counts stay right."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cluster.conftest import conditions_of, fleet_of, pools_of
from oracle import OracleClass, OracleConditions, OracleFault, OracleReplica, request_table
from strategies import plain_tables

from trimtab.cluster import Signals, prepare, run
from trimtab.engine.dtypes import Status
from trimtab.engine.state import State
from trimtab.routers import ROUTERS, Router
from trimtab.workload.content import Traffic

TABLES = replace(plain_tables(fixed=0.5, per_token=0.0, send=0.0), kv_write_s=np.zeros(4097))  # s
OLD = Signals(refresh=5.0, delay=1.0, routers=2)
COMPILED = [name for name, info in ROUTERS.items() if info.kind not in (Router.OUTSIDE, Router.REPLAY)]


def busy(count: int, seed: int = 5) -> Any:
    """Requests of eight sessions over some 60 s; everybody's prompt begins with the same ten tokens."""
    rng = np.random.default_rng(seed)
    table = request_table([{"decode_tokens": 1}] * count)
    table["arrival"] = np.sort(rng.uniform(0.0, 60.0, count))
    table["prefill_tokens"] = table["target"] = 12
    table["decode_tokens"] = rng.integers(1, 8, count)
    table["expected_decode"] = 4.0
    table["session"] = rng.integers(8, size=count)
    table["coin_a"], table["coin_b"] = rng.random(count), rng.random(count)
    return table


def shared(table: Any) -> Traffic:
    table["path_len"], table["path_at"] = 1, np.arange(len(table))
    return Traffic(table, np.zeros(len(table), np.int64), np.full(len(table), 10), 1)


def prepared(table: Any, router: Router, given: OracleConditions, signals: Signals, **replica: Any) -> State:
    settings = OracleReplica(tables=TABLES, scheduler="vllm_v1", **replica)
    fleets = [fleet_of(settings)] * 4
    return prepare(
        table,
        fleets,
        router,
        traffic=shared(table),
        signals=signals,
        conditions=conditions_of(given),
        pools=pools_of(given, 4),
    )


@pytest.mark.parametrize(
    "signals", [Signals(), Signals(refresh=5.0, delay=1.0, routers=2)], ids=["fresh", "old"]
)
@pytest.mark.parametrize("name", COMPILED)
def test_nothing_goes_where_nobody_accepts(name: str, signals: Signals) -> None:
    """Replica 1 drains from the start, 2 is down from 10 s to 50 s; 3 is all that is left from 30 s on."""
    faults = [
        OracleFault(0.0, "drain", 1),
        OracleFault(10.0, "crash", 2),
        OracleFault(30.0, "drain", 0),
        OracleFault(50.0, "recover", 2),
    ]
    given = OracleConditions(faults=faults, max_retries=5)
    state = prepared(busy(200), ROUTERS[name].kind, given, signals, max_num_seqs=4, prefix_caching="nodes")
    run(state)
    requests = state.requests
    assert (requests["status"] == Status.FINISHED).all()
    assert not (requests["replica"] == 1).any()
    assert not ((requests["replica"] == 2) & (requests["arrival"] > 10) & (requests["arrival"] < 49)).any()
    assert not ((requests["replica"] == 0) & (requests["arrival"] > 30)).any()
    assert (requests["replica"][(requests["arrival"] > 30) & (requests["arrival"] < 49)] == 3).all()
    if name == "least-busy":
        assert set(requests["replica"][requests["arrival"] < 10].tolist()) >= {0, 3}


@pytest.mark.parametrize("delay", [0.0, 3.0])
def test_a_lone_router_that_counts_answers_also_counts_what_is_lost(delay: float) -> None:
    """Crashes, hidden ones too, and clients that give up, in the queue or in a batch."""
    faults = [
        OracleFault(10.0, "crash", 2),
        OracleFault(16.0, "check", 2),
        OracleFault(30.0, "recover", 2),
        OracleFault(31.0, "check", 2),
        OracleFault(40.0, "crash", 0),
        OracleFault(44.0, "check", 0),
    ]
    given = OracleConditions(faults=faults, health_delay=1.0, classes=[OracleClass(timeout=6.0)])
    signals = Signals(refresh=7.0, delay=delay, count_answers=True)
    state = prepared(busy(200), Router.LEAST_OUTSTANDING, given, signals, max_num_seqs=2)
    for until in (*np.linspace(0.5, 80, 60), math.inf):
        run(state, until=until)
        first = int(state.views["shown"][0] % signals.snapshots) * 4
        seen = state.seen[first : first + 4]
        assert seen["outstanding"].tolist() == state.replicas["outstanding"].tolist()
        assert seen["expected_decode"].tolist() == state.replicas["expected_decode"].tolist()
    status = state.requests["status"]
    assert state.requests["retries"].any() and (status == Status.ABORTED).any()
    assert (status == Status.FINISHED).any()
