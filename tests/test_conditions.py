"""From scenario sections to faults in time and limits per class; every mistake is one clear line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trimtab as tt
from trimtab.conditions import assign_classes, build_conditions
from trimtab.engine.dtypes import Fault
from trimtab.errors import TrimtabError
from trimtab.report.classes import class_rows
from trimtab.scenario import load_scenario
from trimtab.workload import build_traffic

SMALL: dict[str, Any] = {
    "replicas": {"count": 3},
    "workload": {"arrivals": {"kind": "poisson", "qps": 20}, "num_requests": 300},
}


def conditions_for(**sections: Any) -> Any:
    scenario = load_scenario({**SMALL, **sections})
    return build_conditions(scenario, build_traffic(scenario.workload, scenario.seed).requests)


def test_by_default_nothing_is_watched() -> None:
    assert not conditions_for().watching


@pytest.mark.parametrize(
    "sections",
    [
        {"faults": {"events": [{"at_s": 1, "replica": 0, "kind": "crash"}]}},
        {"faults": {"mtbf_s": 100, "mttr_s": 10}},
        {"admission": {"timeout_s": 5}},
        {"admission": {"rate_qps": 5}},
        {"admission": {"max_outstanding_per_replica": 8}},
        {"classes": [{"name": "a", "share": 1, "ttft_timeout_s": 1}]},
    ],
)
def test_each_of_these_is_watched(sections: dict[str, Any]) -> None:
    assert conditions_for(**sections).watching


def test_health_checks_look_late_and_everything_is_in_order() -> None:
    events = [
        {"at_s": 9, "replica": 1, "kind": "recover"},
        {"at_s": 4, "replica": 1, "kind": "crash"},
        {"at_s": 5, "replica": 0, "kind": "slow", "factor": 2},
    ]
    faults = conditions_for(faults={"events": events, "health_delay_s": 3}).faults
    assert [(row["at"], Fault(row["kind"]).name) for row in faults] == [
        (4, "CRASH"),
        (5, "SLOW"),
        (7, "CHECK"),
        (9, "RECOVER"),
        (12, "CHECK"),
    ]


def test_random_crashes_follow_their_means() -> None:
    faults = conditions_for(faults={"mtbf_s": 50, "mttr_s": 5}).faults
    assert (np.diff(faults["at"]) >= 0).all()
    for replica in range(3):
        mine = faults[faults["replica"] == replica]
        up = mine["at"] - np.concatenate([[0.0], mine["at"][:-1]])
        assert np.mean(up[::2]) == pytest.approx(50, rel=0.1)
        assert np.mean(up[1::2]) == pytest.approx(5, rel=0.1)
        assert mine["kind"].tolist() == [Fault.CRASH, Fault.RECOVER] * (len(mine) // 2)


def test_one_more_replica_leaves_the_crashes_of_the_others() -> None:
    crashes = {"faults": {"mtbf_s": 50, "mttr_s": 5}}
    three = conditions_for(**crashes).faults
    four = conditions_for(**crashes, replicas={"count": 4}).faults
    for replica in range(3):
        ours, theirs = three[three["replica"] == replica], four[four["replica"] == replica]
        assert ours["at"].tolist() == theirs["at"].tolist()


def test_classes_are_drawn_by_share_and_carry_their_limits() -> None:
    classes = [
        {"name": "chat", "share": 3, "timeout_s": 9},
        {"name": "batch", "share": 1, "priority": 2, "shed_at": 0.5},
    ]
    scenario = load_scenario(
        {
            **SMALL,
            "workload": {"num_requests": 4000},
            "classes": classes,
            "admission": {"max_outstanding_per_replica": 40, "timeout_s": 30},
        }
    )
    requests = build_traffic(scenario.workload, 0).requests
    assign_classes(requests, scenario)
    assert requests["klass"].mean() == pytest.approx(0.25, abs=0.03)
    assert (requests["priority"] == 2 * requests["klass"]).all()
    limits = build_conditions(scenario, requests).classes
    assert limits["timeout"].tolist() == [9, 30]
    assert limits["limit"].tolist() == [40, 20]
    assert np.isinf(limits["ttft_timeout"]).all()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"faults": {"events": [{"at_s": 1, "replica": 3, "kind": "crash"}]}},
            "faults.events.0: there is no replica 3; there are 3, counted from 0",
        ),
        (
            {"faults": {"events": [{"at_s": 1, "replica": 0, "kind": "slow"}]}},
            "faults.events.0: kind slow needs a factor",
        ),
        (
            {"faults": {"events": [{"at_s": 1, "replica": 0, "kind": "crash", "factor": 2}]}},
            "faults.events.0: kind crash takes no factor, got 2",
        ),
        ({"faults": {"mtbf_s": 10}}, "faults: mtbf_s needs mttr_s beside it"),
        ({"faults": {"mttr_s": 10}}, "faults: mttr_s needs mtbf_s beside it"),
        (
            {"classes": [{"name": "a", "share": 1, "shed_at": 0.5}]},
            "class 'a': shed_at 0.5 is a share of admission.max_outstanding_per_replica, which is not set",
        ),
        (
            {"classes": [{"name": "a", "share": 1}, {"name": "a", "share": 2}]},
            "classes: two are named 'a'; names must differ",
        ),
        (
            {"faults": {"events": [{"at_s": 1, "replica": 0, "kind": "crush"}]}},
            "scenario: unknown faults.events.0.kind 'crush'; allowed: crash, drain, recover, slow, undrain. "
            "Did you mean 'crash'?",
        ),
    ],
)
def test_mistakes_are_one_line(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(TrimtabError) as caught:
        tt.simulate({**SMALL, **sections})
    assert str(caught.value) == message


def test_a_run_accounts_for_every_request() -> None:
    """Crashes, impatience and shedding at once; classes, retries and availability are reported."""
    result = tt.simulate(
        {
            **SMALL,
            "slo": {"ttft_ms": 500},
            "faults": {"mtbf_s": 6, "mttr_s": 3, "retries": 1},
            "admission": {"ttft_timeout_s": 3, "max_outstanding_per_replica": 60},
            "classes": [
                {"name": "chat", "share": 2, "slo": {"ttft_ms": 200}},
                {"name": "batch", "share": 1, "shed_at": 0.3, "timeout_s": 8},
            ],
        }
    )
    summary, rows = result.summary(), class_rows(result)
    ends = [summary[name] for name in ("completed", "crashed", "aborted", "rejected")]
    assert sum(ends) == len(result.requests) and all(ends)
    for name, total in zip(("completed", "crashed", "aborted", "rejected"), ends, strict=True):
        assert rows[name].sum() == total
    assert rows["requests"].sum() == len(result.requests)
    assert 0 < summary["availability"] < 1 and summary["retries"] > 0
    assert rows["goodput"].sum() == pytest.approx(summary["request_goodput"])
    x = rows["served_share"]
    assert summary["class_fairness"] == pytest.approx(x.sum() ** 2 / (len(x) * (x**2).sum()))
    again = tt.simulate(result.scenario)
    assert again.requests["finished"].tobytes() == result.requests["finished"].tobytes()
