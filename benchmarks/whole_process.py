"""Seconds of ``trimtab simulate``: 2,000 requests on 4 replicas, report and plots written.

Warm: the engine was compiled by an earlier process. First: an empty cache, as after the install.
Reference (Vidur, warm): 10-19 s.

    python benchmarks/whole_process.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(cache: str, out: Path) -> float:
    command = [
        str(Path(sys.executable).with_name("trimtab")),
        "simulate",
        "azure-conv",
        "--requests",
        "2000",
        "--out",
        str(out),
    ]
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "TRIMTAB_CACHE": cache}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    spent = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.decode()[-500:]}")
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    repeats = 2 if parser.parse_args().quick else 5
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache")
        first = seconds(cache, Path(folder) / "first")
        warm = [seconds(cache, Path(folder) / f"warm{index}") for index in range(repeats)]
    median = statistics.median(warm)
    print(f"first run {first:.1f} s; warm {median:.2f} s (of {repeats}: {min(warm):.2f} to {max(warm):.2f})")
    print(json.dumps({"name": "whole_process", "seconds_warm": median, "seconds_first": first}))


if __name__ == "__main__":
    main()
