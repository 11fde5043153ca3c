"""What prefill and decode apart change: the figures of docs/background/disaggregation.md.

Eight H100 with Llama 3 8B on one load, colocated or split in all ways that carry it, then over slower links.
Run: python benchmarks/disaggregation.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

import trimtab as tt

REPLICAS = 8
SLO = {"ttft_ms": 500, "tpot_ms": 25}
SEEDS = (0, 1, 2)
COLUMNS = ("p50_ttft_ms", "p99_ttft_ms", "p50_tpot_ms", "p99_tpot_ms", "p99_itl_ms", "slo_attainment")
LINKS = (100.0, 25.0, 5.0, 1.0, 0.5)  # GB/s


def scenario(num_requests: int, qps: float, prefill: int, bandwidth: float = 25.0) -> dict[str, Any]:
    """``prefill`` of the replicas prefill, the others decode; 0: all do both, without disaggregation."""
    group = {"model": "llama-3-8b", "device": "h100"}
    groups: list[dict[str, Any]] = [{**group, "count": REPLICAS}]
    if prefill:
        roles = (("prefill", prefill), ("decode", REPLICAS - prefill))
        groups = [{**group, "role": role, "count": count} for role, count in roles]
    return {
        "workload": {
            "num_requests": num_requests,
            "arrivals": {"kind": "poisson", "qps": qps},
            "lengths": {"kind": "fitted", "name": "azure-conv-2023"},
            "max_tokens": 8192,
        },
        "replicas": groups,
        "slo": SLO,
        "disaggregation": {"bandwidth_gb_s": bandwidth} if prefill else None,
    }


def measure(data: dict[str, Any], seeds: tuple[int, ...], columns: tuple[str, ...]) -> dict[str, float]:
    """Mean over the seeds of each figure."""
    runs = [tt.simulate(data, seed=seed).summary() for seed in seeds]
    return {name: float(np.mean([run[name] for run in runs])) for name in columns}


def show(name: str, figures: dict[str, float]) -> None:
    shares = ("slo_attainment", "kv_link_utilization")
    cells = [f"{value:9.1%}" if key in shares else f"{value:9.1f}" for key, value in figures.items()]
    print(f"{name:>24} " + " ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the requests")
    quick = parser.parse_args().quick
    num_requests, seeds = (2_000, SEEDS[:1]) if quick else (20_000, SEEDS)
    started = time.process_time()
    figures: dict[str, Any] = {"name": "disaggregation"}
    for qps in (60.0, 100.0, 140.0):
        print(f"{qps:g} requests/s: " + ", ".join(COLUMNS))
        for prefill in (0, 2, 3, 4):
            name = f"{prefill} prefill + {REPLICAS - prefill} decode" if prefill else "colocated"
            found = measure(scenario(num_requests, qps, prefill), seeds, COLUMNS)
            show(name, found)
            figures[f"{qps:g} {name}"] = {key: round(value, 3) for key, value in found.items()}
    columns = ("p50_kv_transfer_ms", "p99_kv_transfer_ms", "kv_link_utilization", *COLUMNS[2:])
    print("links of 3 prefill + 5 decode at 100 requests/s: " + ", ".join(columns))
    for bandwidth in LINKS:
        found = measure(scenario(num_requests, 100.0, 3, bandwidth), seeds, columns)
        show(f"{bandwidth:g} GB/s", found)
        figures[f"{bandwidth:g} GB/s"] = {key: round(value, 3) for key, value in found.items()}
    figures["cpu_s"] = round(time.process_time() - started, 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
