"""Seconds to search the whole legal space of placements, 8 to 128 GPUs; nothing is sampled or left out.

python benchmarks/rlhf_search.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import time

from trimtab.hardware import get_device, get_model
from trimtab.rlhf.job import Cluster, Job, Lengths
from trimtab.rlhf.search import search

CASES = (  # model, algorithm, nodes of 8 GPUs
    ("llama-3-8b", "ppo", 1),
    ("llama-3-8b", "ppo", 4),
    ("llama-3-8b", "grpo", 8),
    ("llama-3-8b", "ppo", 16),
    ("llama-3-70b", "ppo", 16),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 32 GPUs")
    cases = CASES[:2] if parser.parse_args().quick else CASES
    print("| model | algorithm | GPUs | combinations | legal | fit | s | CPU s |\n|" + "---|" * 8)
    seconds, busy = {}, 0.0
    for model, algorithm, nodes in cases:
        cluster = Cluster(get_device("a100-80"), nodes)
        job = Job(get_model(model), cluster, Lengths(300, 1024), Lengths(700, 2048), algorithm,
                  samples=8 if algorithm == "grpo" else 1)  # fmt: skip
        begin, cpu = time.perf_counter(), time.process_time()
        found = search(job)
        took, used = time.perf_counter() - begin, time.process_time() - cpu
        seconds[f"{model} {algorithm} {8 * nodes}"] = round(took, 2)
        busy = max(busy, used)
        counts = f"{found.considered:,} | {found.legal:,} | {found.fitting:,}"
        print(f"| {model} | {algorithm} | {8 * nodes} | {counts} | {took:.2f} | {used:.2f} |", flush=True)
    print(
        json.dumps(
            {
                "name": "rlhf_search",
                "seconds": max(seconds.values()),
                "cpu_seconds": round(busy, 2),
                "by_case": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
