"""Capacity answers: against theory, against each other, against what a perfect system could do."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import trimtab as tt
from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.plan.bounds import Bound, parse_bounds
from trimtab.plan.capacity import fewest_replicas, greatest_load, ideal_load
from trimtab.plan.estimate import crossing_interval, excess
from trimtab.plan.trial import run_trial, simulate_lean
from trimtab.scenario import Scenario, load_scenario

SCENARIO = load_scenario("azure-conv", {"replicas.count": 2})
LEVELS = parse_bounds("ttft:p99<1s,tpot:p99<50ms", SCENARIO)


def one_at_a_time() -> Scenario:
    return load_scenario(
        {
            "workload": {
                "arrivals": {"kind": "poisson", "qps": 10.0},
                "lengths": {"kind": "fixed", "prefill": 512, "decode": 1},
                "max_tokens": 513,
            },
            "replicas": {"device": "a100-80", "scheduler": {"max_num_seqs": 1}},
        }
    )


def test_the_mean_wait_of_an_md1_queue_limits_it_where_theory_says() -> None:
    """Pollaczek and Khinchine: W = rho / (2 (1 - rho)) services; W = 1 at rho = 2/3."""
    service = run_trial(one_at_a_time(), (), 100, 0, load=1e-3).figures["e2e_p50"]
    found = greatest_load(one_at_a_time(), (Bound("queue", None, service),), workers=2)
    limit = 2 / 3 / service
    assert found.load.low <= limit <= found.load.high  # 95 %; the seed is fixed
    assert found.close and found.load.high - found.load.low < 0.06 * limit
    assert 1 / service < found.ideal < 1.2 / service  # batches of more than one would be a little better


def test_the_planning_run_is_the_run() -> None:
    """No record of iterations and replicas built once: the same requests, to the bit."""
    for name in ("azure-conv", "mixed-fleet", "disaggregated"):
        scenario = load_scenario(name, {"workload.num_requests": 3000})
        lean, full = simulate_lean(scenario).requests, tt.simulate(scenario).requests
        for column in ("replica", "preemptions", "hit_tokens"):
            np.testing.assert_array_equal(lean[column], full[column])
        for column in ("scheduled", "first_token", "finished"):
            # tables span the longest request that may come, not the longest that did
            np.testing.assert_allclose(lean[column], full[column], rtol=2e-3)


def test_no_cluster_carries_more_than_a_perfect_one() -> None:
    for name in ("azure-conv", "mixed-fleet", "disaggregated", "llama2-70b-tp4pp2"):
        scenario = load_scenario(name)
        ideal = ideal_load(scenario, ())
        flood = {
            "workload.arrivals": {"kind": "poisson", "qps": 1.5 * ideal},
            "workload.num_requests": 12_000,
        }
        requests = tt.simulate(scenario, overrides=flood).requests
        last = float(requests["arrival"].max())
        done = ((requests["finished"] > 0.4 * last) & (requests["finished"] < last)).sum()
        assert 0.5 * ideal < done / (0.6 * last) < 1.02 * ideal, name


def test_a_perfect_system_is_bound_by_the_time_per_token() -> None:
    loose = ideal_load(SCENARIO, ())
    tight = [ideal_load(SCENARIO, (Bound("tpot", 0.99, limit),)) for limit in (0.03, 0.05, 1.0)]
    assert tight[0] < tight[1] < loose == pytest.approx(tight[2])


def test_load_and_size_are_two_sides_of_one_answer() -> None:
    found = greatest_load(SCENARIO, LEVELS, tolerance=0.05)
    assert found.binding == LEVELS[1] and found.load.value < found.ideal
    size = fewest_replicas(SCENARIO, LEVELS, 0.93 * found.load.low)
    assert size.low <= size.replicas <= size.high
    assert size.ideal <= size.replicas <= 2 <= size.high + 1
    more = fewest_replicas(SCENARIO, LEVELS, 1.3 * found.load.high)
    assert more.low >= 3
    again = greatest_load(SCENARIO, LEVELS, tolerance=0.05)
    assert again.load == found.load  # same seed, same answer


def test_what_cannot_be_met_says_how_far_off() -> None:
    with pytest.raises(TrimtabError, match=r"ttft:p99<20ms cannot be met at any load.*ttft p99 is \d+"):
        greatest_load(SCENARIO, (Bound("ttft", 0.99, 0.02),))
    with pytest.raises(TrimtabError, match=r"cannot be met with any number of replicas: with \d+ for"):
        fewest_replicas(SCENARIO, (Bound("ttft", 0.99, 0.02),), 5.0, counts=(2,))


def test_what_holds_at_any_load_limits_none() -> None:
    """Prefill replicas give way long before decoding ones slow down."""
    with pytest.raises(
        TrimtabError, match=r"tpot:p90<300ms holds at any load.*bound the waiting too"
    ) as caught:
        greatest_load(load_scenario("disaggregated"), (Bound("tpot", 0.9, 0.3),))
    assert "\n" not in str(caught.value)


def test_excess_is_sure_only_with_reason() -> None:
    rng = np.random.default_rng(0)
    quiet = np.stack([rng.binomial(1000, 0.02, 16), np.full(16, 1000)], axis=1).astype(float)
    assert excess(quiet, 0.01).sure and excess(quiet, 0.01).value == pytest.approx(math.log(2), abs=0.3)
    assert not excess(quiet, 0.0205).sure
    assert not excess(quiet[:1], 0.01).sure  # one replication says nothing of its own spread
    nothing = np.array([[0.0, 100.0], [0.0, 100.0]])
    assert not excess(nothing, 0.01).sure and excess(nothing * 10, 0.01).sure
    assert excess(np.array([[np.inf, 10.0]]), 1.0).value == math.inf


def test_intervals_hold_the_crossing_they_should() -> None:
    """A known curve: shares exp(k (log load - log 10)) / 100 with binomial noise, crossing at 10."""
    loads = 10 * 1.03 ** np.arange(-2.0, 3.0)
    shares = 0.01 * (loads / 10) ** 12
    held = 0
    for seed in range(300):
        uniform = np.sort(np.random.default_rng(seed).random((16, 1500)), axis=1)
        over = np.stack([(uniform < share).sum(axis=1) for share in shares])
        sums = np.stack([over, np.full_like(over, 1500)], axis=-1).astype(float)
        found = crossing_interval(loads, sums, 0.01)
        held += found.low <= 10 <= found.high
    assert 0.91 <= held / 300 <= 0.98


def test_the_command_answers(capsys: pytest.CaptureFixture[str]) -> None:
    levels = ["--slo", "ttft:p99<1s,tpot:p99<50ms", "--replicas", "1", "--tolerance", "0.1"]
    assert main(["capacity", "azure-conv", *levels, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["low"] < found["load"] < found["high"] < found["ideal"]
    assert found["binding"] in found["bounds"] and found["replicas"] == 1
    assert main(["capacity", "azure-conv", *levels, "--load", "12"]) == 0
    said = capsys.readouterr().out
    assert "replicas carry 12 requests/s" in said and "a perfect system needs" in said


def test_an_autoscaled_fleet_is_followed(capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--set", "workload.arrivals={kind: diurnal, qps: 12, amplitude: 0.8, period_s: 600}",
        "--set", "workload.num_requests=7200",
        "--set", "replicas.autoscale={min: 1, max: 5, metric: outstanding, target: 24, provision_s: 20}",
    ]  # fmt: skip
    assert main(["capacity", "autoscaled", *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    series = found["series"]
    assert max(found["peak_replicas"]) <= 5 and len(series["paid"]) == len(series["edges"]) - 1
    assert min(found["mean_replicas"]) < max(found["peak_replicas"])
    assert np.mean(series["perfect"]) < np.mean(series["paid"])
    assert np.mean(series["rate"]) == pytest.approx(12, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["closed-loop"], "closed loop"),
        (["azure-conv", "--tolerance", "3"], "--tolerance must be a share"),
        (["azure-conv", "--load", "0"], "--load must be"),
        (["azure-conv", "--workers", "0"], "--workers must be 1 or more"),
        (["autoscaled", "--load", "3"], "autoscaled"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
