"""Emitted commands through OpenRLHF's own argument checks, taken from its wheels (_openrlhf.py).

Jobs are drawn: model, algorithm, cluster, batches, lengths, goal. For each version some of the plans that the
search keeps are emitted as commands; accepted means that the version's parser and checks take them and that
they ask Ray for exactly the plan's GPUs, and at most what there is.

    python benchmarks/rlhf_commands.py [--quick] [--seed N] [--flags]

--flags compares data/rlhf/flags.yaml with every wheel's parser instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import numpy as np
from _openrlhf import ask, fetch, flags

from trimtab.errors import TrimtabError
from trimtab.hardware import get_device, get_model
from trimtab.rlhf.commands import arguments, plan_settings
from trimtab.rlhf.flags import spellings
from trimtab.rlhf.job import ALGORITHMS, GOALS, GROUPED, Cluster, Job, Lengths
from trimtab.rlhf.placement import Plan
from trimtab.rlhf.search import search

VERSIONS = ("0.8.6", "0.9.1", "0.9.7", "0.9.8", "0.10.1.post2", "0.10.2", "0.11.2")
MODELS = ("llama-3-8b", "qwen2.5-7b", "qwen3-14b", "qwen2.5-32b", "llama-3-70b", "qwen3-30b-a3b")
DEVICES = ("a100-80", "h100", "h200")


def draw_job(generator: np.random.Generator, version: str) -> Job:
    """A job with anything that changes flags."""
    pick = generator.choice
    algorithm = str(pick(list(ALGORITHMS)))
    grouped = ALGORITHMS[algorithm] in GROUPED
    longest = int(pick([512, 1024, 4096, 8192]))
    return Job(
        actor=get_model(str(pick(MODELS))),
        cluster=Cluster(get_device(str(pick(DEVICES))), int(pick([1, 2, 4, 6, 8])), host_gib=2048),
        prompt=Lengths(200, 1024),
        response=Lengths(longest * float(pick([0.2, 0.5, 0.8])), longest),
        algorithm=algorithm,
        reward=get_model("llama-3-8b") if pick([True, False]) else None,
        remote_reward="http://rewards:5000/score" if pick([True, False]) else None,
        prompts=int(pick([128, 256, 1024])),
        samples=int(pick([4, 8, 16])) if grouped else int(pick([1, 4])),
        train_batch=int(pick([64, 128, 96])),
        kl=float(pick([0.0, 1e-3, 0.01])),
        goal=str(pick(GOALS)),
        version=version,
        lora_rank=int(pick([0, 0, 16])),
    )


def plans(version: str, wanted: int, seed: int) -> Iterator[tuple[Job, Plan]]:
    """``wanted`` plans of drawn jobs, at most four of each."""
    generator = np.random.default_rng(seed)
    found = 0
    while found < wanted:
        job = draw_job(generator, version)
        try:
            kept = search(job).plans
        except TrimtabError:
            continue
        for index in generator.permutation(len(kept))[:4]:
            if found < wanted:
                found += 1
                yield job, kept[index].plan


def compare_flags() -> int:
    """1 where a wheel's parser and flags.yaml differ."""
    wrong = 0
    for version in VERSIONS:
        wheel = fetch(version)
        if wheel is None:
            print(f"{version}: no wheel")
            continue
        there, ours = set(flags(wheel)), set(spellings(version))
        wrong |= there != ours
        print(
            f"{version}: {len(there)} flags, missing {sorted(there - ours)}, too many {sorted(ours - there)}"
        )
    return int(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ten plans of each version")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", action="store_true", help="compare the flags of all versions instead")
    arguments_given = parser.parse_args()
    if arguments_given.flags:
        sys.exit(compare_flags())
    accepted = total = 0
    versions: dict[str, int] = {}
    for index, version in enumerate(VERSIONS):
        wheel = fetch(version)
        if wheel is None:
            print(f"{version}: no wheel, and the registry is not reachable")
            continue
        for job, plan in plans(version, 10 if arguments_given.quick else 40, arguments_given.seed + index):
            words = arguments(plan_settings(job, plan), version)
            asked = ask(wheel, words)
            good = asked.error is None and asked.gpus == plan.placement.gpus <= job.cluster.gpus
            total += 1
            accepted += good
            versions[version] = versions.get(version, 0) + 1
            if not good:
                print(f"{version}: {asked} for {plan.describe()}: {' '.join(words)}")
        print(f"{version}: {versions[version]} plans", flush=True)
    if not total:
        print(json.dumps({"name": "rlhf_commands", "skipped": "no wheel of OpenRLHF could be fetched"}))
        return
    figures = {"accepted_fraction": accepted / total, "plans": total, "versions": len(versions)}
    print(json.dumps({"name": "rlhf_commands", **figures, "by_version": versions}))


if __name__ == "__main__":
    main()
