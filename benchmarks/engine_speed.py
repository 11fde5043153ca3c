"""Iterations and requests simulated per CPU-second, every metric recorded, one thread.

``iterations_per_cpu_s`` counts the run of the cluster alone on 4 replicas; the ``requests`` figures
count all of ``simulate``: building the requests and tables, running, and summarising.
Reference (Vidur on a 2-core machine): 1,000-2,700 iterations/s, 130-580 requests/s.

    python benchmarks/engine_speed.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import trimtab as tt

LOAD_QPS = 24.0  # 80 % of what four replicas of azure-conv carry (see `saturation`)


def saturation() -> float:
    """Requests per second that the four replicas serve when all arrive at once."""
    burst = {"workload.arrivals": {"kind": "static"}, "workload.num_requests": 8000}
    return float(tt.simulate("azure-conv", overrides=burst).summary()["request_throughput"])


def measure(replicas: int, requests: int, repeats: int) -> tuple[float, float]:
    """(iterations per CPU-second of the engine, requests per CPU-second of the whole), medians."""
    overrides = {
        "replicas.count": replicas,
        "workload.num_requests": requests,
        "workload.arrivals": {"kind": "poisson", "qps": LOAD_QPS * replicas / 4},
    }
    iterations, served = [], []
    for seed in range(repeats):
        started = time.process_time()
        result = tt.simulate("azure-conv", overrides=overrides, seed=seed)
        result.summary()
        served.append(requests / (time.process_time() - started))
        iterations.append(result.provenance["iterations"] / result.cpu_seconds)
    return statistics.median(iterations), statistics.median(served)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    repeats, requests = (2, 5_000) if quick else (7, 50_000)
    measure(4, 1_000, 1)  # compile and warm
    full = saturation()
    print(f"saturation of 4 replicas: {full:.1f} requests/s; load {LOAD_QPS / full:.0%}")
    figures = {"name": "engine_speed", "load": LOAD_QPS / full}
    for replicas in (4, 64):
        iterations, served = measure(replicas, requests, repeats)
        print(
            f"{replicas:3} replicas: {iterations:12,.0f} iterations, {served:10,.0f} requests per CPU-second"
        )
        figures[f"requests_per_cpu_s_{replicas}"] = served
        if replicas == 4:
            figures["iterations_per_cpu_s"] = iterations
        else:
            figures["iterations_per_cpu_s_64"] = iterations
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
