"""Findings of others about routing, reproduced: the figures behind docs/background/known-results.md.

    python benchmarks/known_results.py [NAME ...] [--quick]

NAME: balance, bursts, prefixes, staleness; all by default. Every figure is a mean over seeds; ratios are of
those means. Fleet: eight A100s with Llama 3 8B and vLLM's scheduler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

import trimtab as tt
from trimtab.robustness import find_saturation, steady_rate

Json = dict[str, Any]
SHOWN = ("mean_ttft_ms", "p99_ttft_ms", "mean_e2el_ms", "prefix_hit_rate", "load_outstanding_max_over_mean")
PREFIXES: dict[str, Json] = {  # 128 beginnings of 6,000 tokens: about what one replica can keep
    "even": {"groups": 128, "tokens": 6000, "zipf": 0.5},
    "hot": {"groups": 128, "tokens": 6000, "zipf": 2.0},
}


def scenario(arrivals: Json, requests: int, prefixes: Json | None = None, **rest: Any) -> Json:
    caching = prefixes is not None
    workload: Json = {"arrivals": arrivals, "num_requests": requests}
    workload |= {"prefixes": prefixes} if caching else {"max_tokens": 8192}
    scheduler = {"name": "vllm_v1", "prefix_caching": caching}
    replicas = [{"model": "llama-3-8b", "device": "a100-80", "count": 8, "scheduler": scheduler}]
    return {"workload": workload, "replicas": replicas, **rest}


def figures(what: Json, router: str, seeds: range) -> dict[str, float]:
    """Means over seeds of the figures that are quoted, printed on the way."""
    runs = [tt.simulate(what, router=router, seed=seed).summary() for seed in seeds]
    found = {key: statistics.mean(run[key] for run in runs) for key in SHOWN}
    print(
        f"  {router:22} TTFT mean {found['mean_ttft_ms']:9,.0f} ms, p99 {found['p99_ttft_ms']:9,.0f} ms;"
        f" E2E mean {found['mean_e2el_ms'] / 1e3:6.2f} s; hits {found['prefix_hit_rate']:4.0%};"
        f" load max/mean {found['load_outstanding_max_over_mean']:.2f}",
        flush=True,
    )
    return found


def poisson(qps: float) -> Json:
    return {"kind": "poisson", "qps": round(qps, 2)}


def balance(requests: int, seeds: range) -> Json:
    """Round robin against routers that look at the load, at 95 % of saturation."""
    rate = 0.95 * find_saturation("uniform", "plain")
    what = scenario(poisson(rate), requests)
    print(f"balance: {rate:.1f} requests/s, 95 % of saturation")
    turns = figures(what, "round-robin", seeds)
    found: Json = {}
    for router in ("least-outstanding", "least-pending-prefill"):
        least = figures(what, router, seeds)
        name = router.replace("-", "_")
        found[f"p99_ttft_ratio_{name}"] = turns["p99_ttft_ms"] / least["p99_ttft_ms"]
        found[f"mean_e2e_change_{name}"] = least["mean_e2el_ms"] / turns["mean_e2el_ms"] - 1
    return found


def bursts(requests: int, seeds: range) -> Json:
    """Gamma arrivals with CV 3 against Poisson at the same rate."""
    full = find_saturation("uniform", "plain")
    found: Json = {}
    for load in (80, 90, 93, 95):
        rate = load / 100 * full
        print(f"bursts: {rate:.1f} requests/s, {load} % of saturation; Poisson, then gamma with CV 3")
        smooth = figures(scenario(poisson(rate), requests), "least-outstanding", seeds)
        gamma = {"kind": "gamma", "qps": round(rate, 2), "cv": 3.0}
        bursty = figures(scenario(gamma, requests), "least-outstanding", seeds)
        found[f"mean_ttft_ratio_{load}"] = bursty["mean_ttft_ms"] / smooth["mean_ttft_ms"]
    return found


def prefixes(requests: int, seeds: range) -> Json:
    """Cache-aware against load-only, with evenly and unevenly popular prefixes, with and without a guard."""
    found: Json = {}
    for kind, law in PREFIXES.items():
        full = steady_rate(tt.simulate(scenario({"kind": "static"}, 8000, law)))
        rate = 0.85 * full
        print(f"prefixes, {kind}: {rate:.1f} requests/s, 85 % of saturation with least-outstanding")
        what = scenario(poisson(rate), requests, law)
        load_only = figures(what, "least-outstanding", seeds)
        for router in ("sglang-cache-aware", "stack-prefixaware"):
            aware = figures(what, router, seeds)
            name = f"{kind}_{router.replace('-', '_')}"
            found[f"mean_ttft_ratio_{name}"] = aware["mean_ttft_ms"] / load_only["mean_ttft_ms"]
            found[f"p99_ttft_ratio_{name}"] = aware["p99_ttft_ms"] / load_only["p99_ttft_ms"]
    return found


def staleness(requests: int, seeds: range) -> Json:
    """Least outstanding on signals of a moment ago, with and without counting what it sent since."""
    rate = 0.8 * find_saturation("uniform", "plain")
    print(f"staleness: {rate:.1f} requests/s, 80 % of saturation; round robin does not look")
    turns = figures(scenario(poisson(rate), requests), "round-robin", seeds)
    fresh = figures(scenario(poisson(rate), requests), "least-outstanding", seeds)
    found: Json = {}
    for seconds in (1, 15):
        for counts in (True, False):
            print(f" refreshed every {seconds} s, {'own dispatches counted' if counts else 'nothing else'}")
            signals = {"refresh_s": seconds, "count_own": counts}
            stale = figures(scenario(poisson(rate), requests, signals=signals), "least-outstanding", seeds)
            name = f"{seconds}s_{'counting' if counts else 'blind'}"
            found[f"p99_ttft_to_fresh_{name}"] = stale["p99_ttft_ms"] / fresh["p99_ttft_ms"]
            found[f"p99_ttft_to_round_robin_{name}"] = stale["p99_ttft_ms"] / turns["p99_ttft_ms"]
            found[f"load_max_over_mean_{name}"] = stale["load_outstanding_max_over_mean"]
    return found


RESULTS = {"balance": balance, "bursts": bursts, "prefixes": prefixes, "staleness": staleness}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RESULTS))
    parser.add_argument("--quick", action="store_true", help="one seed of 5,000 requests")
    options = parser.parse_args()
    for name in options.names:
        if name not in RESULTS:
            print(f"error: unknown result {name!r}; allowed: {', '.join(RESULTS)}", file=sys.stderr)
            return 2
    requests, seeds = (5_000, range(1)) if options.quick else (40_000, range(3))
    found: Json = {"name": "known_results"}
    for name in options.names or RESULTS:
        found |= {f"{name}_{key}": value for key, value in RESULTS[name](requests, seeds).items()}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
