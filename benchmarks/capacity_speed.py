"""Seconds for one answer of ``trimtab capacity`` within 3 %, and for the fewest replicas of a load.

Wall seconds are those of a machine that does nothing else; CPU seconds (all threads) say what it takes.

    python benchmarks/capacity_speed.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import time

from trimtab.plan.bounds import parse_bounds
from trimtab.plan.capacity import fewest_replicas, greatest_load
from trimtab.plan.trial import run_trial
from trimtab.scenario import load_scenario

CASES = (
    ("azure-conv", "ttft:p99<1s,tpot:p99<50ms"),
    ("azure-conv", "e2e:mean<8s"),
    ("mixed-fleet", "ttft:p99<1s,tpot:p99<100ms"),
    ("disaggregated", "ttft:p99<1s,tpot:p99<40ms"),
    ("llama2-70b-tp4pp2", "ttft:p90<2s,tpot:p99<100ms"),
)
LOAD = 100.0  # requests/s, for the fewest replicas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    cases = CASES[:1] if parser.parse_args().quick else CASES
    walls, cpus, halves = [], [], []
    for name, levels in cases:
        scenario = load_scenario(name)
        bounds = parse_bounds(levels, scenario)
        run_trial(scenario, bounds, 100, 0)  # compiled, and tables built
        wall, cpu = time.perf_counter(), time.process_time()
        found = greatest_load(scenario, bounds)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        halves.append((found.load.high - found.load.low) / 2 / found.load.value)
        print(
            f"{name}, {levels}: {found.load.value:.2f} requests/s +-{halves[-1]:.1%},"
            f" {found.trials} trials of {found.requests}; {walls[-1]:.1f} s, {cpus[-1]:.1f} CPU-s"
        )
    scenario = load_scenario(CASES[0][0])
    wall = time.perf_counter()
    size = fewest_replicas(scenario, parse_bounds(CASES[0][1], scenario), LOAD)
    seconds = time.perf_counter() - wall
    print(f"{LOAD:g} requests/s: {size.low} to {size.high} replicas in {seconds:.1f} s")
    figures = {
        "name": "capacity_speed",
        "seconds": max(walls),
        "cpu_s": max(cpus),
        "half_width": max(halves),
        "fewest_replicas_s": seconds,
        "cores": os.cpu_count(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
