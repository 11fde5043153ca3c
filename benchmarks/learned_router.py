"""The learned router against every heuristic worth the name, on the robustness suite or on your scenarios.

Same arrivals for all, three seeds that training never saw. Ratios are of p99 TTFT; the geometric mean over
cells is against the best *single* heuristic (one router for all cells), the worst cell against the best
heuristic *of that cell*. Intervals are over seeds (Student's t). Goodput is the share of requests within
the SLO: arrivals are the same for all, and a rate would also count how long the last answers take.

    python benchmarks/learned_router.py [--quick] [--policy FILE | --untrained] [--scenarios FILE ...]
                                        [--zero-shot]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import trimtab as tt
from trimtab.robustness import find_saturation, scenario_of, suite
from trimtab.scenario import Scenario, load_scenario

HEURISTICS = (
    "least-pending-prefill", "preble", "lmetric", "vllm-dp", "least-work", "llm-d", "gie", "sticky-session",
    "sglang-cache-aware", "least-outstanding", "stack-loadaware", "aibrix-prefix", "dynamo-kv", "least-kv",
)  # fmt: skip
LEARNED = "learned"
KEYS = ("p99_ttft_ms", "slo_attainment", "mean_e2el_ms")
P99, GOODPUT, E2E = range(3)
QUICK = 4  # every so many cells


def zero_shot(requests: int) -> list[Scenario]:
    """2, 16 and 64 replicas, lengths that training never drew; 75 % of the rate at which a burst leaves."""
    found = []
    engine = {"model": "llama-3-8b", "scheduler": {"name": "vllm_v1", "prefix_caching": True}}
    for count in (2, 16, 64):
        for lengths, cap in (("azure-conv-2023", 8192), ("arxiv-summarization", 8192)):
            data: dict[str, Any] = {
                "name": f"{count} replicas, {lengths}",
                "replicas": [
                    {"device": "a100-80", "count": count // 2, **engine},
                    {"device": "l40s", "count": count - count // 2, **engine},
                ],
                "slo": {"ttft_ms": 1000, "tpot_ms": 100},
                "workload": {"lengths": {"kind": "fitted", "name": lengths}, "max_tokens": cap},
            }
            burst = {"num_requests": 1500 * max(1, count // 8), "arrivals": {"kind": "static"}}
            full = tt.simulate({**data, "workload": {**data["workload"], **burst}}).summary()
            rate = 0.75 * full["request_throughput"]
            data["workload"] |= {"num_requests": requests, "arrivals": {"kind": "poisson", "qps": rate}}
            found.append(load_scenario(data))
    return found


def untrained(folder: str) -> str:
    """A policy file of the formula that training starts from."""
    from trimtab.learn.policy import Scorer, save_policy
    from trimtab.learn.presets import TrainConfig
    from trimtab.routers.policy_file import Policy

    config = TrainConfig()
    scorer = Scorer(config.hidden)
    scorer.lean_on_heuristic(config.residual)
    path = Path(folder) / "untrained.safetensors"
    save_policy(Policy(scorer.flat(), config.hidden, {"stage": "none"}), path)
    return str(path)


def measure(
    scenarios: Sequence[Scenario], routers: Sequence[str], seeds: Sequence[int], policy: str | None
) -> np.ndarray[Any, Any]:
    """(scenarios, routers, seeds, KEYS)."""

    def one(job: tuple[Scenario, str, int]) -> list[float]:
        scenario, router, seed = job
        overrides = {"router.policy": policy} if policy and router == LEARNED else None
        summary = tt.simulate(
            scenario, overrides=overrides, router=router, seed=seed, max_iterations=1
        ).summary()
        return [summary[key] for key in KEYS]

    jobs = [(scenario, router, seed) for scenario in scenarios for router in routers for seed in seeds]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, jobs))
    return np.array(found).reshape(len(scenarios), len(routers), len(seeds), len(KEYS))


def interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """95 % of the mean of logarithms, as ratios."""
    spread = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return math.exp(values.mean() - spread), math.exp(values.mean() + spread)


def judge(names: Sequence[str], routers: Sequence[str], found: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The figures, and a line per cell."""
    tails, good, stay = (np.log(found[..., key]) for key in (P99, GOODPUT, E2E))
    rivals = [index for index, name in enumerate(routers) if name != LEARNED]
    mine = list(routers).index(LEARNED)
    single = min(rivals, key=lambda index: tails[:, index].mean())
    best_good = max(rivals, key=lambda index: good[:, index].mean())
    worst, cells = 0.0, []
    for index, name in enumerate(names):
        means = tails[index].mean(axis=-1)
        best = min(rivals, key=lambda router: means[router])
        ratio = math.exp(means[mine] - means[best])
        apart = interval(tails[index, mine] - tails[index, best]) if found.shape[2] > 1 else (ratio, ratio)
        longer = math.exp((stay[index, mine] - stay[index, best]).mean())
        worst = max(worst, ratio)
        gain = math.exp((good[index, mine] - good[index, best]).mean())
        cells.append(
            {"name": name, "p99_ttft_ms": round(math.exp(means[mine]), 1), "best": routers[best],
             "ratio": round(ratio, 3), "low": round(apart[0], 3), "high": round(apart[1], 3),
             "goodput": round(gain, 3), "mean_e2e": round(longer, 3)}
        )  # fmt: skip
        print(
            f"{name:40} p99 TTFT {math.exp(means[mine]):8,.0f} ms, {ratio:5.2f} ({apart[0]:.2f} to"
            f" {apart[1]:.2f}) of {routers[best]}; goodput x {gain:.3f}, E2E x {longer:.3f}"
        )
    over_cells = (tails[:, mine] - tails[:, single]).mean(axis=0)
    low, high = interval(over_cells) if len(over_cells) > 1 else (math.nan, math.nan)
    return {
        "best_single": routers[single],
        "geomean_p99_ttft_vs_best_single": math.exp(over_cells.mean()),
        "geomean_low": low,
        "geomean_high": high,
        "worst_cell_vs_best": worst,
        "goodput_vs_best_single": float(
            found[:, mine, :, GOODPUT].sum() / found[:, best_good, :, GOODPUT].sum()
        ),
        "best_goodput": routers[best_good],
        "cells": cells,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every fourth cell, 3,000 requests, one seed")
    parser.add_argument("--policy", help="a policy file, instead of the one that ships")
    parser.add_argument("--untrained", action="store_true", help="the formula that training starts from")
    parser.add_argument("--scenarios", nargs="+", help="names or files, instead of the suite")
    parser.add_argument("--zero-shot", action="store_true", help="fleets and lengths beyond training")
    options = parser.parse_args()
    requests, seeds = (3_000, (0,)) if options.quick else (20_000, (0, 1, 2))
    if options.scenarios:
        scenarios = [load_scenario(name) for name in options.scenarios]
    elif options.zero_shot:
        scenarios = zero_shot(requests)
    else:
        cells = [cell for index, cell in enumerate(suite()) if not options.quick or index % QUICK == 1]
        scenarios = [scenario_of(cell, find_saturation(cell.fleet, cell.prompts), requests) for cell in cells]
    routers = [LEARNED, *HEURISTICS]
    with tempfile.TemporaryDirectory() as folder:
        policy = untrained(folder) if options.untrained else options.policy
        found = measure(scenarios, routers, seeds, policy)
    figures = judge([scenario.name for scenario in scenarios], routers, found)
    ratio = figures["geomean_p99_ttft_vs_best_single"]
    print(
        f"against {figures['best_single']}, the best for all: {ratio:.3f}"
        f" ({figures['geomean_low']:.3f} to {figures['geomean_high']:.3f}); worst cell"
        f" {figures['worst_cell_vs_best']:.2f} of its best; goodput x {figures['goodput_vs_best_single']:.3f}"
        f" of {figures['best_goodput']}"
    )
    print(json.dumps({"name": "learned_router", "requests": requests, "seeds": len(seeds), **figures}))


if __name__ == "__main__":
    main()
