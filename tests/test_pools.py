"""Several models behind one router: a request only goes where its model is served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trimtab as tt
from trimtab.errors import TrimtabError
from trimtab.routers import ROUTERS, Router
from trimtab.routers.view import RouterView

ROUTED = [name for name, info in ROUTERS.items() if info.kind not in (Router.OUTSIDE, Router.REPLAY)]
SMALL, LARGE = "llama-3-8b", "llama-2-7b"


def two_models(**changes: Any) -> dict[str, Any]:
    """Three replicas of one model, then two of another; a third of the requests may go anywhere."""
    groups = [
        {"model": SMALL, "count": 2},
        {"model": SMALL, "count": 1, "device": "h100", "name": "fast"},
        {"model": LARGE, "count": 2, "tp": 2},
    ]
    classes = [
        {"name": "small", "share": 1, "model": SMALL},
        {"name": "large", "share": 1, "model": LARGE},
        {"name": "any", "share": 1},
    ]
    workload = {"num_requests": 600, "arrivals": {"kind": "poisson", "qps": 12}}
    return {"replicas": groups, "classes": classes, "workload": workload, **changes}


@pytest.mark.parametrize("troubled", [False, True], ids=["calm", "troubled"])
@pytest.mark.parametrize("name", ROUTED)
def test_every_router_sends_requests_to_their_model(name: str, troubled: bool) -> None:
    events = [{"at_s": 5, "replica": replica, "kind": "crash"} for replica in (0, 3)]
    scenario = two_models(faults={"events": events} if troubled else {})
    requests = tt.simulate(scenario, router=name).requests
    served = requests[requests["replica"] >= 0]
    small, large = (served["replica"][served["klass"] == klass] for klass in (0, 1))
    assert len(small) > 100 and (small < 3).all()
    assert len(large) > 100 and (large >= 3).all()
    if name not in ("sticky-session", "stack-session", "stack-prefixaware", "stack-prefix-aware"):
        assert len(set(large.tolist())) == 2, "both replicas of the model are used"


def test_two_models_apart_are_two_clusters() -> None:
    """Behind one router each model's requests fare as they would alone: round robin counts per pool."""
    together = tt.simulate(two_models(classes=two_models()["classes"][:2]), router="round-robin")
    for klass, (first, last) in enumerate([(0, 3), (3, 5)]):
        mine = together.requests[together.requests["klass"] == klass]
        turns = (mine["replica"] - first).tolist()
        assert turns == (np.arange(len(mine)) % (last - first)).tolist()


def test_a_python_router_sees_who_may_serve() -> None:
    def last_that_accepts(view: RouterView) -> int:
        allowed = np.flatnonzero(view.accepting)
        assert allowed.tolist() == {0: [0, 1, 2], 1: [3, 4], 2: [0, 1, 2, 3, 4]}[view.klass]
        return int(allowed[-1])

    requests = tt.simulate(two_models(), router=last_that_accepts).requests
    assert (requests["replica"] == np.array([2, 4, 4])[requests["klass"]]).all()
    with pytest.raises(TrimtabError, match="chose replica 0; this request may go to 3 to 4 only"):
        tt.simulate(two_models(), router=lambda view: 0)


def test_turns_of_a_session_stay_with_one_model() -> None:
    scenario = two_models()
    scenario["workload"]["sessions"] = {"turns": 4, "think_s": 1}
    requests = tt.simulate(scenario).requests
    for session in np.unique(requests["session"]):
        assert len(set(requests["klass"][requests["session"] == session].tolist())) == 1


def test_an_inconsistent_fleet_is_refused() -> None:
    apart = two_models()
    apart["replicas"].append({"model": SMALL})
    with pytest.raises(TrimtabError, match="groups of model 'llama-3-8b' must stand next to each other"):
        tt.simulate(apart)
    missing = two_models()
    missing["classes"][0]["model"] = "llama-3-70b"
    with pytest.raises(TrimtabError, match="unknown model of a class 'llama-3-70b'"):
        tt.simulate(missing)
    idle = two_models(classes=two_models()["classes"][:1])
    with pytest.raises(TrimtabError, match="no class is served by model 'llama-2-7b'"):
        tt.simulate(idle)
    replay = two_models()
    replay["router"] = {"name": "replay", "assignment": [0] * 600}
    with pytest.raises(TrimtabError, match="to replica 0, which serves another model; allowed: 3 to 4"):
        tt.simulate(replay)
