"""Packing 16,384 sequences: is the cap kept, what is wasted, how long does it take?

Lengths are lognormal, at most 4096 tokens; caps of 4096, 8192 and 16384 tokens, one and eight ranks, both
methods, balanced by tokens and by FLOPs. OpenRLHF's own differencing, from its wheel where that can be had,
is timed on fewer sequences, because it is slow.

    python benchmarks/packing.py [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.balance.packing import METHODS, flops_cost, karmarkar_karp, pack

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from _openrlhf import fetch
from oracle import packing as oracle

WHEEL, MODULE = "0.10.2", "openrlhf/utils/seqlen_balancing.py"
MICRO = 4  # sequences of the fixed micro-batches that are compared with


def drawn(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.clip(generator.lognormal(6.2, 1.0, count), 16, 4096).astype(np.int64)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Result, and CPU seconds: the fastest of three."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        result = call()
        times.append(time.process_time() - begin)
    return result, min(times)


def published() -> dict[str, Any] | None:
    """OpenRLHF's partitioning from its wheel, by name; None offline."""
    wheel = fetch(WHEEL)
    if wheel is None:
        return None
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(MODULE))
        names: dict[str, Any] = {}
        exec(compile(archive.read(name), MODULE, "exec"), names)
    return names


def most_over_cap(names: dict[str, Any], lengths: np.ndarray, cap: int, ranks: int) -> float:
    """The largest micro-batch over the cap when their number is rounded down, as for OpenRLHF's rollouts."""
    fitted = names["get_minimum_num_micro_batch_size"](lengths.tolist(), cap, 1, 1)
    parts = max(fitted // ranks, 1) * ranks
    found = names["get_seqlen_balanced_partitions"](lengths.tolist(), parts, False)
    return max(int(lengths[part].sum()) for part in found) / cap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sequences for the slow ones")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lengths = drawn(16_384, options.seed)
    fixed = oracle.fixed_waste(lengths.tolist(), MICRO)
    violations, slowest, waste = 0, 0.0, 0.0
    print(f"fixed micro-batches of {MICRO}: {fixed:.1%} padding\n")
    print("| cap | ranks | method | balanced | micro-batches | most tokens | waste | s |")
    print("|---|---|---|---|---|---|---|---|")
    for cap in (4096, 8192, 16_384):
        for ranks in (1, 8):
            for method in METHODS:
                for label, costs in (("tokens", None), ("FLOPs", flops_cost(lengths))):
                    packing, seconds = timed(lambda: pack(lengths, cap, ranks, method=method, costs=costs))  # noqa: B023
                    tokens = packing.tokens()
                    violations += int((tokens > cap).sum())
                    slowest, waste = max(slowest, seconds), max(waste, packing.waste())
                    print(f"| {cap} | {ranks} | {method} | {label} | {tokens.size} | {tokens.max()} "
                          f"| {packing.waste():.2%} | {seconds:.3f} |", flush=True)  # fmt: skip
    count = 512 if options.quick else 4096
    few, parts = lengths[:count], count // 16
    mine, seconds = timed(lambda: karmarkar_karp(few, parts))
    figures: dict[str, Any] = {
        "name": "packing",
        "cap_violations": violations,
        "waste_ratio": round(waste / fixed, 4),
        "seconds_16k": round(slowest, 4),
        "fixed_waste": round(fixed, 4),
        "packed_waste": round(waste, 4),
        "differencing_sequences": count,
        "differencing_s": round(seconds, 4),
        "differencing_spread": int(np.ptp([few[part].sum() for part in mine])),
    }
    theirs = published()
    if theirs is not None:
        begin = time.process_time()
        found = theirs["get_seqlen_balanced_partitions"](few.tolist(), parts, False)
        figures["openrlhf_s"] = round(time.process_time() - begin, 2)
        figures["openrlhf_spread"] = int(np.ptp([few[part].sum() for part in found]))
        figures["openrlhf_most_over_cap"] = round(most_over_cap(theirs, lengths[:1024], 16_384, 8), 4)
        figures["times_faster"] = round(figures["openrlhf_s"] / seconds, 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
