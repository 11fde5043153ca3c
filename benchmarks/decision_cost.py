"""What one decision of the learned router costs in process, beyond least-outstanding's: microseconds.

Reference: 32 ms (RouteBalance), 3 ms (the latency predictor of llm-d).

    python benchmarks/decision_cost.py [--quick]
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from trimtab.cluster import run
from trimtab.fleet import build_fleets
from trimtab.routers import Router
from trimtab.routers.policy_file import load_policy
from trimtab.scenario import load_scenario
from trimtab.simulation import start
from trimtab.workload import build_traffic


def microseconds(replicas: int, requests: int, repeats: int) -> float:
    """Per decision: the least time of a run behind the learned router, less that behind least-outstanding."""
    scenario = load_scenario(
        "azure-conv",
        {
            "replicas.count": replicas,
            "workload.num_requests": requests,
            "workload.arrivals": {"kind": "poisson", "qps": 5.0 * replicas},
        },
    )
    traffic = build_traffic(scenario.workload, 0)
    fleets, _ = build_fleets(scenario, traffic.requests)
    least = {}
    for router in (Router.LEAST_OUTSTANDING, Router.LEARNED):
        times = [run(start(scenario, traffic, fleets, router, max_iterations=1)) for _ in range(repeats)]
        least[router] = min(times)
    return (least[Router.LEARNED] - least[Router.LEAST_OUTSTANDING]) / requests * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    requests, repeats = (4_000, 2) if quick else (20_000, 5)
    hidden = load_policy().hidden
    figures: dict[str, float | str] = {"name": "decision_cost", "hidden": hidden}
    for replicas in (4, 16, 64, 256):
        cost = microseconds(replicas, requests, repeats)
        figures[f"microseconds_{replicas}"] = float(np.round(cost, 2))
        print(f"{replicas:4} replicas: {cost:6.1f} us")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
