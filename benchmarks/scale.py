"""What a simulated request costs with 1 to 1,000 replicas, and 10,000 to 10,000,000 requests.

Load per replica stays the same (80 % of what azure-conv's replicas carry). ``cost_ratio`` is CPU microseconds
per request on 1,000 replicas over those on one, behind a router that looks at two replicas;
``cost_ratio_least`` behind one that takes the least loaded of all. ``event_ns`` is what the queue of events
takes for each, with one event pending per replica.

    python benchmarks/scale.py [--quick] [--largest 10000000]
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.heap import drop_first, push
from trimtab.engine.jit import door
from trimtab.engine.state import State
from trimtab.plan.trial import fleets_of, simulate_lean
from trimtab.scenario import load_scenario
from trimtab.simulation import start
from trimtab.workload import build_traffic

QPS_PER_REPLICA = 6.0
REPLICAS = (1, 10, 100, 1000)
REQUESTS = (10_000, 100_000, 1_000_000, 10_000_000)
EACH = 1000  # requests per replica
ROUTERS = ("power-of-two", "least-outstanding")


def measure(replicas: int, requests: int, router: str, repeats: int = 1) -> tuple[float, float]:
    """(engine, whole) CPU microseconds per request, the least of ``repeats``."""
    scenario = load_scenario(
        "azure-conv",
        {
            "replicas.count": replicas,
            "workload.num_requests": requests,
            "workload.arrivals.qps": QPS_PER_REPLICA * replicas,
            "router.name": router,
        },
    )
    engine, whole = [], []
    for _ in range(repeats):
        started = time.process_time()
        result = simulate_lean(scenario)
        whole.append(1e6 * (time.process_time() - started) / requests)
        engine.append(1e6 * result.cpu_seconds / requests)
    return min(engine), min(whole)


@door
def fill(state: State, delays: NDArray[np.float64], events: int) -> None:
    for index in range(events):
        push(state, delays[index], 0, index)


@door
def turn_over(state: State, delays: NDArray[np.float64]) -> None:
    """The first event goes, and another of the same replica comes, once for each of ``delays`` (s)."""
    for index in range(len(delays)):
        time, who = state.events["time"][0], state.events["who"][0]
        drop_first(state)
        push(state, time + delays[index], 0, who)


def event_ns(replicas: int) -> float:
    """CPU nanoseconds to take an event out and put one in, the least of five."""
    scenario = load_scenario("azure-conv", {"replicas.count": replicas, "workload.num_requests": 1})
    traffic = build_traffic(scenario.workload, 0)
    state = start(scenario, traffic, fleets_of(scenario, traffic.requests)[0], max_iterations=0)
    delays = np.random.default_rng(0).gamma(9.0, 0.002, 100_000)
    fill(state, delays, replicas)
    turn_over(state, delays)
    spent = []
    for _ in range(5):
        started = time.process_time()
        turn_over(state, delays)
        spent.append(1e9 * (time.process_time() - started) / len(delays))
    return min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--largest", type=int, default=1_000_000)
    given = parser.parse_args()
    figures: dict[str, float | str] = {"name": "scale"}
    for replicas in REPLICAS:
        figures[f"event_ns_{replicas}"] = event_ns(replicas)
        print(f"queue of {replicas:5} events: {figures[f'event_ns_{replicas}']:5.1f} ns for each")
    for router in ROUTERS:
        measure(1, 1000, router)
        costs = {}
        for replicas in REPLICAS[:3] if given.quick else REPLICAS:
            requests = (200 if given.quick else EACH) * replicas  # the same life of a replica in any fleet
            costs[replicas], whole = measure(replicas, requests, router, repeats=max(3, 100 // replicas))
            print(
                f"{router:18} {replicas:5} replicas: {costs[replicas]:5.2f} us engine, {whole:5.2f} us whole"
            )
            figures[f"engine_us_{router}_{replicas}"] = costs[replicas]
        name = "cost_ratio" if router == ROUTERS[0] else "cost_ratio_least"
        figures[name] = max(costs.values()) / costs[1]
    for requests in (each for each in REQUESTS if each <= (100_000 if given.quick else given.largest)):
        started = time.perf_counter()
        engine, whole = measure(10, requests, ROUTERS[0])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{requests:10,} requests on 10 replicas: {engine:.2f} us engine, {whole:.2f} us whole,"
            f" {time.perf_counter() - started:.1f} s, {peak:.2f} GB at most so far"
        )
        figures[f"whole_us_{requests}"] = whole
        figures["peak_gb"] = peak
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
