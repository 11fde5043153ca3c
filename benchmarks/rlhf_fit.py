"""Fits or does not fit: the memory forecast against every published case (published_rlhf.yaml).

python benchmarks/rlhf_fit.py [--quick]
"""

from __future__ import annotations

import argparse
import json

from _rlhf_published import PUBLISHED, Case, fit_case

from trimtab.errors import TrimtabError
from trimtab.rlhf.job import GIB
from trimtab.rlhf.memory import CONTEXT, HOST_LIMIT, LOGITS_TRAIN, forecast
from trimtab.rlhf.search import search

VERL_LOGIT = 7  # bytes


def judge(case: Case) -> tuple[bool, str, float, float]:
    """(forecast fits, where it is fullest, GiB there, usable GiB)."""
    job, plan = fit_case(case)
    if case.get("search"):
        try:
            plan = search(job).plans[0].plan
        except TrimtabError as error:
            return False, str(error).split(": ")[-1], float("nan"), float("nan")
    expected = forecast(job, plan)
    share = case.get("logits_share", 1.0) * (VERL_LOGIT / LOGITS_TRAIN if case.get("verl") else 1.0)
    for pool, phases in expected.pools.items():
        if case.get("groups") in ("v0.2", "single") and pool == "vllm":
            phases.clear()
            phases["none"] = {"engine": 0.0}
        for parts in phases.values():
            if "logits" in parts:
                parts["logits"] *= share
            if case.get("verl") or case.get("groups") == "single":
                parts["contexts"] = CONTEXT
    pool, phase, peak = expected.fullest
    where = f"{phase} on {pool}"
    if expected.host_total > HOST_LIMIT * expected.host_bytes:
        where = f"host {expected.host_total / GIB:.0f} of {expected.host_bytes / GIB:.0f} GiB"
    return expected.fits, where, peak / GIB, expected.usable_bytes / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the same: it takes a second")
    parser.parse_args()
    print("| case | published | forecast | fullest | GiB | usable |\n|" + "---|" * 6)
    right = []
    for case in PUBLISHED["fit"]:
        fits, where, peak, usable = judge(case)
        right.append(fits == case["fits"])
        words = ["does not fit", "fits"]
        mark = "" if right[-1] else " (wrong)"
        print(
            f"| {case['name']} | {words[case['fits']]} | {words[fits]}{mark} | {where} | {peak:.1f} "
            f"| {usable:.1f} |"
        )
    wrong = [case["name"] for case, good in zip(PUBLISHED["fit"], right, strict=True) if not good]
    figures = {"right_fraction": round(sum(right) / len(right), 4), "cases": len(right), "wrong": wrong}
    print(json.dumps({"name": "rlhf_fit", **figures}))


if __name__ == "__main__":
    main()
