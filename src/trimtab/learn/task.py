"""What an environment plays: scenarios drawn at random or a given one, and the runs that are under way.

``Runs`` is what the single and the vector environment share: many runs in step, each at its question.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.cluster import Fleet
from trimtab.cluster.episodes import ASKING, LEDGER, NOTES, OUTCOME, UNTIL, step_runs
from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import INTERPRETED
from trimtab.engine.state import State
from trimtab.errors import TrimtabError, unknown
from trimtab.learn.scenarios import EASY, FIRST_SEED, HARD, Level, between, build_episode, draw_scenario
from trimtab.routers import Router
from trimtab.routers.features import NUM_FEATURES
from trimtab.routers.learned import POOLED, make_brain, policy_size
from trimtab.scenario import Scenario, load_scenario
from trimtab.simulation import start
from trimtab.workload import Traffic

ATTEMPTS = 20  # episodes in a row in which nothing is asked


@dataclass(frozen=True)
class Task:
    """Options of the environments.

    Parameters
    ----------
    scenario:
        a bundled name, a YAML file, a dict or a Scenario, with ``overrides`` as in ``simulate``; each
        episode draws new traffic for it. None: each episode draws a scenario of ``level``.
    curriculum_steps:
        decisions of this environment over which the level goes from ``EASY`` to ``level``.
    max_replicas:
        of the action and the observation; by default as many as the scenario (or the level) has at most.
    repeats:
        episodes that a scenario and its arrivals are played for before the next is drawn.
    max_episode_steps:
        decisions after which an episode is truncated.
    scale_s, dwelling, lost:
        the reward of a decision is -(W + dwelling * D) / scale_s - lost * U, where W is the request-seconds
        that requests waited for their first token until the next decision, D those spent queued or running
        on replicas, and U the requests that failed, were given up or rejected.
    """

    scenario: str | Path | dict[str, Any] | Scenario | None = None
    overrides: dict[str, Any] | None = None
    level: Level = HARD
    curriculum_steps: int = 0
    max_replicas: int | None = None
    repeats: int = 1
    max_episode_steps: int | None = None
    scale_s: float = 1.0
    dwelling: float = 0.05
    lost: float = 20.0

    @property
    def width(self) -> int:
        """Replicas that the observation has room for."""
        return self.level.most_replicas if self.max_replicas is None else self.max_replicas

    def prepared(self) -> Task:
        """With the scenario loaded and ``max_replicas`` known; refuses what cannot be."""
        for name, least in (("repeats", 1), ("curriculum_steps", 0), ("max_episode_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrimtabError(f"{name} must be at least {least}, got {value}")
        if self.scale_s <= 0:
            raise TrimtabError(f"scale_s must be above 0, got {self.scale_s:g}")
        fewest = 2 if self.scenario is None else 1
        if self.width < fewest:
            raise TrimtabError(f"max_replicas must be at least {fewest}, got {self.max_replicas}")
        if self.scenario is None:
            if self.overrides:
                raise TrimtabError("overrides need a scenario; drawn ones are set by level")
            most = min(self.width, self.level.most_replicas)
            level = replace(self.level, most_replicas=most)
            return replace(self, level=level, max_replicas=self.width)
        scenario = load_scenario(self.scenario, self.overrides)
        count = scenario.num_replicas
        if self.max_replicas is not None and count > self.max_replicas:
            raise TrimtabError(f"max_replicas is {self.max_replicas}, but the scenario has {count} replicas")
        width = self.max_replicas or count
        return replace(self, scenario=scenario, overrides=None, max_replicas=width)


def make_task(options: dict[str, Any]) -> Task:
    """A prepared task from keyword arguments of an environment."""
    known = [field.name for field in fields(Task)]
    for name in options:
        if name not in known:
            raise unknown("option", name, known)
    return Task(**options).prepared()


@dataclass
class Course:
    """The episodes of one environment, one after another."""

    task: Task
    rng: np.random.Generator
    steps: int = 0  # decisions so far, which move the curriculum
    plays: int = 0  # of ``material`` that are left
    material: tuple[Scenario, Traffic, list[Fleet]] | None = None

    def reseed(self, rng: np.random.Generator) -> None:
        """Start over: the same generator gives the same episodes."""
        self.rng, self.steps, self.plays = rng, 0, 0

    def next_state(self) -> State:
        """The next episode's state at time zero."""
        if not self.plays or self.material is None:
            self.material, self.plays = self._draw(), self.task.repeats
        self.plays -= 1
        scenario, traffic, fleets = self.material
        brain = make_brain(np.zeros(policy_size(1)), 1, self.task.width)
        return start(scenario, traffic, fleets, Router.OUTSIDE, max_iterations=1, brain=brain)

    def _draw(self) -> tuple[Scenario, Traffic, list[Fleet]]:
        task = self.task
        if isinstance(task.scenario, Scenario):
            seed = FIRST_SEED + int(self.rng.integers(2**31))
            scenario = task.scenario.model_copy(update={"seed": seed})
            return (scenario, *build_episode(scenario))
        progress = min(1.0, self.steps / task.curriculum_steps) if task.curriculum_steps else 1.0
        easy = replace(EASY, most_replicas=min(EASY.most_replicas, task.level.most_replicas))
        level = between(easy, task.level, progress)
        while True:
            try:
                scenario = draw_scenario(self.rng, level)
                traffic, fleets = build_episode(scenario)
            except TrimtabError:
                continue  # a fleet that cannot hold the longest request: draw another
            return scenario, traffic, fleets


class Runs:
    """E runs in step. The engine writes the arrays in place; whoever hands them out copies them.

    replicas (E, M, NUM_FEATURES), context (E, POOLED) f4, accepting (E, M) i1: the questions that wait.
    rewards (E,) f8, steps (E,) decisions of the episode, notes (E, NOTES): see ``cluster.episodes``.
    """

    def __init__(self, task: Task, count: int, threads: int = 1):
        self.task, self.count = task, count
        self.courses = [Course(task, np.random.default_rng()) for _ in range(count)]
        self.replicas = np.zeros((count, task.width, NUM_FEATURES), np.float32)
        self.context = np.zeros((count, POOLED), np.float32)
        self.accepting = np.zeros((count, task.width), np.int8)
        self.rewards = np.zeros(count)
        self.steps = np.zeros(count, np.int64)
        self.ledger = np.zeros((count, LEDGER))
        self.notes = np.zeros((count, NOTES), np.int64)
        self.states: list[State | None] = [None] * count
        self._addresses = np.zeros(count, np.uintp)
        self._open = np.zeros((count, 1), np.int64)
        self._prices = np.array([1.0, task.dwelling, task.lost * task.scale_s]) / task.scale_s
        self._nothing = np.full(count, NONE, np.int64)
        threads = min(threads, count)
        cuts = np.linspace(0, count, threads + 1).astype(int).tolist()
        self._spans = list(pairwise(cuts))
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def reseed(self, run: int, rng: np.random.Generator) -> None:
        """Start a run's course over."""
        self.steps[run] = 0
        self.courses[run].reseed(rng)

    def begin(self, run: int) -> None:
        """The next episode of a run, at its first question."""
        self.courses[run].steps += int(self.steps[run])
        for _ in range(ATTEMPTS):
            state = self.courses[run].next_state()
            self.states[run], self._addresses[run] = state, state.address
            if len(state.requests) > self._open.shape[1]:
                wider = np.zeros((self.count, len(state.requests)), np.int64)
                wider[:, : self._open.shape[1]] = self._open
                self._open = wider
            self.steps[run] = 0
            self.ledger[run] = self.notes[run] = 0
            self.ledger[run, UNTIL] = self._time_limit(run)
            self._advance(self._nothing, (run, run + 1))
            if self.notes[run, OUTCOME] == ASKING:
                return
        raise TrimtabError(f"{ATTEMPTS} episodes in a row ended before any request was routed")

    def step(self, actions: NDArray[np.int64]) -> None:
        """Answer every run's question (E,), and go on to its next one or its end."""
        if self._pool is None:
            self._advance(actions, self._spans[0])
        else:
            list(self._pool.map(partial(self._advance, actions), self._spans))
        self.steps += 1

    @property
    def ended(self) -> NDArray[np.bool_]:
        """(E,) the scenario is over: every request done with, or its time limit reached."""
        ended: NDArray[np.bool_] = self.notes[:, OUTCOME] != ASKING
        return ended

    @property
    def cut(self) -> NDArray[np.bool_]:
        """(E,) not over, but at the limit of decisions."""
        most = self.task.max_episode_steps
        if most is None:
            return np.zeros(self.count, np.bool_)
        cut: NDArray[np.bool_] = (self.steps >= most) & ~self.ended
        return cut

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _time_limit(self, run: int) -> float:
        material = self.courses[run].material
        assert material is not None
        return material[0].time_limit_s or np.inf

    def _advance(self, actions: NDArray[np.int64], span: tuple[int, int]) -> None:
        runs = self.states if INTERPRETED else self._addresses
        seen = self.replicas, self.context, self.accepting
        step_runs(
            runs, *span, actions, *seen, self._open, self.ledger, self.notes, self._prices, self.rewards
        )
