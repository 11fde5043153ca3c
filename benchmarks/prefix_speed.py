"""What prefix caching costs: sessions on 16 replicas, equally full with and without it.

Caching spares the replicas prompts, so that they carry more; comparing at one rate would compare a busy
fleet with an idle one. Both runs are at the rate at which a replica holds 24 requests in the mean.
Figures are of the run of the cluster alone, one thread; ``whole`` ones are of all of ``simulate``,
building and reporting included.

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
HELD = 24.0  # requests waiting or running per replica, mean
LOWEST, HIGHEST, STEPS = 16.0, 128.0, 7  # rates to search, requests per second


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


def fitting_rate(caching: bool) -> float:
    """Requests per second at which a replica holds HELD requests (Little: rate times time in it)."""
    low, high = LOWEST, HIGHEST
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        summary = tt.simulate(scenario(caching, middle, 24_000)).summary()
        held = summary["request_throughput"] * summary["mean_e2el_ms"] / 1e3 / REPLICAS
        low, high = (middle, high) if held < HELD else (low, middle)
    return (low * high) ** 0.5


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
        rate = fitting_rate(caching)
        found[caching] = measure(caching, rate, requests, repeats)
        print(
            f"caching {'on ' if caching else 'off'}: {rate:5.1f} requests/s;"
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
