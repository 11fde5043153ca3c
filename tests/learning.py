"""Tiny trainings for tests: fleets of few replicas, episodes of few requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.scenario import Scenario, load_scenario

Json = dict[str, Any]


def tiny(replicas: list[Json] | None = None, requests: int = 60, qps: float = 12.0, **more: Any) -> Scenario:
    """Three kinds of replicas by default, short prompts, some of them shared."""
    engine = {"model": "llama-3-8b", "scheduler": {"name": "vllm_v1", "prefix_caching": True}}
    groups = replicas or [{"device": "h100", "count": 2}, {"device": "a40", "count": 1}]
    data = {
        "name": "tiny",
        "replicas": [{**engine, **group} for group in groups],
        "workload": {
            "num_requests": requests,
            "arrivals": {"kind": "poisson", "qps": qps},
            "lengths": {"kind": "zipf", "min_tokens": 64, "max_tokens": 1024, "theta": 0.6},
            "prefixes": {"groups": 3, "tokens": 256, "zipf": 1.0, "share": 0.7},
        },
        "slo": {"ttft_ms": 500},
        **more,
    }
    return load_scenario(data)


def always(scenario: Scenario) -> Callable[[np.random.Generator, Any], Scenario]:
    """Draws ``scenario`` with other requests each time."""
    from trimtab.learn.scenarios import FIRST_SEED

    return lambda rng, level: scenario.model_copy(update={"seed": FIRST_SEED + int(rng.integers(2**31))})


def silent(*_: Any) -> None:
    """A progress report that nobody reads."""


@contextmanager
def no_bar(_what: str, _unit: str) -> Iterator[Callable[..., None]]:
    yield silent


# Parameters that make a training take a second.
SMALL = {
    "clone.teachers": ["least-outstanding"],
    "clone.steps_per_policy": 64,
    "clone.every": 1,
    "clone.epochs": 2,
    "clone.batch_size": 32,
    "ppo.groups": 2,
    "ppo.plays": 2,
    "evolve.generations": 0,
    "ppo.updates": 4,
    "ppo.minibatch": 64,
}


def small_run(folder: Path, **changes: Any) -> Any:
    """A ``Run`` on ``tiny()`` that is saved after every update."""
    from trimtab.learn.presets import get_preset, override
    from trimtab.learn.train import Run

    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return Run(override(get_preset("lossfree"), SMALL | dotted), folder, tiny(), save_every=1)
