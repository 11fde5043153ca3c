"""How often the 95 % interval of a capacity answer holds the limit that queueing theory knows.

A replica that serves one request at a time, all alike, is an M/D/1 queue: the load at which one request in a
hundred (or in ten) waits longer than x services follows from Erlang's formula of 1909. Each answer is found
from other random requests by ``greatest_load``, as a user would get it, stopping rule and all.

    python benchmarks/interval_coverage.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

from trimtab.plan.bounds import Bound
from trimtab.plan.capacity import Capacity, greatest_load
from trimtab.plan.trial import run_trial
from trimtab.report.bootstrap import NORMAL
from trimtab.scenario import Scenario, load_scenario

CASES = ((0.99, 6.0), (0.9, 3.0))  # (quantile of the wait, services that it may last)
SEEDS_APART = 1000  # no two answers share a replication
FIRST_SEED = 700_000_000  # of requests that no choice of the method has seen


def one_at_a_time(seed: int) -> Scenario:
    """One replica, one sequence, prompts of 512 tokens and a single output token."""
    return load_scenario(
        {
            "name": "M/D/1",
            "seed": seed,
            "workload": {
                "arrivals": {"kind": "poisson", "qps": 10.0},
                "lengths": {"kind": "fixed", "prefill": 512, "decode": 1},
                "max_tokens": 513,
            },
            "replicas": {"device": "a100-80", "scheduler": {"max_num_seqs": 1}},
        }
    )


def waits_longer(load: float, services: float) -> float:
    """P(W > x) of an M/D/1 queue, service time 1 (Erlang 1909)."""
    terms = [
        (load * (k - services)) ** k / math.factorial(k) * math.exp(-load * (k - services))
        for k in range(int(services) + 1)
    ]
    return 1.0 - (1.0 - load) * math.fsum(terms)


def exact_limit(share: float, services: float) -> float:
    """The load (services per service time) at which the ``share`` quantile of the wait is ``services``."""
    low, high = 1e-3, 1.0 - 1e-6
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if waits_longer(middle, services) <= 1 - share else (low, middle)
    return low


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share seen as ``hits`` of ``count`` (Wilson 1927)."""
    z2, share = NORMAL**2, hits / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * share * (1 - share) / count + z2**2 / (4 * count**2)) / (1 + z2 / count)
    return middle - half, middle + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    answers = 20 if quick else 150
    service = run_trial(one_at_a_time(0), (), 100, 0, load=1e-3).figures["e2e_p50"]
    figures: dict[str, float | str] = {"name": "interval_coverage", "answers": answers * len(CASES)}
    covered = 0
    started = time.process_time()
    for share, services in CASES:
        limit = exact_limit(share, services) / service
        bound = Bound("queue", share, services * service)

        def answer(index: int, bound: Bound = bound) -> Capacity:
            return greatest_load(one_at_a_time(FIRST_SEED + SEEDS_APART * index), (bound,), workers=1)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(answer, range(answers)))
        inside = sum(each.load.low <= limit <= each.load.high for each in found)
        half = sum((each.load.high - each.load.low) / 2 / each.load.value for each in found) / answers
        bias = sum(each.load.value for each in found) / answers / limit - 1
        covered += inside
        print(
            f"{bound}: exact {limit:.4f} requests/s, utilisation {limit * service:.3f};"
            f" {inside} of {answers} intervals hold it (mean half width {half:.2%}, bias {bias:+.2%})"
        )
        figures |= {f"coverage_p{100 * share:g}": inside / answers, f"half_width_p{100 * share:g}": half}
    coverage = covered / (answers * len(CASES))
    low, high = wilson(covered, answers * len(CASES))
    print(f"{covered} of {answers * len(CASES)}: {coverage:.1%} ({low:.1%} to {high:.1%})")
    figures |= {
        "coverage": coverage,
        "coverage_low": low,
        "coverage_high": high,
        "from_95_percent": abs(coverage - 0.95),
        "cpu_s": time.process_time() - started,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
