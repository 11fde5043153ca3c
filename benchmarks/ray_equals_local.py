"""A sweep on a Ray cluster of two local nodes, one of which is lost midway: the same rows as a local run?

``equal`` is 1 where every row is the same, none lost or doubled, and the node was lost while points were
under way.

    python benchmarks/ray_equals_local.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

from trimtab.plan.executors import Processes, make_executor
from trimtab.plan.search import sweep
from trimtab.plan.space import Space, configurations
from trimtab.plan.store import Store
from trimtab.scenario import load_scenario

SPACE = Space(devices=("h100", "a100-80", "l40s"), tp=(1, 2), routers=("least-outstanding",))
LEVELS = "ttft:p99<1s,tpot:p99<50ms"


def points() -> list[dict[str, Any]]:
    """First-rung points of a small space."""
    base = load_scenario("azure-conv")
    return [
        {
            "choices": choices,
            "scenario": scenario.model_dump(mode="json", exclude_unset=True),
            "bounds": LEVELS,
            "rung": 0,
            "counts": [1],
            "requests": 2000,
        }
        for choices, scenario in configurations(base, SPACE)
    ]


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Without what is measured on the clock."""
    return {name: value for name, value in row.items() if name != "cpu_s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    payloads = points()[: 16 if parser.parse_args().quick else None]
    try:
        import ray
        from ray.cluster_utils import Cluster
    except ImportError:
        print(json.dumps({"name": "ray_equals_local", "skipped": "ray is not installed"}))
        return
    with tempfile.TemporaryDirectory() as folder:
        near, _ = sweep(payloads, Store(f"{folder}/near"), Processes(2))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = cluster.add_node(num_cpus=1)
        executor = make_executor("ray", address=cluster.address)
        lost_at: list[int] = []

        def lose_a_node(done: int, total: int, _: str) -> None:
            if done >= total // 3 and not lost_at:
                lost_at.append(done)
                cluster.remove_node(second, allow_graceful=False)

        started = time.perf_counter()
        try:
            far, _ = sweep(payloads, Store(f"{folder}/far"), executor, lose_a_node)
            stored = Store(f"{folder}/far").read()
        finally:
            ray.shutdown()
            cluster.shutdown()
        seconds = time.perf_counter() - started
    same = sum(plain(one) == plain(other) for one, other in zip(near, far, strict=True))
    print(f"{same} of {len(payloads)} rows equal; the node was lost after {lost_at[0]}; {seconds:.1f} s")
    equal = int(same == len(payloads) == len(stored) and 0 < lost_at[0] < len(payloads))
    figures = {"name": "ray_equals_local", "equal": equal, "points": len(payloads), "seconds": seconds}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
