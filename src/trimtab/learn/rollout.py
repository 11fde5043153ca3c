"""Episodes: a scenario played with a policy that is in training, and what became of each decision.

A group is one scenario played several times with the same arrivals and other coins; the mean over the
group is a baseline that depends on the input and not on the choices (Mao et al. 2019).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.cluster import Fleet
from trimtab.engine.state import State
from trimtab.errors import TrimtabError
from trimtab.learn.scenarios import Draw, Level, build_episode, draw_scenario, stream
from trimtab.routers import Router
from trimtab.routers.learned import make_brain
from trimtab.scenario import Scenario
from trimtab.simulation import start
from trimtab.workload import Traffic

THREADS = os.cpu_count() or 1  # what is found does not depend on it
Place = tuple[int, int, int]  # of a group in its training: seed, update, number


@dataclass(frozen=True)
class Acting:
    """How the policy acts: ``values`` (policy_size(hidden),), drawn at ``temperature`` (0: the best)."""

    values: NDArray[np.float64]
    hidden: int
    temperature: float = 1.0
    bias_rate: float = 0.0


@dataclass(frozen=True)
class Episode:
    """``rows`` (N, ...) as kept by the engine, one per request; ``state`` after the end."""

    scenario: Scenario
    state: State

    @property
    def rows(self) -> NDArray[np.float32]:
        return self.state.decisions

    @property
    def decided(self) -> NDArray[np.bool_]:
        """(N,) requests that were routed at all."""
        return self.state.decisions[:, 1] > 0


def play(
    scenario: Scenario,
    traffic: Traffic,
    fleets: list[Fleet],
    acting: Acting,
    coins: np.random.Generator | None = None,
) -> Episode:
    """One episode to its end, tosses drawn from ``coins`` (None: the traffic's own)."""
    from trimtab.cluster.whole import advance_whole

    if coins is not None:
        requests = traffic.requests.copy()
        requests["coin_b"] = coins.random(len(requests))
        traffic = replace(traffic, requests=requests)
    brain = make_brain(
        acting.values, acting.hidden, scenario.num_replicas, len(traffic.requests), acting.bias_rate
    )
    config = scenario.router.model_copy(update={"temperature": acting.temperature})
    state = start(
        scenario.model_copy(update={"router": config}),
        traffic,
        fleets,
        max_iterations=1,
        kind=Router.LEARNED,
        brain=brain,
    )
    advance_whole(state, np.inf)
    return Episode(scenario, state)


def play_group(
    place: Place, level: Level, acting: Acting, plays: int, draw: Draw = draw_scenario
) -> list[Episode]:
    """The scenario of ``place``, ``plays`` times with the same arrivals."""
    rng = stream("ppo", *place)
    while True:
        try:
            scenario = draw(rng, level)
            traffic, fleets = build_episode(scenario)
        except TrimtabError:
            continue  # a fleet that cannot hold the longest request: draw another
        coins = (stream("ppo", *place, number) for number in range(plays))
        return [play(scenario, traffic, fleets, acting, each) for each in coins]


def play_groups(
    places: Sequence[Place],
    level: Level,
    acting: Acting,
    plays: int,
    draw: Draw = draw_scenario,
    threads: int = THREADS,
) -> list[list[Episode]]:
    """Many groups, in threads: the engine holds no lock. The order is that of ``places``."""

    def one(place: Place) -> list[Episode]:
        return play_group(place, level, acting, plays, draw)

    return spread(one, places, threads)


def spread(work: Callable[[Any], Any], items: Sequence[Any], threads: int = THREADS) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))
