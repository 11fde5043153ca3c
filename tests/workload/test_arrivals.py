"""Arrival processes against closed forms and against the recorded arrivals of reference runs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trimtab import scenario
from trimtab.errors import TrimtabError
from trimtab.workload import arrivals
from trimtab.workload.build import build_requests
from trimtab.workload.trace import Trace

FIXED = scenario.FixedLengths(prefill=10, decode=5)


def times(arrival_law, seed=0, **rest):
    rest = rest or {"num_requests": 100_000}
    return build_requests(scenario.Workload(arrivals=arrival_law, lengths=FIXED, **rest), seed)["arrival"]


def gaps_of(arrival_law):
    return np.diff(times(arrival_law), prepend=0.0)


def test_poisson_gaps_are_exponential():
    gaps = gaps_of(scenario.PoissonArrivals(qps=7.0))
    assert stats.kstest(gaps, "expon", args=(0, 1 / 7)).pvalue > 0.001
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.02)


def test_vidur_cap_raises_the_rate_by_five_percent():
    gaps = gaps_of(scenario.PoissonArrivals(qps=20.0, cap=3.0))
    assert gaps.max() == pytest.approx(3 / 20)
    # E[min(X, 3)] of a unit exponential is 1 - exp(-3) = 0.950
    assert gaps.mean() * 20 == pytest.approx(1 - np.exp(-3), abs=0.01)


class VidurStream:
    """Vidur draws the gap and then the length of each request from Python's generator, seed 42."""

    def __init__(self):
        self.source = random.Random(42)

    def standard_exponential(self, count):
        return np.array([-np.log(1 - (self.source.random(), self.source.random())[0]) for _ in range(count)])


@pytest.mark.parametrize(
    ("name", "qps"), [("b_4rep_vllm_uniform_random_qps28", 28.0), ("b_4rep_vllm_uniform_lor_qps20", 20.0)]
)
def test_capped_poisson_is_vidur_s(case, name, qps):
    """With Vidur's own uniforms our process gives the arrivals that its runs recorded."""
    rows = case(name)
    workload = scenario.Workload(arrivals=scenario.PoissonArrivals(qps=qps, cap=3.0))
    ours = arrivals.arrival_times(workload, None, len(rows), VidurStream())
    assert np.allclose(ours, rows["arrived_at"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_has_the_asked_rate_and_variation(cv):
    gaps = gaps_of(scenario.GammaArrivals(qps=5.0, cv=cv))
    assert gaps.mean() == pytest.approx(0.2, rel=0.04)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    for share in (0.2, 0.5, 0.9, 0.99):  # below, a gap drowns in the rounding of its arrival time
        below = np.mean(gaps <= stats.gamma.ppf(share, cv**-2, scale=cv**2 / 5))
        assert abs(below - share) < 4 * np.sqrt(share * (1 - share) / len(gaps))


def test_static_arrivals():
    assert np.array_equal(times(scenario.StaticArrivals(qps=4.0), num_requests=5), np.arange(5) / 4)
    assert np.array_equal(times(scenario.StaticArrivals(), num_requests=5), np.zeros(5))
    assert len(times(scenario.StaticArrivals(qps=4.0), duration_s=2.1)) == 9
    with pytest.raises(TrimtabError, match="time zero"):
        times(scenario.StaticArrivals(), duration_s=1.0)


MOVING = [
    scenario.DiurnalArrivals(qps=30.0, amplitude=0.8, period_s=100.0),
    scenario.DiurnalArrivals(qps=30.0, amplitude=1.0, period_s=700.0),
    scenario.StepArrivals(steps=[(0, 0.0), (5, 60.0), (300, 0.0), (400, 20.0)]),
    scenario.BurstArrivals(qps=20.0, factor=4.0, burst_s=10.0, every_s=60.0),
]
RATES = [
    lambda t: 30 * (1 + 0.8 * np.sin(2 * np.pi * t / 100)),
    lambda t: 30 * (1 + np.sin(2 * np.pi * t / 700)),
    lambda t: np.select([t < 5, t < 300, t < 400], [0.0, 60.0, 0.0], 20.0),
    lambda t: np.where(t % 60 >= 50, 80.0, 20.0),
]


@pytest.mark.parametrize(("law", "rate"), list(zip(MOVING, RATES, strict=True)))
def test_moving_rates_follow_their_integral(law, rate):
    """Counts in windows against the rate summed on a fine grid, and unit gaps after rescaling."""
    horizon = 1000.0
    arrived = times(law, duration_s=horizon)
    assert arrived.min() >= 0
    assert arrived.max() < horizon
    assert np.all(np.diff(arrived) >= 0)
    grid = np.linspace(0, horizon, 400_001)
    middle = (grid[1:] + grid[:-1]) / 2
    integral = np.concatenate([[0.0], np.cumsum(rate(middle)) * (horizon / 400_000)])
    for start, stop in [(0, 100), (100, 400), (400, 1000), (0, 1000)]:
        expected = np.interp(stop, grid, integral) - np.interp(start, grid, integral)
        counted = np.count_nonzero((arrived >= start) & (arrived < stop))
        assert abs(counted - expected) < 4 * np.sqrt(expected + 1)
    rescaled = np.diff(np.interp(arrived, grid, integral), prepend=0.0)
    assert stats.kstest(rescaled, "expon").pvalue > 0.001


@settings(max_examples=40, deadline=None)
@given(
    law=st.one_of(
        st.builds(
            scenario.DiurnalArrivals,
            qps=st.floats(0.1, 100),
            amplitude=st.floats(0, 1),
            period_s=st.floats(1, 1e5),
        ),
        st.builds(
            scenario.BurstArrivals,
            qps=st.floats(0.1, 100),
            factor=st.floats(0.1, 10),
            burst_s=st.floats(1, 30),
            every_s=st.floats(30, 100),
        ),
    ),
    levels=st.lists(st.floats(0.001, 1e5), min_size=1, max_size=20),
)
def test_inverse_of_the_integrated_rate(law, levels):
    integrated, inverse = arrivals._rate(law)
    wanted = np.sort(np.array(levels))
    found = inverse(wanted)
    assert np.all(np.diff(found) >= 0)
    assert np.allclose(integrated(found), wanted, rtol=1e-9, atol=1e-9)


def test_bad_rates_are_refused():
    with pytest.raises(TrimtabError, match="begin at 0"):
        times(scenario.StepArrivals(steps=[(1, 2.0)]), num_requests=3)
    with pytest.raises(TrimtabError, match="begin at 0"):
        times(scenario.StepArrivals(steps=[(0, 2.0), (5, 1.0), (5, 3.0)]), num_requests=3)
    with pytest.raises(TrimtabError, match=r"only .* can arrive"):
        times(scenario.StepArrivals(steps=[(0, 2.0), (5, 0.0)]), num_requests=300)
    with pytest.raises(TrimtabError, match="longer than every_s"):
        times(scenario.BurstArrivals(qps=1, burst_s=61), num_requests=3)
    with pytest.raises(TrimtabError, match="no requests"):
        times(scenario.PoissonArrivals(qps=1e-6), duration_s=1.0)


def test_trace_times_are_scaled_and_cut():
    trace = Trace("t.csv", np.array([0.0, 1.0, 4.0]), np.ones(3, np.int32), np.ones(3, np.int32))

    def replay(count=3, **rest):
        law = scenario.TraceArrivals(time_scale=0.5)
        workload = scenario.Workload(arrivals=law, **rest)
        return arrivals.arrival_times(workload, trace, count, np.random.default_rng(0)).tolist()

    assert replay() == [0.0, 0.5, 2.0]
    assert replay(count=2) == [0.0, 0.5]
    assert replay(duration_s=1.0) == [0.0, 0.5]
    with pytest.raises(TrimtabError, match="has 3 arrivals"):
        replay(count=4)
