"""What the router is trained on: fleets, traffic, loads and signals drawn at random.

Nothing that routers are judged on is among them: seeds of training are far above those of evaluation, and
every stage of every training has random numbers of its own (a test says so). Kinds are shared: lengths are
often those fitted to azure-conv-2023, as the suite's are, and a fleet of the suite may be drawn, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.cluster import Fleet
from trimtab.conditions import assign_classes
from trimtab.engine.dtypes import Status
from trimtab.fleet import build_fleets
from trimtab.scenario import Scenario, load_scenario
from trimtab.workload import Traffic, build_traffic

FIRST_SEED = 1_000_000  # of training; evaluation uses small numbers
STAGES = ("demonstrations", "ppo")  # evolution and the held-out scenarios have streams of one number
DEVICES = ("h200", "h100", "a100-80", "l40s", "a40")
SECONDS = 60.0
SNAPSHOTS = 12  # of old signals that a scenario lasts for
FEWEST, MOST = 500, 5_000  # requests of a scenario
LONGEST = 8192  # tokens
BURST_REQUESTS = 1_500  # to find what a fleet can carry

Json = dict[str, Any]


@dataclass(frozen=True)
class Level:
    """How hard scenarios are. The curriculum goes from (2-4 equal replicas, plain) to everything."""

    most_replicas: int = 16
    mixed: float = 0.7  # probability of more than one kind of device
    shared: float = 0.5  # of prompts that share something
    bursty: float = 0.5  # of arrivals that are not Poisson
    stale: float = 0.35  # of signals that are not fresh
    failing: float = 0.1  # of a replica that crashes
    least_load: float = 0.5  # of saturation
    most_load: float = 1.0


Draw = Callable[[np.random.Generator, Level], Scenario]

EASY = Level(most_replicas=4, mixed=0.0, shared=0.0, bursty=0.0, stale=0.0, failing=0.0, most_load=0.9)
HARD = Level()


def between(easy: Level, hard: Level, progress: float) -> Level:
    """A level on the way, ``progress`` in [0, 1]."""
    mixed = {
        name: getattr(easy, name) + progress * (getattr(hard, name) - getattr(easy, name))
        for name in Level.__dataclass_fields__
    }
    return Level(**{**mixed, "most_replicas": round(mixed["most_replicas"])})


def stream(stage: str, seed: int, *numbers: int) -> np.random.Generator:
    """Random numbers of a stage of a training: other ones for every stage, seed and choice of ``numbers``."""
    return np.random.default_rng([FIRST_SEED, 1 + STAGES.index(stage), len(numbers), seed, *numbers])


def draw_scenario(rng: np.random.Generator, level: Level = HARD) -> Scenario:
    """A scenario of some ``SECONDS`` whose load is a share of what its own fleet can carry."""
    prompts = _prompts(rng, level)
    data: Json = {
        "name": "training",
        "seed": FIRST_SEED + int(rng.integers(2**31)),
        "replicas": _fleet(rng, level),
        "workload": {"lengths": _lengths(rng), **prompts},
        "slo": {"ttft_ms": 1000, "tpot_ms": 100},
    }
    rate = float(rng.uniform(level.least_load, level.most_load)) * saturation(data)
    refresh = float(np.exp(rng.uniform(np.log(0.1), np.log(20.0)))) if rng.random() < level.stale else 0.0
    requests = int(np.clip(max(SECONDS, SNAPSHOTS * refresh) * rate, FEWEST, MOST))
    data["workload"] |= {"num_requests": requests, "arrivals": _arrivals(rng, level, rate)}
    if refresh:
        data["signals"] = {"refresh_s": refresh}
    if rng.random() < level.failing:
        data["faults"] = _crash(rng, data, requests / rate)
    return load_scenario(data)


def _fleet(rng: np.random.Generator, level: Level) -> list[Json]:
    engine: Json = {"model": "llama-3-8b", "scheduler": {"name": "vllm_v1", "prefix_caching": True}}
    engine["exectime"] = {"max_tokens": LONGEST}  # one size of tables for all, which the cache then holds
    total = int(rng.integers(2, level.most_replicas + 1))
    kinds = int(rng.integers(2, 4)) if rng.random() < level.mixed else 1
    kinds = min(kinds, total)
    devices = rng.choice(DEVICES, kinds, replace=False)
    cuts = np.sort(rng.choice(np.arange(1, total), kinds - 1, replace=False))
    counts = np.diff([0, *cuts, total])
    return [
        {"device": str(device), "count": int(count), **engine}
        for device, count in zip(devices, counts, strict=True)
    ]


def _lengths(rng: np.random.Generator) -> Json:
    if rng.random() < 0.75:
        return {"kind": "fitted", "name": str(rng.choice(["azure-conv-2023", "azure-code-2023"]))}
    low = int(rng.integers(64, 512))
    return {"kind": "zipf", "min_tokens": low, "max_tokens": int(low * rng.uniform(4, 16)), "theta": 0.6}


def _prompts(rng: np.random.Generator, level: Level) -> Json:
    cap: Json = {"max_tokens": LONGEST}
    if rng.random() >= level.shared:
        return cap
    if rng.random() < 0.5:
        think = float(rng.uniform(2, 15))
        return {"sessions": {"turns": float(rng.uniform(2, 8)), "think_s": think, "max_context": LONGEST}}
    prefixes: Json = {"groups": int(rng.integers(4, 64)), "tokens": int(rng.integers(256, 2049))}
    prefixes |= {"zipf": float(rng.uniform(0.6, 1.4)), "share": float(rng.uniform(0.5, 1.0))}
    return {**cap, "prefixes": prefixes}


def _arrivals(rng: np.random.Generator, level: Level, rate: float) -> Json:
    if rng.random() >= level.bursty:
        return {"kind": "poisson", "qps": rate}
    if rng.random() < 0.5:
        return {"kind": "gamma", "qps": rate, "cv": float(rng.uniform(1.5, 4.0))}
    factor, every = float(rng.uniform(1.5, 4.0)), float(rng.uniform(10, 40))
    burst = float(rng.uniform(0.1, 0.3)) * every
    calm = rate / (1 + (factor - 1) * burst / every)
    return {"kind": "burst", "qps": calm, "factor": factor, "burst_s": burst, "every_s": every}


def _crash(rng: np.random.Generator, data: Json, seconds: float) -> Json:
    count = sum(group["count"] for group in data["replicas"])
    down = float(rng.uniform(0.2, 0.5)) * seconds
    replica = int(rng.integers(count))
    up = down + float(rng.uniform(0.05, 0.2)) * seconds
    return {
        "events": [
            {"kind": "crash", "replica": replica, "at_s": down},
            {"kind": "recover", "replica": replica, "at_s": up},
        ]
    }


def saturation(data: Json) -> float:
    """Requests per second that the fleet carries, by how fast it works off a burst."""
    from trimtab.simulation import simulate

    burst = {**data["workload"], "arrivals": {"kind": "static"}, "num_requests": BURST_REQUESTS}
    requests = simulate({**data, "workload": burst}).requests
    done = np.sort(requests["finished"][requests["status"] == Status.FINISHED])
    first, last = int(0.2 * len(done)), int(0.8 * len(done))
    return float((last - first) / (done[last] - done[first]))


def build_episode(scenario: Scenario) -> tuple[Traffic, list[Fleet]]:
    """What ``simulation.start`` needs."""
    traffic = build_traffic(scenario.workload, scenario.seed)
    assign_classes(traffic.requests, scenario)
    fleets, _ = build_fleets(scenario, traffic.requests)
    return traffic, fleets
