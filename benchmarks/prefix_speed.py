"""What prefix caching costs: sessions on 16 replicas, at the same share of what each way sustains.

Caching spares the replicas prompts, so that they sustain more; comparing at one rate would compare a
busy fleet with an idle one. Both runs are at 80 % of their own saturation (first tokens of nine in ten
requests within a second). Figures are of the run of the cluster alone, one thread; ``whole`` ones are of
all of ``simulate``, building and reporting included.

    python benchmarks/prefix_speed.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import trimtab as tt

REPLICAS = 16
LOAD = 0.8
LATE_MS, STEP = 1000.0, 1.08
START_QPS = 24.0


def scenario(caching: bool, qps: float, requests: int) -> dict[str, Any]:
    scheduler = {"name": "vllm_v1", "prefix_caching": caching}
    return {
        "workload": {
            "arrivals": {"kind": "poisson", "qps": qps},
            "sessions": {"turns": 5, "think_s": 5, "max_context": 8192},
            "num_requests": requests,
        },
        "replicas": [{"device": "a100-80", "count": REPLICAS, "scheduler": scheduler}],
        "router": "sticky-session",
    }


def sustained(caching: bool) -> float:
    """The highest rate, in steps of 8 %, at which nine in ten first tokens come within a second."""
    qps = START_QPS
    while True:
        summary = tt.simulate(scenario(caching, qps * STEP, 16_000)).summary()
        if summary["p90_ttft_ms"] > LATE_MS:
            return qps
        qps *= STEP


def measure(caching: bool, qps: float, requests: int, repeats: int) -> dict[str, float]:
    """Medians over seeds."""
    rows = []
    for seed in range(repeats):
        started = time.process_time()
        result = tt.simulate(scenario(caching, qps, requests), seed=seed)
        summary = result.summary()
        whole = time.process_time() - started
        iterations = result.provenance["iterations"]
        rows.append(
            (
                requests / result.cpu_seconds,
                iterations / result.cpu_seconds,
                iterations / requests,
                requests / whole,
                summary["prefix_hit_rate"],
            )
        )
    names = ("requests_per_cpu_s", "iterations_per_cpu_s", "iterations_per_request", "whole", "hit_rate")
    return dict(zip(names, map(statistics.median, zip(*rows, strict=True)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    repeats, requests = (1, 8_000) if quick else (5, 50_000)
    found: dict[bool, dict[str, float]] = {}
    for caching in (False, True):
        full = sustained(caching)
        found[caching] = measure(caching, LOAD * full, requests, repeats)
        print(
            f"caching {'on ' if caching else 'off'}: sustains {full:5.1f} requests/s;"
            f" {found[caching]['requests_per_cpu_s']:10,.0f} requests, "
            f" {found[caching]['iterations_per_cpu_s']:12,.0f} iterations per CPU-second,"
            f" {found[caching]['iterations_per_request']:.1f} iterations per request,"
            f" {found[caching]['hit_rate']:.1%} of prompt tokens found"
        )
    on, off = found[True], found[False]
    figures = {
        "name": "prefix_speed",
        "requests_per_cpu_s_on": on["requests_per_cpu_s"],
        "requests_per_cpu_s_off": off["requests_per_cpu_s"],
        "iterations_per_cpu_s_on": on["iterations_per_cpu_s"],
        "iterations_per_cpu_s_off": off["iterations_per_cpu_s"],
        "cost_ratio": off["requests_per_cpu_s"] / on["requests_per_cpu_s"],
        "whole_requests_per_cpu_s_on": on["whole"],
        "whole_requests_per_cpu_s_off": off["whole"],
        "hit_rate": on["hit_rate"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
