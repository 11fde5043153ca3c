"""The robustness matrix: every cell, every router, three seeds; how long it takes and what it says.

    python benchmarks/robustness.py [--quick] [--out FOLDER]

``cells`` is a list of {name, routers: {router: {p99_ttft_s, goodput, low, high}}}; ``low`` and ``high`` bound
p99_ttft_s (95 %). With ``--out`` finished cells are kept and taken up again; the time is then of the rest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import trimtab as tt
from trimtab.report.robustness_html import save_suite, standings
from trimtab.robustness import REQUESTS, run_suite, suite

QUICK_CELLS = ("uniform/poisson/80/plain/fresh", "mixed/gamma/80/sessions/1s", "mixed/gamma/80/shared/15s")
KEPT = ("p99_ttft_s", "goodput", "low", "high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three cells of 2,000 requests")
    parser.add_argument("--out", type=Path, help="keep the report here")
    options = parser.parse_args()
    cells = [cell for cell in suite() if not options.quick or cell.name in QUICK_CELLS]
    requests = 2_000 if options.quick else REQUESTS
    tt.simulate("azure-conv", overrides={"workload.num_requests": 100})  # compile
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        started, cpu = time.perf_counter(), time.process_time()
        found = run_suite(folder, requests=requests, cells=cells)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        save_suite(found, folder)
    for row in standings(found):
        print(
            f"{row.router:22} mean ratio {row.mean_ratio:6.3f}, worst {row.worst_ratio:8.3f} in"
            f" {row.worst_cell}, unbeaten {row.unbeaten}, in the SLO {row.attainment:.1%}"
        )
    runs = len(found["cells"]) * len(found["routers"]) * len(found["seeds"])
    figures = {
        "name": "robustness",
        "seconds": seconds,
        "cpu_seconds": cpu,
        "num_cells": len(found["cells"]),
        "num_routers": len(found["routers"]),
        "num_seeds": len(found["seeds"]),
        "requests_per_run": requests,
        "requests_per_cpu_s": runs * requests / cpu,
        "cells": [
            {
                "name": cell["name"],
                "routers": {
                    router: {key: row[key] for key in KEPT} for router, row in cell["routers"].items()
                },
            }
            for cell in found["cells"]
        ],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
