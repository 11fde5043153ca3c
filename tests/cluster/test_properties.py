"""What must hold of any run, whatever the schedulers, the sizes and the traffic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cluster.conftest import ENGINE_ROUTERS, fleet_of, run_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle.parts import OracleReplica
from strategies import Cluster, clusters

import trimtab as tt
from trimtab.cluster import prepare, run
from trimtab.engine.dtypes import NONE, Status
from trimtab.engine.state import State
from trimtab.exectime.tables import ExecTables

TIMES = ("arrival", "scheduled", "first_token", "finished", "execution")
COUNTS = ("replica", "status", "preemptions")

many = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def finish(cluster: Cluster) -> State:
    return run_engine(cluster.requests, cluster.replicas, cluster.router)


def iterations_of(state: State) -> Any:
    return state.iterations[: int(state.control["iterations"][0])]


def assert_same(ours: State, theirs: State) -> None:
    """Bit for bit, in everything that a run leaves."""
    for name in (*TIMES, *COUNTS):
        assert ours.requests[name].tolist() == theirs.requests[name].tolist(), name
    for name in ours.replicas.dtype.names or ():
        assert ours.replicas[name].tolist() == theirs.replicas[name].tolist(), name
    assert iterations_of(ours).tolist() == iterations_of(theirs).tolist()
    assert ours.itl.tolist() == theirs.itl.tolist()
    samples = int(ours.control["samples"][0])
    assert samples == theirs.control["samples"][0]
    assert ours.samples[:samples].tolist() == theirs.samples[:samples].tolist()


@given(cluster=clusters())
@many
def test_every_request_is_served_once(cluster: Cluster) -> None:
    state = finish(cluster)
    count = len(cluster.requests)
    assert (state.requests["status"] == Status.FINISHED).all()
    assert state.control["finished"][0] == count
    assert state.replicas["routed"].sum() == state.replicas["finished"].sum() == count
    served_by = np.bincount(state.requests["replica"], minlength=len(state.replicas))
    assert served_by.tolist() == state.replicas["finished"].tolist()
    for asked in ("prefill_tokens", "decode_tokens", "session", "coin_a"):
        assert state.requests[asked].tolist() == cluster.requests[asked].tolist(), (
            "what was asked is not changed"
        )


@given(cluster=clusters())
@many
def test_tokens_are_conserved(cluster: Cluster) -> None:
    """Prompts are computed once, and again with the answer so far after each preemption."""
    state = finish(cluster)
    table, rows = state.requests, iterations_of(state)
    outputs = int(table["decode_tokens"].sum())
    restarts = int(table["preemptions"].sum())
    assert state.control["tokens"][0] == outputs
    assert state.replicas["preemptions"].sum() == restarts
    assert state.replicas["prefill_done"].sum() == rows["prefill_tokens"].sum()
    assert state.replicas["decode_done"].sum() == rows["decodes"].sum()
    for replica, row in enumerate(state.replicas):
        mine = table[table["replica"] == replica]
        prompts, answers = int(mine["prefill_tokens"].sum()), int(mine["decode_tokens"].sum())
        assert row["prefill_done"] >= prompts
        # The last chunk of a prefill also gives a token: the first, or the next after a restart.
        assert answers - len(mine) - row["preemptions"] <= row["decode_done"] <= answers - len(mine)
        if row["preemptions"] == 0:
            assert row["prefill_done"] == prompts and row["decode_done"] == answers - len(mine)


@given(cluster=clusters())
@many
def test_nothing_is_left_behind(cluster: Cluster) -> None:
    """Queues, lanes, batches and KV are empty at the end; what is yet to come sums to nothing."""
    state = finish(cluster)
    for name in ("waiting", "running", "outstanding", "kv_used", "in_flight", "forming", "pending_prefill"):
        assert (state.replicas[name] == 0).all(), name
    np.testing.assert_allclose(state.replicas["expected_decode"], 0.0, atol=1e-9)
    assert (state.replicas["queue_head"] == NONE).all() and (state.replicas["queue_tail"] == NONE).all()
    for name in ("count", "decodes", "prefilling", "kv_sum", "held"):
        assert (state.lanes[name] == 0).all(), name
    assert (state.phases == 0).all()
    assert state.control["heap_size"][0] == 0


@given(cluster=clusters())
@many
def test_clocks_are_monotone(cluster: Cluster) -> None:
    state = finish(cluster)
    table, rows = state.requests, iterations_of(state)
    assert (table["arrival"] <= table["scheduled"]).all()
    assert (table["scheduled"] < table["first_token"]).all()
    assert ((table["first_token"] < table["finished"]) == (table["decode_tokens"] > 1)).all()
    assert (table["execution"] > 0.0).all()
    assert (table["execution"] <= (table["finished"] - table["scheduled"]) * (1 + 1e-9)).all()
    followed = table["next_turn"] >= 0
    nexts = table["next_turn"][followed]
    assert (table["arrival"][nexts] == table["finished"][followed] + table["think"][followed]).all()
    assert (rows["start"] < rows["end"]).all()
    for replica, settings_of in enumerate(cluster.replicas):
        mine = rows[rows["replica"] == replica]
        assert (np.diff(mine["start"]) >= 0).all() and (np.diff(mine["end"]) >= 0).all()
        if settings_of.num_stages == 1:
            assert (mine["start"][1:] >= mine["end"][:-1]).all(), "one batch at a time"
    assert state.control["now"][0] == rows["end"].max() == table["finished"].max()


@given(cluster=clusters())
@many
def test_limits_are_kept(cluster: Cluster) -> None:
    rows = iterations_of(finish(cluster))
    for row in rows:
        replica = cluster.replicas[row["replica"]]
        micro = fleet_of(replica).micro_seqs
        assert 0 <= row["kv_used"] <= replica.num_blocks
        assert 0 < row["prefills"] + row["decodes"] <= replica.max_num_seqs
        if replica.scheduler == "vllm_v1":
            assert row["prefill_tokens"] + row["decodes"] <= replica.token_budget
            assert row["running"] <= replica.max_num_seqs
        elif replica.scheduler == "vllm":
            assert row["prefills"] == 0 or row["decodes"] == 0
            assert row["prefills"] + row["decodes"] <= micro


@given(cluster=clusters())
@many
def test_one_gap_between_tokens_for_each_but_the_first(cluster: Cluster) -> None:
    state = finish(cluster)
    assert state.itl.sum() == (state.requests["decode_tokens"] - 1).sum()


@given(cluster=clusters(routers=("replay",)), order=st.randoms(use_true_random=False))
@many
def test_permuting_replicas_permutes_results(cluster: Cluster, order: Any) -> None:
    """Replica i becomes replica ``place[i]``, and its requests go with it."""
    place = list(range(len(cluster.replicas)))
    order.shuffle(place)
    moved: list[OracleReplica] = [cluster.replicas[place.index(i)] for i in range(len(place))]
    requests = cluster.requests.copy()
    requests["replica"] = np.array(place)[requests["replica"]]
    ours = finish(cluster)
    theirs = finish(Cluster(requests, moved, "replay"))
    for name in (*TIMES, "status", "preemptions"):
        assert ours.requests[name].tolist() == theirs.requests[name].tolist(), name
    for name in ours.replicas.dtype.names or ():
        if name not in ("group", "speed", "pool"):
            assert ours.replicas[name].tolist() == theirs.replicas[name][place].tolist(), name
    assert ours.itl.tolist() == theirs.itl.tolist()


def slower(tables: ExecTables, factor: float) -> ExecTables:
    names = ("token_s", "kv_write_s", "decode_s", "prefill_s", "send_s", "cpu_s")
    return replace(tables, **{name: getattr(tables, name) * factor for name in names})


@given(cluster=clusters(), power=st.integers(-3, 6))
@many
def test_scaling_all_times_scales_all_latencies(cluster: Cluster, power: int) -> None:
    """Powers of two, so that not a bit is lost."""
    factor = 2.0**power
    requests = cluster.requests.copy()
    requests["arrival"] *= factor
    requests["think"] *= factor
    replicas = [replace(one, tables=slower(one.tables, factor)) for one in cluster.replicas]
    ours, theirs = finish(cluster), finish(Cluster(requests, replicas, cluster.router))
    for name in TIMES:
        assert (ours.requests[name] * factor).tolist() == theirs.requests[name].tolist(), name
    for name in COUNTS:
        assert ours.requests[name].tolist() == theirs.requests[name].tolist(), name
    assert (iterations_of(ours)["end"] * factor).tolist() == iterations_of(theirs)["end"].tolist()
    for name in ("busy", "waiting_area", "kv_area"):
        assert (ours.replicas[name] * factor).tolist() == theirs.replicas[name].tolist(), name


@given(cluster=clusters(), stops=st.lists(st.floats(0.0, 20.0), max_size=6))
@many
def test_pauses_change_nothing(cluster: Cluster, stops: list[float]) -> None:
    """Also where a stop falls on an event, or lies before the last one."""
    whole = finish(cluster)
    if stops:
        stops = [*stops, float(whole.requests["first_token"][0]), float(whole.requests["arrival"][-1])]
    fleets = [fleet_of(replica) for replica in cluster.replicas]
    paused = prepare(cluster.requests, fleets, ENGINE_ROUTERS[cluster.router], speed_aware=False)
    for stop in stops:
        run(paused, until=stop)
    run(paused)
    assert_same(paused, whole)


@given(cluster=clusters())
@many
def test_areas_are_sums_of_stays(cluster: Cluster) -> None:
    """Little's law on a path: request-seconds in the system, by replica and by request."""
    state = finish(cluster)
    stays = state.requests["finished"] - state.requests["arrival"]
    for replica, row in enumerate(state.replicas):
        mine = stays[state.requests["replica"] == replica].sum()
        assert row["waiting_area"] + row["running_area"] == pytest.approx(mine, abs=1e-9)


def small(**overrides: Any) -> dict[str, Any]:
    return {"workload.num_requests": 300, "replicas.count": 3} | overrides


@pytest.mark.parametrize("router", ["random", "power-of-two", "least-work"])
def test_same_seed_same_result(router: str) -> None:
    first, again, other = (
        tt.simulate("azure-conv", overrides=small(), router=router, seed=seed) for seed in (5, 5, 6)
    )
    for name in first.requests.dtype.names or ():
        assert first.requests[name].tobytes() == again.requests[name].tobytes(), name
    assert first.iterations.tolist() == again.iterations.tolist()
    assert first.itl_counts.tolist() == again.itl_counts.tolist()
    assert first.summary().keys() == again.summary().keys()
    assert first.requests["finished"].tolist() != other.requests["finished"].tolist()


def test_a_time_limit_is_the_beginning_of_the_whole_run() -> None:
    whole = tt.simulate("azure-conv", overrides=small())
    part = tt.simulate("azure-conv", overrides=small(time_limit_s=5.0))
    done = part.requests["status"] == Status.FINISHED
    assert 0 < done.sum() < len(done)
    assert (done == (whole.requests["finished"] <= 5.0)).all()
    for name in TIMES:
        assert part.requests[name][done].tolist() == whole.requests[name][done].tolist()
