"""A scenario that the user gave, to train on: other requests each time, and loads around its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trimtab.learn.scenarios import FIRST_SEED, MOST, Draw, Level, build_episode, draw_scenario
from trimtab.scenario import Scenario, load_scenario

LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0


def source(scenario: Scenario | None) -> Draw:
    """What draws the scenarios of a training: the random family, or variations of ``scenario``.

    Raises
    ------
    TrimtabError
        where ``scenario`` cannot be run at all.
    """
    if scenario is None:
        return draw_scenario
    base = _short(scenario)
    build_episode(base)

    def draw(rng: np.random.Generator, level: Level) -> Scenario:
        del level  # its difficulty is its own
        seed = FIRST_SEED + int(rng.integers(2**31))
        factor = math.exp(rng.uniform(math.log(LEAST_FACTOR), math.log(MOST_FACTOR)))
        return with_load(load_scenario(base, {"seed": seed}), factor)

    return draw


def with_load(scenario: Scenario, factor: float) -> Scenario:
    """The same with ``factor`` times the rate of requests, or of users in a closed loop.

    Requests that all come at time zero stay as they are.
    """
    workload = scenario.workload
    if workload.users is not None:
        return load_scenario(scenario, {"workload.users": max(1, round(workload.users * factor))})
    arrivals: dict[str, Any] = workload.arrivals.model_dump(mode="json")
    if arrivals["kind"] == "trace":
        arrivals["time_scale"] /= factor
    elif arrivals["kind"] == "step":
        arrivals["steps"] = [[start, rate * factor] for start, rate in arrivals["steps"]]
    elif arrivals["qps"] is not None:
        arrivals["qps"] *= factor
    return load_scenario(scenario, {"workload.arrivals": arrivals})


def _short(scenario: Scenario) -> Scenario:
    """At most ``MOST`` requests: many short episodes teach more than few long ones."""
    requests, _ = build_episode(scenario)
    if len(requests.requests) <= MOST:
        return scenario
    return load_scenario(scenario, {"workload.num_requests": MOST, "workload.duration_s": None})
