"""Autoscaling from the scenario to the figures: what it costs, and every mistake as one clear line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab as tt
from trimtab.engine.dtypes import Power, Status
from trimtab.errors import TrimtabError
from trimtab.report.metrics import paid_over_time
from trimtab.report.run_folder import load, save
from trimtab.report.series import replicas_over_time

GROUP: dict[str, Any] = {"count": 2, "scheduler": {"max_num_seqs": 4}}
SCALE: dict[str, Any] = {"max": 4, "target": 2, "interval_s": 2, "provision_s": 3, "scale_down_delay_s": 6}
TRAFFIC: dict[str, Any] = {
    "arrivals": {"kind": "burst", "qps": 3, "factor": 8, "burst_s": 10, "every_s": 40},
    "lengths": {"kind": "fixed", "prefill": 256, "decode": 64},
    "num_requests": 600,
}


def scenario(scale: dict[str, Any] | None = SCALE, **sections: Any) -> dict[str, Any]:
    group = GROUP | ({"autoscale": scale} if scale else {})
    return {"workload": TRAFFIC, "replicas": [group], "slo": {"ttft_ms": 500}, **sections}


def test_cost_is_the_integral_of_what_is_on() -> None:
    result = tt.simulate(scenario())
    summary = result.summary()
    assert summary["scale_ups"] > 2 and summary["scale_downs"] > 2
    times, counts = paid_over_time(result)
    assert counts.min() >= 1 and counts.max() == summary["peak_replicas"] <= 4
    end = times[0] + summary["duration"]
    hours = float((np.diff(np.append(times, end)) * counts).sum()) / 3600
    price = result.groups[0].cost_per_hour
    assert summary["replica_hours"] == pytest.approx(hours, rel=1e-9)
    assert summary["cost"] == pytest.approx(hours * price, rel=1e-9)
    assert summary["cost_per_hour"] == pytest.approx(summary["cost"] / summary["duration"] * 3600)
    assert summary["cost_per_thousand_requests"] == pytest.approx(summary["cost"] / 0.6)
    assert replicas_over_time(result, 50).mean() == pytest.approx(summary["mean_replicas"], rel=1e-9)
    assert 0 < summary["busy_share"] <= 1 and summary["completed"] == 600


def test_a_fixed_fleet_costs_what_all_of_it_costs() -> None:
    result = tt.simulate(scenario(None))
    summary = result.summary()
    price = result.groups[0].cost_per_hour
    assert summary["cost"] == (price + price) * summary["duration"] / 3600
    assert (summary["cost_per_hour"], summary["mean_replicas"]) == (2 * price, 2)
    assert math.isnan(summary["scale_ups"])


def test_a_group_that_may_not_change_gives_the_figures_of_a_fixed_one() -> None:
    bound = tt.simulate(scenario(SCALE | {"min": 2, "max": 2})).summary()
    fixed = tt.simulate(scenario(None)).summary()
    assert (bound.pop("scale_ups"), bound.pop("scale_downs")) == (0, 0)
    del fixed["scale_ups"], fixed["scale_downs"]
    np.testing.assert_equal(bound, fixed)


@pytest.mark.parametrize("metric", ["queue", "outstanding", "kv", "slo"])
@pytest.mark.parametrize("router", ["round-robin", "least-outstanding", "power-of-two", "sglang-cache-aware"])
def test_every_metric_with_stale_signals_and_crashes(metric: str, router: str) -> None:
    """All requests are served or counted; the same again with the same seed."""
    target = 0.9 if metric == "slo" else 0.01 if metric == "kv" else 2
    given = scenario(
        SCALE | {"metric": metric, "target": target, "min": 0},
        signals={"refresh_s": 1.0},
        faults={"mtbf_s": 60, "mttr_s": 5, "health_delay_s": 1},
        router=router,
    )
    result = tt.simulate(given)
    summary = result.summary()
    assert summary["completed"] + summary["crashed"] == 600
    assert not (result.replicas["power"] == Power.LEAVING).any()
    again = tt.simulate(given)
    np.testing.assert_array_equal(again.requests["finished"], result.requests["finished"])
    assert set(result.requests["status"].tolist()) <= {Status.FINISHED, Status.FAILED}


def test_a_run_folder_keeps_the_changes(tmp_path: Path) -> None:
    result = tt.simulate(scenario())
    save(result, tmp_path / "run", plots=False)
    np.testing.assert_equal(load(tmp_path / "run").summary(), result.summary())
    assert 'id="fleet"' in (tmp_path / "run" / "index.html").read_text()


@pytest.mark.parametrize(
    ("scale", "sections", "message"),
    [
        ({"max": 4, "min": 5}, {}, "min 5 is more than max 4"),
        ({"max": 1}, {}, "count 2 is where autoscale starts; allowed: its min 1 to its max 1"),
        ({"max": 4, "target": 0}, {}, "must be greater than 0, got 0"),
        ({"max": 4, "metric": "kv"}, {}, "target 2 of metric kv is a share; allowed: above 0, below 1"),
        ({"max": 4, "metric": "slo", "target": 0.9}, {"slo": {}}, "metric slo needs slo.ttft_ms"),
        ({"max": 4, "metric": "cpu"}, {}, "allowed: kv, outstanding, queue, slo"),
        ({"max": 4, "scale_down_delay_s": 1e9}, {}, "at most 100,000 times interval_s = 2"),
        ({"max": 4, "cooldown": 3}, {}, "unknown key"),
    ],
)
def test_mistakes_are_one_line(scale: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(TrimtabError) as error:
        tt.simulate(scenario(SCALE | scale, **sections))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
