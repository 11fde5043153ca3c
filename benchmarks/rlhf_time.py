"""Step times of GRPO against published tables (published_rlhf.yaml): NeMo-RL on H100 and GB200, verl on H20.

One row of each hardware family calibrates: NeMo-RL publishes whole steps, so its row sets one factor for all
phases; verl publishes phases but no lengths, so its row sets the mean response (by its generation) and the
factors of forward passes and training. All other rows are predicted. Generation is simulated by the cluster
engine. Lengths: cut lognormal; spread 0.7, for verl's runs of up to 28k tokens 2.0, with which 0.5 % of the
responses reach the limit.

    python benchmarks/rlhf_time.py [--quick] [--seed N]

prints the factors of src/trimtab/data/rlhf/calibration.yaml, too.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from _rlhf_published import PUBLISHED, Case, device_of, model_of

from trimtab.rlhf import steps
from trimtab.rlhf.generation import rollout
from trimtab.rlhf.job import Cluster, Job, Lengths

PROMPT = Lengths(200, 1024)
LONG_SPREAD = 2.0
FAMILIES = ("h100", "gb200", "h20")


def job_of(case: Case, mean: float) -> Job:
    # 72 GB200s share one NVLink domain; of 128 GPUs 64 do.
    per_node = min(64 if case["device"] == "gb200" else 8, case["gpus"])
    cluster = Cluster(device_of(case["device"]), case["gpus"] // per_node, per_node)
    spread = LONG_SPREAD if case["mean"] == "fitted" else 0.7
    response = Lengths(mean, case["max"], spread)
    return Job(model_of(case["model"]), cluster, PROMPT, response, "grpo", remote_reward="remote",
               prompts=case["samples"] // 16, samples=16, train_batch=case["batch"])  # fmt: skip


def phases_of(case: Case, mean: float, seed: int) -> dict[str, float]:
    """Uncalibrated seconds of the phases; those of training on its own GPUs."""
    job = job_of(case, mean)
    gpus = case["gpus"] // 2 if case.get("async") else case["gpus"]
    tensor, context, _, stages = case["train"]
    generated = rollout(job, max(1, gpus // case["tp"]), case["tp"], 0.9 if case.get("async") else 0.6,
                        prefix_caching=True, seed=seed)  # fmt: skip
    work = steps.work_of(job, job.actor, True)
    micro = float(job.response.limit + job.prompt.limit) / tensor / context
    shards = tensor * context
    # A pipeline of S stages with m micro-batches is full for m of m + S - 1 slots.
    filled = max(1.0, case["batch"] * job.mean_tokens / (micro * shards) / (gpus / shards / stages))
    bubble = (filled + stages - 1) / filled
    forward = bubble * float(steps.forward_seconds(work, job.cluster, gpus, 1, micro, 1.0, shards, tensor))
    updates = case["samples"] / case["batch"]
    train = bubble * float(
        steps.train_seconds(
            work, job.cluster, gpus, 1, micro, 1.0, shards, True, False, True, updates, False, tensor
        )
    )
    hybrid = not case.get("async")
    weights = float(steps.sync_seconds(job.actor, job.cluster, hybrid))
    if hybrid:  # both sides sleep and wake in turns
        weights += 2 * float(
            steps.reload_seconds(job.actor, gpus) + steps.sleep_seconds(job.actor, case["tp"])
        )
    # the policy's and the reference's log-probabilities; verl's rows have no reference
    passes = 1 if "logp" in case else 2
    return {"generation": generated.seconds, "logp": passes * forward, "update": train, "weights": weights}


def step_of(case: Case, phases: dict[str, float], factor: steps.Calibration) -> float:
    """One step: phases one after the other, or generation beside the rest."""
    generation = factor.generation * phases["generation"]
    rest = factor.forward * phases["logp"] + factor.train * phases["update"]
    together = max(generation, rest) if case.get("async") else generation + rest
    return together + phases["weights"] + steps.FIXED


def calibrate(case: Case, seed: int) -> tuple[steps.Calibration, float]:
    """(factors, mean response) from a family's row."""
    if case["mean"] != "fitted":
        phases = phases_of(case, case["mean"], seed)
        free = sum(phases[name] for name in ("generation", "logp", "update"))
        factor = (case["step"] - phases["weights"] - steps.FIXED) / free
        return steps.Calibration(factor, factor, factor), case["mean"]
    low, high = 200.0, 12000.0
    for _ in range(12):
        mean = (low + high) / 2
        shorter = phases_of(case, mean, seed)["generation"] < case["generation"]
        low, high = (mean, high) if shorter else (low, mean)
    phases = phases_of(case, low, seed)
    factors = (case["generation"] / phases["generation"], case["logp"] / phases["logp"],
               case["update"] / phases["update"])  # fmt: skip
    return steps.Calibration(*factors), low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="rows of at most 64 GPUs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    errors: dict[str, list[float]] = {"dense": [], "moe": []}
    factors: dict[str, Any] = {}
    generation: dict[int, float] = {}
    print("| device | row | GPUs | published s | predicted s | error |\n|" + "---|" * 6)
    for family in FAMILIES:
        rows = [case for case in PUBLISHED["time"] if case["device"] == family]
        first = next(case for case in rows if case.get("calibrates"))
        factor, mean = calibrate(first, arguments.seed)
        factors[family] = [round(value, 4) for value in (factor.generation, factor.forward, factor.train)]
        for case in rows:
            if arguments.quick and case["gpus"] > 64:
                continue
            phases = phases_of(case, mean if case["mean"] == "fitted" else case["mean"], arguments.seed)
            predicted = step_of(case, phases, factor)
            error = predicted / case["step"] - 1
            if case["device"] == "h20":
                generation[case["gpus"]] = factor.generation * phases["generation"]
            told = f"{error:+.0%}" if not case.get("calibrates") else "calibrates"
            print(
                f"| {family} | {case['name']} | {case['gpus']} | {case['step']:g} | {predicted:.0f} "
                f"| {told} |"
            )
            if not case.get("calibrates"):
                errors["moe" if model_of(case["model"]).experts else "dense"].append(abs(error))
        if first["mean"] == "fitted":
            print(f"\nmean response of verl's rows: {mean:.0f} tokens")
    figures = {
        "dense_median_error": round(float(np.median(errors["dense"])), 4),
        "moe_median_error": round(float(np.median(errors["moe"])), 4),
        "dense_rows": len(errors["dense"]),
        "moe_rows": len(errors["moe"]),
        "generation_s_by_gpus": {str(gpus): round(seconds, 1) for gpus, seconds in generation.items()},
        "factors": factors,
    }
    if 128 in generation:
        # published: 151 s on 64 GPUs, 178 s on 128
        figures["generation_128_over_64"] = round(generation[128] / generation[64], 4)
    print(json.dumps({"name": "rlhf_time", **figures}))


if __name__ == "__main__":
    main()
