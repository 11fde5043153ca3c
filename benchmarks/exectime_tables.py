"""Seconds to make the execution-time tables of one scenario: cold, and from the cache on disk.

    python benchmarks/exectime_tables.py [--quick]

Each figure is the slowest of several scenarios, the median of repeats. Calibrations are read from disk each
time; modules stay imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trimtab.exectime import build_tables
from trimtab.exectime.kernels import forget_kernels, kernels_for
from trimtab.hardware import default_node, get_device, get_model
from trimtab.scenario import ReplicaGroup

CASES = (
    ("llama-3-8b", "a100-80", 1),
    ("llama-3-70b", "h100", 4),
    ("qwen3-30b-a3b", "h200", 2),
    ("deepseek-v3", "h200", 8),
    ("llama-2-70b", "a40", 8),
)
BATCH, CHUNK, CONTEXT = 256, 16_384, 131_072


def build(model: str, device: str, tp: int) -> None:
    found = get_device(device)
    group = ReplicaGroup(model=model, device=device, tp=tp)
    build_tables(group, get_model(model), found, default_node(found), BATCH, CHUNK, CONTEXT)


def seconds(work: Callable[[], None]) -> float:
    forget_kernels()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    repeats = 1 if parser.parse_args().quick else 5
    found = default_node(get_device("a100"))
    kernels_for(get_device("a100"), found)  # imports
    cold, cached = [], []
    for case in CASES:
        runs: list[tuple[float, float]] = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["TRIMTAB_CACHE"] = str(Path(folder))
                runs.append(
                    (seconds(lambda case=case: build(*case)), seconds(lambda case=case: build(*case)))
                )
        cold.append(statistics.median(first for first, _ in runs))
        cached.append(statistics.median(second for _, second in runs))
        print(f"{case[0]:16} {case[1]:8} tp={case[2]}: cold {cold[-1]:.3f} s, cached {cached[-1]:.4f} s")
    print(json.dumps({"name": "exectime_tables", "cold_s": max(cold), "cached_s": max(cached)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
