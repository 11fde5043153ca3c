"""Seconds for a search over every configuration of the default space, request by request, nothing stored.

Every configuration is simulated with 2,000 requests or more per trial, several trials to find its fewest
replicas. Vidur's search of its space takes about an hour on its authors' machine (MLSys 2024); BLIS 1,000
configurations in 13 minutes. Wall seconds are those of a machine that does nothing else; CPU seconds are of
all processes.

    python benchmarks/search_speed.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time

from trimtab.plan.executors import Processes
from trimtab.plan.search import search
from trimtab.plan.space import Space, read_prices
from trimtab.plan.store import Store
from trimtab.plan.trial import run_trial
from trimtab.report.search_html import headline
from trimtab.scenario import load_scenario

LEVELS = "ttft:p99<1s,tpot:p99<50ms"
LOAD = 60.0  # requests/s


def cpu_seconds() -> float:
    """Of this process and the workers that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    scenario = load_scenario("azure-conv", {"workload.arrivals.qps": LOAD})
    for router in ("least-outstanding", "learned"):
        run_trial(load_scenario(scenario, {"router.name": router}), (), 100, 0)  # compiled
    space = Space(devices=("h100", "a100-80"), tp=(1, 2)) if quick else Space()
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), cpu_seconds()
        executor = Processes(os.cpu_count() or 1)
        found = search(scenario, LEVELS, space, read_prices(None), Store(f"{folder}/store"), executor)
        seconds, spent = time.perf_counter() - wall, cpu_seconds() - cpu
    print("\n".join(headline(found)))
    print(f"{len(found.rows)} configurations in {seconds:.1f} s, {spent:.1f} CPU-s")
    fewest = min(row["requests"] for row in found.rows if row["status"] == "ok")
    figures = {
        "name": "search_speed",
        "configurations": len(found.rows),
        "seconds": seconds,
        "cpu_s": spent,
        "fewest_requests": fewest,
        "simulated_requests": found.simulated,
        "cores": os.cpu_count(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
