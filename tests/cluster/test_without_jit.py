"""Uncompiled, with every invariant swept after every event, the engine does bit for bit the same.

The clusters come from fixed seeds and go to a second process as a file, since whether to compile is
decided when trimtab is imported.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster.conftest import run_engine
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from oracle import OracleConditions
from oracle.schedulers import SCHEDULERS
from strategies import Cluster, clusters, crowds, sharing_clusters, speculating_clusters, troubled

from trimtab.engine.dtypes import ITERATION, REPLICA, REQUEST, SAMPLE
from trimtab.engine.jit import DEBUG
from trimtab.routers.heuristics import MANY

EXAMPLES = 20  # clusters per scheduler


def fixed_clusters() -> list[Cluster]:
    """The same for ever: ``EXAMPLES`` for each scheduler, of mixed ones, with prefix caches, speculating."""
    found: list[Cluster] = []

    def collect(strategy: SearchStrategy[Cluster], examples: int = EXAMPLES) -> None:
        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def draw(cluster: Cluster) -> None:
            found.append(cluster)

        draw()

    for scheduler in SCHEDULERS:
        collect(clusters(schedulers=(scheduler,)))
    collect(clusters())
    collect(crowds(), examples=5)
    collect(sharing_clusters())
    collect(speculating_clusters())
    return found


def fixed_troubles() -> list[tuple[Cluster, OracleConditions]]:
    found: list[tuple[Cluster, OracleConditions]] = []

    @settings(
        max_examples=3 * EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(troubled() | troubled(peaceful=sharing_clusters()) | troubled(peaceful=speculating_clusters()))
    def draw(drawn: tuple[Cluster, OracleConditions]) -> None:
        found.append(drawn)

    draw()
    return found


def outcome(cluster: Cluster, conditions: OracleConditions | None = None) -> dict[str, str]:
    """Every column that the run leaves, as the hex digits of its bytes."""
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, cluster.traffic, conditions)
    rows, samples = int(state.control["iterations"][0]), int(state.control["samples"][0])
    tables = {
        "requests": (state.requests, REQUEST),
        "replicas": (state.replicas, REPLICA),
        "iterations": (state.iterations[:rows], ITERATION),
        "samples": (state.samples[:samples], SAMPLE),
    }
    columns = {
        f"{table}.{name}": values[name].tobytes().hex()
        for table, (values, dtype) in tables.items()
        for name in dtype.names or ()
    }
    columns["sample_times"] = state.sample_times[:samples].tobytes().hex()
    columns["itl"] = state.itl.tobytes().hex()
    return columns


def main() -> None:
    """In the second process: clusters from standard input, outcomes to standard output."""
    assert DEBUG, "this process must not compile"
    given_runs = pickle.load(sys.stdin.buffer)
    pickle.dump([outcome(*one) for one in given_runs], sys.stdout.buffer)


def uncompiled(given_runs: list[Any]) -> list[dict[str, str]]:
    environment = os.environ | {"TRIMTAB_DEBUG": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", "from cluster.test_without_jit import main; main()"],
        input=pickle.dumps(given_runs),
        capture_output=True,
        env=environment,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: list[dict[str, str]] = pickle.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def drawn() -> list[Cluster]:
    return fixed_clusters()


def test_the_clusters_are_worth_running(drawn: list[Cluster]) -> None:
    """All schedulers, preemption, one to three stages, closed loops, prefix hits."""
    used = [replica for cluster in drawn for replica in cluster.replicas]
    assert {replica.scheduler for replica in used} == set(SCHEDULERS)
    assert {replica.num_stages for replica in used} == {1, 2, 3}
    assert any((cluster.requests["next_turn"] >= 0).any() for cluster in drawn)
    preempting = set()
    hits = 0
    for cluster in drawn:
        state = run_engine(cluster.requests, cluster.replicas, cluster.router, cluster.traffic)
        for replica, row in zip(cluster.replicas, state.replicas, strict=True):
            if row["preemptions"]:
                preempting.add((replica.scheduler, replica.policy))
        hits += int(state.replicas["hit_tokens"].sum())
    assert hits > 100
    assert {("vllm", "fcfs"), ("sarathi", "fcfs"), ("vllm_v1", "fcfs"), ("vllm_v1", "priority")} <= preempting


@pytest.mark.skipif(DEBUG, reason="nothing is compiled here")
def test_compiled_and_uncompiled_agree_bit_for_bit(drawn: list[Cluster]) -> None:
    """With nothing wrong, and under faults, timeouts and admission limits."""
    runs = [*((cluster, None) for cluster in drawn), *fixed_troubles()]
    for one, expected in zip(runs, uncompiled(runs), strict=True):
        found = outcome(*one)
        assert found.keys() == expected.keys()
        for name, digits in expected.items():
            assert found[name] == digits, f"{name} differs in {one}"


@pytest.mark.parametrize(
    ("table", "column"),
    [("replicas", "waiting"), ("replicas", "kv_used"), ("lanes", "kv_sum"), ("requests", "finished")],
)
def test_the_sweep_notices_a_wrong_entry(drawn: list[Cluster], table: str, column: str) -> None:
    from trimtab.engine.invariants import check

    state = run_engine(drawn[0].requests, drawn[0].replicas, drawn[0].router)
    check(state)
    getattr(state, table)[column][0] += 1000
    with pytest.raises(AssertionError):
        check(state)


@pytest.mark.parametrize("cell", [1, -1])
def test_the_sweep_notices_a_wrong_load(drawn: list[Cluster], cell: int) -> None:
    from trimtab.engine.invariants import check

    crowd = next(cluster for cluster in drawn if len(cluster.replicas) == MANY)
    state = run_engine(crowd.requests, crowd.replicas, crowd.router)
    assert state.control["ranked"][0]
    check(state)
    state.ranks[cell] -= 1.0
    with pytest.raises(AssertionError):
        check(state)
