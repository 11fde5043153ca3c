"""Evolution strategies: judged figures, the scale of scores, and that it learns what can be learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import trimtab as tt
from trimtab.routers import Router
from trimtab.routers.features import NUM_FEATURES
from trimtab.routers.learned import policy_size
from trimtab.scenario import load_scenario

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("safetensors", reason="training needs safetensors")

from trimtab.learn.evolve import (
    Course,
    Figures,
    begin,
    evolve,
    excess,
    lay_courses,
    run_course,
)
from trimtab.learn.policy import Scorer
from trimtab.learn.presets import EvolveConfig
from trimtab.learn.scenarios import build_episode
from trimtab.plan.executors import Processes

HIDDEN = 4
SMALL = EvolveConfig(generations=12, courses=2, pairs=6, sigma=0.1, learning_rate=0.1)


def lopsided(seed: int) -> Course:
    """Two fast replicas and two slow ones: whoever does not look at speed is late."""
    fleet = [{"device": "h100", "count": 2}, {"device": "l40s", "count": 2}]
    workload = {"num_requests": 300, "arrivals": {"kind": "poisson", "qps": 16}, "max_tokens": 4096}
    scenario = load_scenario(
        {"replicas": fleet, "workload": workload, "seed": seed, "slo": {"ttft_ms": 1000}}
    )
    traffic, fleets = build_episode(scenario)
    best = run_course(scenario, traffic, fleets, Router.LEAST_OUTSTANDING)
    return Course(scenario, traffic, fleets, best)


def test_figures_are_those_of_the_summary() -> None:
    course = lopsided(1)
    summary = tt.simulate(course.scenario, router="least-outstanding").summary()
    assert course.best.p99_ttft * 1000 == pytest.approx(summary["p99_ttft_ms"])
    assert course.best.mean_ttft * 1000 == pytest.approx(summary["mean_ttft_ms"])
    assert course.best.mean_e2e * 1000 == pytest.approx(summary["mean_e2el_ms"])
    assert course.best.good == pytest.approx(summary["slo_attainment"])


def test_scaling_scores_changes_no_choice() -> None:
    course = lopsided(2)
    scorer = Scorer(HIDDEN, seed=3)
    scorer.lean_on_heuristic(20.0)
    values = scorer.flat() + np.random.default_rng(0).normal(0, 0.1, policy_size(HIDDEN))
    scaled = begin(values, HIDDEN).values
    assert np.abs(scaled[-NUM_FEATURES:]).max() == pytest.approx(1.0)
    one, other = (
        run_course(course.scenario, course.traffic, course.fleets, Router.LEARNED, each, HIDDEN)
        for each in (values, scaled)
    )
    assert one == other


def test_it_learns_and_is_the_same_again() -> None:
    """From a policy that knows nothing; the same seed gives the same values to the last bit."""
    courses = [lopsided(seed) for seed in (3, 4)]
    nothing = Scorer(HIDDEN, seed=4).flat()

    def learnt(seed: int) -> np.ndarray:
        evolution = begin(nothing, HIDDEN)
        evolve(evolution, courses, SMALL, seed)
        return evolution.values

    before = np.mean([excess(course, begin(nothing, HIDDEN).values, HIDDEN, SMALL) for course in courses])
    found = learnt(0)
    after = np.mean([excess(course, found, HIDDEN, SMALL) for course in courses])
    assert after < before - 0.2
    assert learnt(0).tolist() == found.tolist()
    assert learnt(1).tolist() != found.tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_find_what_threads_find(workers: int) -> None:
    """To the last bit, on any number of workers, which stay from one generation to the next."""
    courses = [lopsided(seed) for seed in (3, 4)]
    start = Scorer(HIDDEN, seed=4).flat()
    config = replace(SMALL, generations=2, pairs=3)
    executor = Processes(workers)
    here, there = begin(start, HIDDEN), begin(start, HIDDEN)
    evolve(here, courses, config, seed=0)
    evolve(there, courses, config, seed=0, executor=executor)
    assert there.values.tolist() == here.values.tolist() != begin(start, HIDDEN).values.tolist()
    assert there.history == here.history
    assert executor.pool is not None


def test_what_is_paid_for_a_tail_counts() -> None:
    course = lopsided(5)
    values = begin(Scorer(HIDDEN, seed=1).flat(), HIDDEN).values
    free = EvolveConfig(mean=0.0, slower=0.0, missed=0.0)
    fast = replace(course, best=replace(course.best, mean_e2e=course.best.mean_e2e / 2))
    assert excess(fast, values, HIDDEN, free) == excess(course, values, HIDDEN, free)
    assert excess(fast, values, HIDDEN, SMALL) > excess(course, values, HIDDEN, SMALL) + 1
    strict = replace(course, best=replace(course.best, good=2.0))
    assert excess(strict, values, HIDDEN, SMALL) > excess(course, values, HIDDEN, SMALL)


def test_courses_are_repeatable_and_have_their_best() -> None:
    one, again = lay_courses(1, seed=9)[0], lay_courses(1, seed=9)[0]
    assert one.scenario == again.scenario
    assert isinstance(one.best, Figures) and one.best == again.best
    assert 0 < one.best.mean_ttft <= one.best.p99_ttft
