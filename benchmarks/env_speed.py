"""Steps per second of the Gymnasium environments, one step being one routing decision.

The agent sends each request where the first token is expected soonest; its own time counts. ``single`` is
one environment, ``vector`` many in one call, ``threads`` the same with two threads; all on
``mixed-fleet``. ``drawn`` has random fleets, loads and workloads. Traffic is drawn anew every four episodes
(``repeats``), and drawing counts. Reference: Stable-Baselines3 on Python environments, 1,000-10,000 steps/s.

    python benchmarks/env_speed.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from trimtab.learn.env import RouterEnv
from trimtab.learn.vector_env import RouterVectorEnv

DRAWN: dict[str, Any] = {"repeats": 4}
FIXED: dict[str, Any] = {"scenario": "mixed-fleet", "overrides": {"workload.num_requests": 4_000}, **DRAWN}
NUM_ENVS = 64


def soonest(observation: dict[str, Any]) -> Any:
    """(E,) or () replica: least ``first_token`` among those that accept."""
    return np.argmin(observation["replicas"][..., 0] + 9 * (1 - observation["accepting"]), axis=-1)


def single(steps: int) -> float:
    """Steps per second of one environment, episodes ended and begun."""
    env = RouterEnv(**FIXED)
    observation, _ = env.reset(seed=0)
    started = time.perf_counter()
    for _ in range(steps):
        observation, _, ended, cut, _ = env.step(int(soonest(observation)))
        if ended or cut:
            observation, _ = env.reset()
    return steps / (time.perf_counter() - started)


def vector(steps: int, threads: int, options: dict[str, Any]) -> float:
    """Steps per second of ``NUM_ENVS`` environments together; the start is not counted."""
    env = RouterVectorEnv(NUM_ENVS, threads, **options)
    observation, _ = env.reset(seed=0)
    started = time.perf_counter()
    for _ in range(steps // NUM_ENVS):
        observation, *_ = env.step(soonest(observation))
    seconds = time.perf_counter() - started
    env.close()
    return steps / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    steps = 50_000 if quick else 1_000_000
    single(1_000)  # compile and warm
    figures: dict[str, Any] = {"name": "env_speed", "num_envs": NUM_ENVS}
    figures["steps_per_s_single"] = single(steps // 5)
    figures["steps_per_s_vector"] = vector(steps, 1, FIXED)
    figures["steps_per_s_vector_threads"] = vector(steps, 2, FIXED)
    figures["steps_per_s_vector_drawn"] = vector(steps, 2, DRAWN)
    for name, value in figures.items():
        if name.startswith("steps"):
            print(f"{name:<28} {value:12,.0f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
