"""Rollouts on the cluster engine: their tail, ways of distributing, and the quick estimate."""

from __future__ import annotations

import numpy as np
import pytest

from tests.rlhf.conftest import make_job
from trimtab.errors import TrimtabError
from trimtab.hardware import get_device
from trimtab.rlhf.generation import DISTRIBUTIONS, estimate, rollout
from trimtab.rlhf.job import Cluster, Lengths

JOB = make_job(
    algorithm="grpo",
    samples=8,
    prompts=64,
    response=Lengths(600, 4096, 1.0),
    cluster=Cluster(get_device("h100"), 1),
)


def test_same_seed_same_rollout() -> None:
    first, again = rollout(JOB, 8, 1, 0.8, seed=3), rollout(JOB, 8, 1, 0.8, seed=3)
    assert first.seconds == again.seconds
    assert np.array_equal(first.finished, again.finished)
    assert rollout(JOB, 8, 1, 0.8, seed=4).seconds != first.seconds
    assert len(first.finished) == JOB.total_samples
    assert first.seconds == first.finished.max() == first.engine_s.max()


@pytest.mark.parametrize("distribute", DISTRIBUTIONS)
def test_every_way_serves_every_sample(distribute: str) -> None:
    found = rollout(JOB, 8, 1, 0.8, distribute=distribute)
    counts = np.bincount(found.engine_of, minlength=8)
    assert counts.sum() == JOB.total_samples
    assert counts.min() > 0
    if distribute != "least-work":
        assert np.ptp(counts) <= 8
    if distribute == "openrlhf":  # a prompt's samples stay together
        assert (found.engine_of.reshape(-1, 8) == found.engine_of.reshape(-1, 8)[:, :1]).all()


def test_known_lengths_leave_less_idle() -> None:
    plain = rollout(JOB, 8, 1, 0.8)
    known = rollout(JOB, 8, 1, 0.8, distribute="least-work")
    assert known.idle_share < plain.idle_share
    assert known.seconds <= plain.seconds


def test_more_engines_do_not_shorten_the_longest_response() -> None:
    """The published plateau: with few samples per engine, twice the GPUs gain little."""
    job = make_job(algorithm="grpo", samples=8, prompts=64, response=Lengths(1500, 16384, 2.0),
                   cluster=Cluster(get_device("h100"), 16))  # fmt: skip
    few, many = rollout(job, 64, 1, 0.8), rollout(job, 128, 1, 0.8)
    assert many.seconds > 0.8 * few.seconds
    assert rollout(job, 8, 1, 0.8).seconds > 1.1 * few.seconds
    assert few.tail_share > 0.5


def test_leaving_the_tail_for_later_is_shorter() -> None:
    whole = rollout(JOB, 8, 1, 0.8)
    partial = rollout(JOB, 8, 1, 0.8, partial=0.1)
    over = rollout(JOB, 8, 1, 0.8, oversample=1.25)
    assert partial.seconds < whole.seconds
    assert partial.carried == 51
    assert over.carried == 128


@pytest.mark.parametrize(("engines", "tp", "utilization"), [(8, 1, 0.8), (2, 4, 0.5), (2, 1, 0.35)])
def test_the_estimate_is_near(engines: int, tp: int, utilization: float) -> None:
    simulated = rollout(JOB, engines, tp, utilization).seconds
    assert estimate(JOB, engines, tp, utilization, False, False) == pytest.approx(simulated, rel=0.3)


def test_too_little_cache() -> None:
    with pytest.raises(TrimtabError, match=r"the KV cache of an engine holds .* a sequence up to 5,120"):
        rollout(JOB, 8, 1, 0.2)
    with pytest.raises(TrimtabError, match="unknown way of distributing 'fair'"):
        rollout(JOB, 8, 1, 0.8, distribute="fair")


def test_the_calibration_is_the_benchmarks() -> None:
    """data/rlhf/calibration.yaml holds what benchmarks/rlhf_time.py computes from the published rows."""
    from tests.rlhf.conftest import load
    from trimtab.rlhf.steps import calibrations

    load("_rlhf_published")
    timing = load("rlhf_time")
    for family in ("h100", "gb200"):
        rows = [case for case in timing.PUBLISHED["time"] if case["device"] == family]
        factor, _ = timing.calibrate(next(case for case in rows if case.get("calibrates")), 0)
        assert calibrations()[family].generation == pytest.approx(factor.generation, rel=1e-3)
