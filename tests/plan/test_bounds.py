"""Service levels: how they are written, and what a run says about them."""

from __future__ import annotations

import numpy as np
import pytest

import trimtab as tt
from trimtab.errors import TrimtabError
from trimtab.plan.bounds import Bound, figure_of, measure, parse_bounds
from trimtab.plan.scale import at_load, at_size, mean_rate, split_evenly
from trimtab.scenario import load_scenario

SCENARIO = load_scenario("azure-conv")


def test_bounds_are_read_as_they_are_written() -> None:
    bounds = parse_bounds("ttft:p99<1s, tpot:p99.9<50ms,e2e:mean<=8s,goodput>95%,itl<100ms", SCENARIO)
    assert bounds == (
        Bound("ttft", 0.99, 1.0),
        Bound("tpot", 0.999, 0.05),
        Bound("e2e", None, 8.0),
        bounds[3],
        Bound("itl", 0.99, 0.1),
    )
    assert [str(bound) for bound in bounds[1:4]] == ["tpot:p99.9<50ms", "e2e:mean<8000ms", "goodput>95%"]
    assert bounds[1].target == pytest.approx(0.001) and bounds[2].target == 8.0


def test_without_bounds_the_slo_of_the_scenario_counts() -> None:
    assert parse_bounds(None, SCENARIO) == (Bound("goodput", 0.99),)
    with pytest.raises(TrimtabError, match=r"give --slo ttft:p99<1s"):
        parse_bounds(None, SCENARIO.model_copy(update={"slo": type(SCENARIO.slo)()}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tttf:p99<1s", "Did you mean 'ttft'"),
        ("ttft<1", "in s or ms"),
        ("ttft:p99>1s", "the most that ttft may be"),
        ("ttft:p100<1s", "neither mean nor a percentile"),
        ("goodput<95%", "share of requests"),
        ("goodput>2", "share of requests"),
        ("fast", "they look like"),
        ("ttft:p99<1.2.3s", "cannot read the number"),
        (" , ", "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, says: str) -> None:
    with pytest.raises(TrimtabError, match=says) as caught:
        parse_bounds(text, SCENARIO)
    assert "\n" not in str(caught.value)


def test_figures_are_those_of_the_summary() -> None:
    result = tt.simulate(SCENARIO, overrides={"workload.num_requests": 800})
    everything = np.ones(800, bool)
    summary = result.summary()
    for metric, key in (
        ("ttft", "ttft_ms"),
        ("tpot", "tpot_ms"),
        ("e2e", "e2el_ms"),
        ("queue", "scheduling_delay_ms"),
    ):
        mean = figure_of(result, Bound(metric, None, 1.0), everything)
        assert 1e3 * mean == pytest.approx(summary[f"mean_{key}"], rel=1e-12)
        p99 = figure_of(result, Bound(metric, 0.99, 1.0), everything)
        assert 1e3 * p99 == pytest.approx(summary[f"p99_{key}"], rel=0.1)
        # The share over the bound is at most one hundredth exactly where the p99 is within it.
        for limit in (0.999 * p99, p99):
            ((over, count),) = measure(result, [Bound(metric, 0.99, limit)], everything)
            assert (over / count <= 0.01) == (p99 <= limit)
    ((missed, count),) = measure(result, [Bound("goodput", 0.9)], everything)
    assert 1 - missed / count == pytest.approx(summary["slo_attainment"])
    ((gaps, number),) = measure(result, [Bound("itl", None, 1.0)], everything)
    assert 1e3 * gaps / number == pytest.approx(summary["mean_itl_ms"])


def test_requests_that_are_not_served_are_over_every_bound() -> None:
    overrides = {"workload.num_requests": 800, "admission.max_outstanding_per_replica": 2}
    result = tt.simulate(SCENARIO, overrides=overrides)
    unserved = int(result.summary()["failed"])
    assert unserved > 0
    ((over, _),) = measure(result, [Bound("ttft", 0.99, 1e9)], np.ones(800, bool))
    assert over == unserved


def test_load_and_size_change_nothing_else() -> None:
    for name in ("azure-conv", "bursty", "autoscaled"):
        scenario = load_scenario(name)
        assert mean_rate(at_load(scenario, 2.5)) == pytest.approx(2.5 * mean_rate(scenario))
    bigger = at_size(load_scenario("mixed-fleet"), 16)
    assert [group.count for group in bigger.replicas] == [4, 6, 6]
    with pytest.raises(TrimtabError, match="3 groups of replicas need as many"):
        at_size(load_scenario("mixed-fleet"), 2)
    with pytest.raises(TrimtabError, match="closed loop"):
        mean_rate(load_scenario("closed-loop"))


def test_splitting_keeps_the_sum_and_forgets_nobody() -> None:
    for total in range(3, 60):
        counts = split_evenly(total, [1, 5, 30])
        assert sum(counts) == total and min(counts) >= 1
        assert max(abs(np.array(counts) - np.array([1, 5, 30]) * total / 36)) < 2
