"""Evolution strategies: the last stage, on the very figures that routers are judged by.

A p99 is no sum over decisions, so that no reward per decision adds up to it. Here whole scenarios are
played without tossing, and the policy moves along random directions in proportion to how much better the
one side of each does than the other (Salimans et al. 2017, antithetic pairs, Adam). What is judged is the
excess over the best heuristic of each scenario, so that easy and hard ones weigh alike. The tail is the
geometric mean of the latest ``TAIL`` of first tokens: it lies near the 99th percentile and jumps about less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.cluster import Fleet
from trimtab.engine.dtypes import Status
from trimtab.engine.state import State
from trimtab.errors import TrimtabError
from trimtab.learn.presets import EvolveConfig
from trimtab.learn.rollout import spread
from trimtab.learn.scenarios import FIRST_SEED, HARD, Draw, build_episode, draw_scenario
from trimtab.routers import Router, get_router
from trimtab.routers.features import NUM_FEATURES
from trimtab.routers.learned import make_brain
from trimtab.scenario import Scenario, load_scenario
from trimtab.simulation import start
from trimtab.workload import Traffic

if TYPE_CHECKING:
    from trimtab.plan.executors import Executor

Floats = NDArray[np.float64]
RIVALS = ("least-pending-prefill", "preble", "lmetric", "vllm-dp", "llm-d", "sticky-session")
LATE = 60.0  # s: the first token of a request that was never served
TAIL = 0.025
KEPT = 64  # scenarios that a worker keeps built, some MB each


@dataclass(frozen=True)
class Figures:
    """Of one run: seconds, and the share of requests that met the SLO."""

    p99_ttft: float
    tail_ttft: float
    mean_ttft: float
    mean_e2e: float
    good: float


@dataclass(frozen=True)
class Course:
    """A scenario to be judged on, and the best that any rival reaches there."""

    scenario: Scenario
    traffic: Traffic
    fleets: list[Fleet]
    best: Figures


@dataclass
class Evolution:
    """``values`` are the policy's; the moments are Adam's."""

    values: Floats
    hidden: int
    generation: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  # measures.EVOLUTION of each generation
    first: Floats = field(init=False)
    second: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.second = np.zeros_like(self.values), np.zeros_like(self.values)


def begin(values: Floats, hidden: int) -> Evolution:
    """From a policy that was trained to toss: scores scaled down to order one, which changes no choice."""
    outputs = slice(len(values) - hidden - NUM_FEATURES, len(values))
    scaled = values.copy()
    scaled[outputs] /= max(np.abs(values[outputs]).max(), 1e-9)
    return Evolution(scaled, hidden)


def figures(state: State, slo_ttft: float, slo_tpot: float) -> Figures:
    """What routers are judged by, of a state that has run."""
    requests = state.requests
    done = requests["status"] == Status.FINISHED
    ttft = np.where(done, requests["first_token"] - requests["arrival"], LATE)
    stay = (requests["finished"] - requests["arrival"])[done]
    tokens = np.maximum(requests["decode_tokens"] - 1, 1)
    tpot = np.where(done, (requests["finished"] - requests["first_token"]) / tokens, np.inf)
    good = float((done & (ttft <= slo_ttft) & (tpot <= slo_tpot)).mean())
    tail = np.sort(ttft)[-max(3, int(TAIL * len(ttft))) :]
    return Figures(
        p99_ttft=float(np.quantile(ttft, 0.99)),
        tail_ttft=float(np.exp(np.log(np.maximum(tail, 1e-6)).mean())),
        mean_ttft=float(ttft.mean()),
        mean_e2e=float(stay.mean()),
        good=good,
    )


def run_course(
    scenario: Scenario,
    traffic: Traffic,
    fleets: list[Fleet],
    router: Router,
    values: Floats | None = None,
    hidden: int = 0,
) -> Figures:
    """One run, nothing kept of its decisions; ``values`` and ``hidden`` are for Router.LEARNED."""
    from trimtab.cluster.whole import advance_whole

    brain = None if values is None else make_brain(values, hidden, scenario.num_replicas)
    state = start(scenario, traffic, fleets, router, max_iterations=1, brain=brain)
    advance_whole(state, np.inf)
    slo = scenario.slo
    return figures(state, (slo.ttft_ms or np.inf) / 1000, (slo.tpot_ms or np.inf) / 1000)


def lay_courses(count: int, seed: int, draw: Draw = draw_scenario) -> list[Course]:
    """``count`` scenarios of training, each run once behind every rival."""

    def lay(index: int) -> Course:
        rng = np.random.default_rng(FIRST_SEED * (1 + seed) + index)
        while True:
            try:
                scenario = draw(rng, HARD)
                traffic, fleets = build_episode(scenario)
            except TrimtabError:
                continue  # a fleet that cannot hold the longest request: draw another
            found = [run_course(scenario, traffic, fleets, get_router(name).kind) for name in RIVALS]
            tails = [each.tail_ttft for each in found]
            best = Figures(
                p99_ttft=min(each.p99_ttft for each in found),
                tail_ttft=min(tails),
                mean_ttft=min(each.mean_ttft for each in found),
                mean_e2e=found[int(np.argmin(tails))].mean_e2e,
                good=max(each.good for each in found),
            )
            return Course(scenario, traffic, fleets, best)

    return spread(lay, range(count))


def excess(course: Course, values: Floats, hidden: int, config: EvolveConfig) -> float:
    """How much worse than the best rival: logarithm of the tail's ratio, plus what was paid for it."""
    run = run_course(course.scenario, course.traffic, course.fleets, Router.LEARNED, values, hidden)
    best = course.best
    tail = np.clip(np.log(run.tail_ttft / best.tail_ttft), -1.5, 2.5)
    mean = np.clip(np.log(run.mean_ttft / best.mean_ttft), -1.0, 2.0)
    slower = max(0.0, run.mean_e2e / best.mean_e2e - 1.02)
    missed = max(0.0, best.good - run.good)
    return float(tail + config.mean * mean + config.slower * slower + config.missed * missed)


def evolve(
    evolution: Evolution,
    courses: Sequence[Course],
    config: EvolveConfig,
    seed: int,
    told: Callable[[dict[str, float]], None] | None = None,
    executor: Executor | None = None,
) -> None:
    """Go on to ``config.generations``; every generation is a function of (seed, its number)."""
    while evolution.generation < config.generations:
        facts = generation(evolution, courses, config, seed, executor)
        if told is not None:
            told(facts)


def judge_all(
    trials: Sequence[tuple[Course, Floats]], hidden: int, config: EvolveConfig, executor: Executor | None
) -> list[float]:
    """The excess of each trial: in threads of this process, or on an executor. The same to the last bit."""
    if executor is None:
        return spread(lambda trial: excess(trial[0], trial[1], hidden, config), trials)
    payloads = [
        {
            "scenario": course.scenario.model_dump(mode="json", exclude_unset=True),
            "best": course.best,
            "values": values,
            "hidden": hidden,
            "config": config,
        }
        for course, values in trials
    ]
    found = dict(executor.run(judge, payloads))
    return [found[index]["excess"] for index in range(len(trials))]


def judge(payload: dict[str, Any]) -> dict[str, float]:
    """One trial of ``judge_all``, all it needs with it."""
    course = Course(*_built(json.dumps(payload["scenario"])), payload["best"])
    return {"excess": excess(course, payload["values"], payload["hidden"], payload["config"])}


@lru_cache(maxsize=KEPT)
def _built(scenario: str) -> tuple[Scenario, Traffic, list[Fleet]]:
    loaded = load_scenario(json.loads(scenario))
    return (loaded, *build_episode(loaded))


def generation(
    evolution: Evolution,
    courses: Sequence[Course],
    config: EvolveConfig,
    seed: int,
    executor: Executor | None = None,
) -> dict[str, float]:
    """One step. Returns the mean excess of its trials, that of their hardest course, and the step's size."""
    rng = np.random.default_rng((seed, evolution.generation))
    chosen = [courses[index] for index in rng.choice(len(courses), config.courses, replace=False)]
    directions = rng.normal(size=(config.pairs, len(evolution.values)))
    trials = [
        (course, evolution.values + side * config.sigma * direction)
        for direction in directions
        for side in (1.0, -1.0)
        for course in chosen
    ]
    excesses = judge_all(trials, evolution.hidden, config, executor)
    found = np.array(excesses).reshape(config.pairs, 2, config.courses)
    hard = np.sqrt((np.maximum(found, 0.0) ** 2).mean(axis=2))
    worth = found.mean(axis=2) + config.hardness * hard
    slope = ((worth[:, 0] - worth[:, 1])[:, None] * directions).mean(axis=0) / (2 * config.sigma)
    step = _adam(evolution, slope, config)
    evolution.values = evolution.values - step
    evolution.generation += 1
    facts = {
        "evolve/excess": float(found.mean()),
        "evolve/excess_hardest": float(found.max(axis=2).mean()),
        "evolve/step": float(np.abs(step).mean()),
    }
    evolution.history.append(facts)
    return facts


def _adam(evolution: Evolution, slope: Floats, config: EvolveConfig) -> Floats:
    """The learning rate is constant for half of the generations, then fades."""
    count = evolution.generation + 1
    evolution.first = 0.9 * evolution.first + 0.1 * slope
    evolution.second = 0.95 * evolution.second + 0.05 * slope**2
    fade = min(1.0, 2.0 * (config.generations - evolution.generation) / config.generations)
    mean = evolution.first / (1 - 0.9**count)
    spread_ = np.sqrt(evolution.second / (1 - 0.95**count)) + 1e-8
    return np.asarray(config.learning_rate * fade * mean / spread_)
