"""One million requests on 64 replicas, whole process: seconds and peak memory.

python benchmarks/million.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

RUN = """
import sys
import trimtab as tt
result = tt.simulate("azure-conv", overrides={
    "replicas.count": 64,
    "workload.num_requests": int(sys.argv[1]),
    "workload.arrivals": {"kind": "poisson", "qps": 384.0},
})
summary = result.summary()
keys = ("completed", "p99_ttft_ms", "output_throughput", "iterations")
print({key: round(summary[key], 3) for key in keys})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    requests = 100_000 if parser.parse_args().quick else 1_000_000
    subprocess.run([sys.executable, "-c", RUN, "1000"], check=True, stdout=subprocess.DEVNULL)  # compile
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", RUN, str(requests)], check=True)
    spent = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    print(f"{requests:,} requests on 64 replicas: {spent:.1f} s, peak {peak_gb:.2f} GB")
    print(json.dumps({"name": "million", "requests": requests, "seconds": spent, "peak_gb": peak_gb}))


if __name__ == "__main__":
    main()
