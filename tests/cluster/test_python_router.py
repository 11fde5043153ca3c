"""A router in plain Python: as good as a built-in one, unable to touch, and told what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cluster.conftest import ENGINE_ROUTERS, fleet_of
from hypothesis import HealthCheck, given, settings
from strategies import Cluster, clusters

import trimtab as tt
from trimtab.cluster import prepare, run
from trimtab.engine.state import State
from trimtab.errors import TrimtabError
from trimtab.routers import Router
from trimtab.routers.view import COLUMNS, RouterView

REQUEST_FACTS = ("now", "prefill_tokens", "expected_decode", "session", "klass")


class ReadsOnly:
    """least_outstanding, round_robin, random or vidur_lor by what a router may see, and the coin."""

    def __init__(self, name: str, state: State):
        self.name = name
        self.view = RouterView(state)
        self.turn = -1

    def __call__(self, state: State, request: int) -> int:
        self.view.request = request
        count = self.view.num_replicas
        first = int(state.requests["coin_a"][request] * count)
        if self.name == "round_robin":
            self.turn += 1
            return self.turn % count
        if self.name == "random":
            return first
        if self.name == "vidur_lor":
            return int(np.argmin(self.view.waiting))
        return int((first + np.argmin(np.roll(self.view.outstanding, -first))) % count)


@given(cluster=clusters(routers=("round_robin", "random", "least_outstanding", "vidur_lor")))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_same_choices_same_result(cluster: Cluster) -> None:
    """Bit for bit, closed loops and simultaneous arrivals included."""
    fleets = [fleet_of(replica) for replica in cluster.replicas]
    built_in = prepare(cluster.requests, fleets, ENGINE_ROUTERS[cluster.router], speed_aware=False)
    outside = prepare(cluster.requests, fleets, Router.OUTSIDE)
    run(built_in)
    run(outside, ReadsOnly(cluster.router, outside))
    for name in built_in.requests.dtype.names or ():
        assert built_in.requests[name].tolist() == outside.requests[name].tolist(), name
    for name in built_in.replicas.dtype.names or ():
        assert built_in.replicas[name].tolist() == outside.replicas[name].tolist(), name
    count = int(built_in.control["iterations"][0])
    assert built_in.iterations[:count].tolist() == outside.iterations[:count].tolist()


def mixed(**overrides: Any) -> dict[str, Any]:
    return {"workload.num_requests": 200} | overrides


def test_simulate_takes_a_function() -> None:
    seen = []

    def in_turn(view: RouterView) -> int:
        seen.append(view.now)
        return (len(seen) - 1) % view.num_replicas

    ours = tt.simulate("mixed-fleet", overrides=mixed(), router=in_turn)
    theirs = tt.simulate("mixed-fleet", overrides=mixed(), router="round-robin")
    assert ours.requests["finished"].tolist() == theirs.requests["finished"].tolist()
    assert seen == ours.requests["arrival"].tolist()
    assert ours.provenance["router"] == "in_turn"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (1.0, "a router must return the index of a replica (int), got 1.0"),
        (np.float64(0.0), "a router must return the index of a replica (int), got np.float64(0.0)"),
        (True, "a router must return the index of a replica (int), got True"),
        (np.bool_(True), "a router must return the index of a replica (int), got np.True_"),
        (None, "a router must return the index of a replica (int), got None"),
        ("0", "a router must return the index of a replica (int), got '0'"),
        (8, "the router chose replica 8; there are 8, counted from 0"),
        (-1, "the router chose replica -1; there are 8, counted from 0"),
    ],
)
def test_a_wrong_answer_is_one_clear_line(answer: Any, message: str) -> None:
    with pytest.raises(TrimtabError) as caught:
        tt.simulate("mixed-fleet", overrides=mixed(), router=lambda view: answer)
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8])
def test_any_integer_will_do(kind: Any) -> None:
    result = tt.simulate("mixed-fleet", overrides=mixed(), router=lambda view: kind(3))
    assert (result.requests["replica"] == 3).all()


def test_what_goes_wrong_in_a_router_comes_out() -> None:
    def broken(view: RouterView) -> int:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tt.simulate("mixed-fleet", overrides=mixed(), router=broken)


def test_columns_are_read_only() -> None:
    tried = []

    def meddling(view: RouterView) -> int:
        for name in set(COLUMNS) - {"kv_free"}:
            with pytest.raises(ValueError, match="read-only"):
                getattr(view, name)[0] = 1
            tried.append(name)
        view.kv_free[:] = 0  # computed on demand: the caller's own copy
        assert (view.kv_free > 0).all()
        for name in (*COLUMNS, *REQUEST_FACTS):
            with pytest.raises(AttributeError):
                setattr(view, name, 0)
        return 0

    overrides = mixed(**{"workload.num_requests": 3})
    tt.simulate("mixed-fleet", overrides=overrides, router=meddling)
    assert len(tried) == 3 * (len(COLUMNS) - 1)


def test_columns_are_consistent_and_current() -> None:
    """At each call: sums agree, and as many are outstanding as were routed and have not finished."""
    moments = []

    def watching(view: RouterView) -> int:
        for name in COLUMNS:
            assert getattr(view, name).shape == (view.num_replicas,) == (8,)
        assert (view.outstanding == view.waiting + view.running).all()
        for name in ("waiting", "running", "pending_prefill_tokens", "kv_used", "kv_free"):
            assert (getattr(view, name) >= 0).all(), name
        np.testing.assert_allclose(
            view.expected_decode_tokens, view.outstanding * view.expected_decode, rtol=1e-6
        )
        assert (view.speed > 0).all() and view.speed.max() == 1.0
        assert view.group.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
        moments.append((view.now, view.prefill_tokens, view.session, view.outstanding.copy()))
        return int(np.argmin(view.outstanding / view.speed))

    result = tt.simulate("mixed-fleet", overrides=mixed(), router=watching)
    table = result.requests
    assert len(moments) == len(table)
    for index, (now, prompt, session, outstanding) in enumerate(moments):
        assert (now, prompt, session) == tuple(
            table[index][name] for name in ("arrival", "prefill_tokens", "session")
        )
        unfinished = table[:index][table["finished"][:index] > now]
        assert np.bincount(unfinished["replica"], minlength=8).tolist() == outstanding.tolist()
    assert max(outstanding.max() for *_, outstanding in moments) > 3
