"""Prefill and decode pools in a scenario: who goes where, what a transfer takes, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trimtab as tt
from trimtab.engine.dtypes import NONE, Status
from trimtab.errors import TrimtabError
from trimtab.pools import build_pools
from trimtab.report.metrics import summarize
from trimtab.report.run_folder import load, save
from trimtab.routers import ROUTERS, Router
from trimtab.routers.view import RouterView
from trimtab.scenario import load_scenario

NOT_HERE = (Router.OUTSIDE, Router.REPLAY, Router.STICKY_SESSION)
DECODERS = [name for name, info in ROUTERS.items() if info.kind not in NOT_HERE]


def split(**changes: Any) -> dict[str, Any]:
    """Two replicas that prefill, one that does both, two that decode, with prefix caches."""
    caching = {"prefix_caching": True}
    roles = [("prefill", 2), ("both", 1), ("decode", 2)]
    return {
        "replicas": [{"role": role, "count": count, "scheduler": caching} for role, count in roles],
        "disaggregation": {},
        "workload": {"num_requests": 400, "arrivals": {"kind": "poisson", "qps": 20}, "prefixes": {}},
        **changes,
    }


@pytest.mark.parametrize("troubled", [False, True], ids=["calm", "troubled"])
@pytest.mark.parametrize("name", DECODERS)
def test_every_router_can_choose_who_decodes(name: str, troubled: bool) -> None:
    events = [{"at_s": 5, "replica": replica, "kind": "crash"} for replica in (0, 3)]
    scenario = split(disaggregation={"decode_router": name}, faults={"events": events if troubled else []})
    requests = tt.simulate(scenario).requests
    assert (requests["status"] == Status.FINISHED).all()
    moved = requests[requests["decode_tokens"] > 1]
    assert (moved["prefill_replica"] <= 2).all() and (moved["prefill_replica"] >= 0).all()
    assert (moved["replica"] >= 2).all()
    assert (moved["transfer"] > 0.001).sum() == (moved["replica"] != moved["prefill_replica"]).sum() > 100


@pytest.mark.parametrize("signals", [{"refresh_s": 1}, {"refresh_s": 1, "count_answers": True, "routers": 3}])
def test_a_routers_own_counts_come_out_even(signals: dict[str, Any]) -> None:
    """Snapshots are of the end, and what was added since has been taken off: nothing is left outstanding."""
    result = tt.simulate(split(signals=signals))
    assert (result.requests["status"] == Status.FINISHED).all()
    assert np.allclose(result.replicas["expected_decode"], 0, atol=1e-3)


def test_a_transfer_takes_the_size_of_the_prompts_kv() -> None:
    """Llama 3 8B has 2 x 32 layers x 8 heads x 128 x 2 bytes = 131,072 per token; 25 GB/s and 1 ms."""
    workload = {
        "num_requests": 3,
        "arrivals": {"kind": "poisson", "qps": 0.01},
        "lengths": {"kind": "fixed", "prefill": 2000, "decode": 50},
    }
    replicas = [
        {"role": "prefill", "device": "h100", "tp": 2},
        {"role": "decode", "scheduler": {"block_size": 32}},
    ]
    result = tt.simulate(split(workload=workload, replicas=replicas))
    seconds = 0.001 + 2000 * 131_072 / 25e9
    assert result.requests["transfer"] == pytest.approx(seconds)
    summary = summarize(result)
    assert summary["p99_kv_transfer_ms"] == pytest.approx(1e3 * seconds)
    assert summary["kv_link_utilization"] == pytest.approx(3 * seconds / summary["duration"])


def test_without_disaggregation_there_are_no_such_figures(tmp_path: Any) -> None:
    workload = {"num_requests": 20, "arrivals": {"kind": "poisson", "qps": 5}}
    plain = summarize(tt.simulate({"workload": workload}))
    assert np.isnan(plain["kv_link_utilization"]) and np.isnan(plain["p50_kv_transfer_ms"])
    result = tt.simulate(split())
    save(result, tmp_path / "run")
    again = load(tmp_path / "run")
    for name in ("prefill_replica", "transfer"):
        assert (again.requests[name] == result.requests[name]).all()
    assert again.scenario.disaggregation is not None
    assert summarize(again)["p99_kv_transfer_ms"] == summarize(result)["p99_kv_transfer_ms"]


def test_a_python_router_sends_arrivals_to_who_prefills() -> None:
    def last_that_accepts(view: RouterView) -> int:
        assert np.flatnonzero(view.accepting).tolist() == [0, 1, 2]
        return 1

    requests = tt.simulate(split(), router=last_that_accepts).requests
    assert set(requests["prefill_replica"].tolist()) <= {1, NONE}


def test_several_models_each_have_their_pools() -> None:
    large = [{"model": "llama-2-7b", "role": "both"}, {"model": "llama-2-7b", "role": "decode", "count": 2}]
    classes = [{"name": name, "share": 1, "model": name} for name in ("llama-3-8b", "llama-2-7b", "qwen3-8b")]
    groups = [*split()["replicas"], *large, {"model": "qwen3-8b", "count": 2}]
    scenario = split(replicas=groups, classes=classes)
    pools = build_pools(load_scenario(scenario))
    assert pools[["first", "last", "decode"]].tolist() == [
        (0, 10, -1), (0, 3, 4), (5, 6, 5), (8, 10, -1), (2, 5, -1), (5, 8, -1)
    ]  # fmt: skip
    requests = tt.simulate(scenario).requests
    assert (requests["status"] == Status.FINISHED).all()
    assert (requests["replica"][requests["klass"] == 1] >= 5).all()
    assert (requests["prefill_replica"][requests["klass"] == 2] == NONE).all()


def roles(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": name, **more} for name in names]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"disaggregation": {"bandwidth_gb_s": 0}},
            "disaggregation.bandwidth_gb_s: must be greater than 0, got 0",
        ),
        ({"disaggregation": None}, "replicas.role 'prefill' needs a section disaggregation"),
        ({"replicas": roles("both")}, "disaggregation needs groups of replicas with role prefill and decode"),
        ({"replicas": roles("prefill")}, "groups that prefill need one with role decode or both"),
        ({"replicas": roles("decode", "decode")}, "groups that decode need one with role prefill or both"),
        ({"replicas": roles("decode", "prefill")}, "in the order prefill, both, decode; got decode, prefill"),
        (
            {"replicas": roles("prefill", "decode", pp=2)},
            "works with scheduler vllm_v1 and pp 1, got vllm_v1 and pp 2",
        ),
        (
            {"replicas": roles("prefill", "decode", scheduler={"name": "sarathi"})},
            "works with scheduler vllm_v1 and pp 1, got sarathi and pp 1",
        ),
        ({"replicas": roles("prefil")}, "unknown replicas.0.role 'prefil'"),
        (
            {"disaggregation": {"decode_router": "leastkv"}},
            "unknown router 'leastkv'.*Did you mean 'least-kv'",
        ),
        ({"disaggregation": {"decode_router": "replay"}}, "decode_router cannot be 'replay'"),
        (
            {"replicas": [*roles("prefill", "decode"), {"model": "llama-2-7b"}]},
            "several models: give classes that name theirs",
        ),
        (
            {"router": {"name": "replay", "assignment": [4] * 400}},
            "to replica 4, which does not prefill its model",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrimtabError, match=message) as caught:
        tt.simulate(split(**changes))
    assert "\n" not in str(caught.value)
