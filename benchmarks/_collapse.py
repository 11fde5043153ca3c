"""One training of the collapse study: which parameters, on which cluster, and how its policy does afterwards.

The cluster is four A100 with Llama 3 8B behind vLLM's scheduler, chat traffic (azure-conv-2023) at 85 to 90 %
of the 31 requests/s that it sustains (at 32 the queue grows behind every router). In half of the episodes of
training the start is skewed: for three seconds only replica 0 is up, and takes everything; then the others
come up, empty.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trimtab as tt
from trimtab.learn.clone import beginner, clone
from trimtab.learn.demonstrations import demonstrate, join
from trimtab.learn.facts import busiest_share
from trimtab.learn.policy import Scorer, save_policy
from trimtab.learn.ppo import Learner, new_learner, train_update
from trimtab.learn.presets import TrainConfig, get_preset, override
from trimtab.learn.rollout import Acting, play
from trimtab.learn.scenarios import FIRST_SEED, Level, build_episode
from trimtab.learn.sealed import write_whole
from trimtab.learn.train import one_thread
from trimtab.result import Result
from trimtab.routers.features import CONTEXT, FEATURES
from trimtab.routers.policy_file import Policy
from trimtab.scenario import Scenario, load_scenario

Json = dict[str, Any]
REPLICAS = 4
SUSTAINED = 31.0  # requests/s
LOADS = (0.85, 0.90)
SKEW = 3.0  # s: only replica 0 is up
SECONDS = 40.0  # of an episode of training
JUDGED_SECONDS, JUDGED_SEEDS = 240.0, (0, 1, 2, 3, 4)
RECOVERY_SECONDS = 60.0
GONE = 0.1  # of the excess of replica 0, at which it has recovered
CURVE_SEED = 99  # of the arrivals on which the best replica's share is followed through training
DECIDED = "share of the best"  # busiest share times replicas, of the policy that takes the best replica
KEPT = (
    DECIDED, "kl_ref", "route/entropy", "queue/variance", "route/share_max_equal", "reward/late_s",
    "charts/kl_ref_coef", "losses/clipfrac", "losses/approx_kl", "losses/explained_variance",
)  # fmt: skip
OPTIMIZED, ORIGINAL = get_preset("optimized"), get_preset("original")
COMPRESSED = 8  # so many times shorter than the presets' 156 updates are a study's training and schedules
MINIBATCH = 512  # 1,300 steps of the optimiser in all: the seeds' 5,000 to 20,000 requests were 600 to 2,500


@dataclass(frozen=True)
class Variant:
    """``changes`` are dotted parameters over ``preset``."""

    name: str
    preset: str
    changes: Json


def _of_original(*names: str) -> Json:
    """Those parameters of the original table, with which a strategy is taken back."""
    found = {}
    for name in names:
        head, rest = name.split(".")
        found[name] = getattr(getattr(ORIGINAL, head), rest)
    return found


NO_PENALTY: Json = {"reward.balance_penalty_weight": 0.0, "reward.load_balance_penalty": 0.0}
NOTHING: Json = {"clone.teachers": [], "residual": 0.0}
BIAS_RATE = 0.05
NO_KL: Json = {"ppo.kl_ref_coef_initial": 0.0, "ppo.kl_ref_coef_final": 0.0}
RANDOMNESS = _of_original("ppo.entropy_warmup_coef", "ppo.temperature", "ppo.min_temperature")
KL = _of_original("ppo.kl_ref_coef_initial", "ppo.kl_ref_coef_final", "ppo.kl_ref_decay_steps")
PENALTIES = _of_original("reward.balance_penalty_weight", "reward.load_balance_penalty", "reward.alpha")
VARIANTS = (
    Variant("original", "original", {}),
    Variant("optimized", "optimized", {}),
    Variant("without 1, less chance", "optimized", RANDOMNESS),
    Variant("without 2, stronger KL", "optimized", KL),
    Variant("without 3, stronger penalty", "optimized", PENALTIES),
    Variant("without 4, imbalanced demonstrations", "optimized", _of_original("clone.include_imbalanced")),
    Variant("original, no KL, no penalty", "original", {**NO_KL, **NO_PENALTY}),
    Variant("lossfree", "lossfree", {"ppo.bias_rate": BIAS_RATE}),
    Variant("lossfree, no bias", "lossfree", {"ppo.bias_rate": 0.0}),
    Variant("from nothing, bias", "lossfree", {**NOTHING, "ppo.bias_rate": BIAS_RATE}),
    Variant("from nothing, no bias", "lossfree", {**NOTHING, "ppo.bias_rate": 0.0}),
)


def config_of(variant: Variant, seed: int, quick: bool) -> TrainConfig:
    """Its parameters at the size of the study: 17,000 decisions an update, schedules in proportion."""
    config = override(get_preset(variant.preset), variant.changes)
    ppo, paired = config.ppo, config.ppo.plays > 1
    updates = ORIGINAL.ppo.updates // COMPRESSED
    if not paired:
        ppo = replace(
            ppo,
            kl_ref_decay_steps=round(ppo.kl_ref_decay_steps / COMPRESSED),
            warmup_updates=round(ppo.warmup_updates / COMPRESSED),
        )
    else:
        ppo = replace(ppo, kl_ref_decay_steps=updates)  # as many as its training has, as in the preset
    shape = (4, 4) if paired else (8, 1)
    ppo = replace(ppo, groups=shape[0], plays=shape[1], minibatch=MINIBATCH, curriculum_updates=0)
    ppo = replace(ppo, updates=2 if quick else updates)
    teaching = replace(config.clone, steps_per_policy=80 if quick else 700, epochs=3 if quick else 30)
    return replace(config, seed=seed, ppo=ppo, clone=teaching)


# --- the cluster --------------------------------------------------------------------------------


def cluster(seed: int, load: float, seconds: float, skewed: bool) -> Scenario:
    """``load`` as a share of SUSTAINED."""
    rate = load * SUSTAINED
    engine = {"model": "llama-3-8b", "scheduler": {"name": "vllm_v1"}}
    data: Json = {
        "name": "collapse-study",
        "seed": seed,
        "replicas": [{"device": "a100-80", "count": REPLICAS, **engine}],
        "workload": {
            "lengths": {"kind": "fitted", "name": "azure-conv-2023"},
            "max_tokens": 8192,
            "num_requests": round(seconds * rate),
            "arrivals": {"kind": "poisson", "qps": rate},
        },
        "slo": {"ttft_ms": 500, "tpot_ms": 100},
    }
    if skewed:
        moments = (("crash", 0.0), ("recover", SKEW))
        data["faults"] = {
            "events": [
                {"kind": kind, "replica": replica, "at_s": at}
                for kind, at in moments
                for replica in range(1, REPLICAS)
            ]
        }
    return load_scenario(data)


def drawer(seconds: float, skewed: float) -> Callable[[np.random.Generator, Level], Scenario]:
    """What training draws, a share of ``skewed`` with a skewed start; there is one level of difficulty."""

    def draw(rng: np.random.Generator, level: Level) -> Scenario:
        del level
        load = float(rng.uniform(*LOADS))
        return cluster(FIRST_SEED + int(rng.integers(2**31)), load, seconds, bool(rng.random() < skewed))

    return draw


# --- one training -------------------------------------------------------------------------------


def outcome(variant: Variant, seed: int, quick: bool, folder: Path, told: Callable[[str], None]) -> Json:
    """Of one training: its curves, and what its policy does afterwards: taking the best replica each time,
    as it is deployed here, and tossing as in training, as the project's ancestor deployed its own. Taken
    from ``folder`` where it was finished before with the same parameters."""
    config = config_of(variant, seed, quick)
    depends = {name: part for name, part in config.as_dict().items() if name != "evolve"}
    about = [depends, tt.__version__, cluster(0, 1.0, SECONDS, True).digest(), quick, *FEATURES, *CONTEXT]
    mark = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    path = folder / f"{mark}.json"
    if path.is_file():
        found: Json = json.loads(path.read_text())
        return found
    found = {"variant": variant.name, "seed": seed}
    with one_thread():
        cloned, learner, found["curves"] = _train(config, quick, told)
    for name, scorer, temperature in (
        ("clone", cloned, 0.0),
        ("best", learner.scorer, 0.0),
        ("tossed", learner.scorer, learner.temperature),
    ):
        weights = folder / f"{mark}-{name}.safetensors"
        save_policy(Policy(scorer.flat(), config.hidden, {"variant": variant.name}), weights)
        found[name] = judge("learned", quick, weights, temperature)
    write_whole(path, json.dumps(found).encode())
    return found


def _train(
    config: TrainConfig, quick: bool, told: Callable[[str], None]
) -> tuple[Scorer, Learner, dict[str, list[float]]]:
    seconds = SECONDS / 4 if quick else SECONDS
    draw = drawer(seconds, 0.5)
    scorer = _clone(config, drawer(seconds, 0.0)) if config.clone.teachers else beginner(config)
    learner = new_learner(config, scorer, draw)
    curves: dict[str, list[float]] = {name: [] for name in KEPT}
    plain = cluster(CURVE_SEED, sum(LOADS) / 2, seconds, False)
    course = plain, *build_episode(plain)
    for update in range(config.ppo.updates):
        decided = play(*course, Acting(learner.scorer.flat(), config.hidden, temperature=0.0))
        facts = {**train_update(learner), DECIDED: busiest_share(decided)}
        told(f"update {update + 1} of {config.ppo.updates}")
        for name in KEPT:
            curves[name].append(facts[name])
    return learner.reference, learner, curves


def _clone(config: TrainConfig, draw: Callable[[np.random.Generator, Level], Scenario]) -> Scorer:
    teachers = enumerate(config.clone.teachers)
    shown = [demonstrate(name, number, config, draw, lambda *_: None) for number, name in teachers]
    return clone(join(shown), config, lambda *_: None)[0]


# --- how a router does --------------------------------------------------------------------------


def judge(router: str, quick: bool, policy: Path | None = None, temperature: float = 0.0) -> Json:
    """Per evaluation seed (never of training): tails, requests within the SLO, busiest share, recovery."""
    shorter = 8 if quick else 1
    changes = {"router.policy": str(policy), "router.temperature": temperature} if policy else None
    found: dict[str, list[float]] = {"p99_ttft_ms": [], "goodput": [], "share": [], "recovery_s": []}
    for seed in JUDGED_SEEDS[: 2 if quick else None]:
        even = _run(cluster(seed, sum(LOADS) / 2, JUDGED_SECONDS / shorter, False), router, changes)
        summary = even.summary()
        counts = np.bincount(even.requests["replica"], minlength=REPLICAS)
        found["p99_ttft_ms"].append(summary["p99_ttft_ms"])
        found["goodput"].append(summary["slo_attainment"])
        found["share"].append(float(counts.max() / counts.sum() * REPLICAS))
        skewed = _run(cluster(seed, sum(LOADS) / 2, RECOVERY_SECONDS, True), router, changes)
        found["recovery_s"].append(recovery(skewed.requests))
    return found


def _run(scenario: Scenario, router: str, changes: Json | None) -> Result:
    return tt.simulate(scenario, overrides=changes, router=router, max_iterations=1)


def recovery(requests: NDArray[Any]) -> float:
    """Seconds from the end of a skewed start until nine tenths of replica 0's excess is gone: of its
    outstanding requests over the mean of the others'. As long as the run where it never is."""
    ends = np.where(np.isfinite(requests["finished"]), requests["finished"], math.inf)
    moments = np.arange(SKEW, RECOVERY_SECONDS, 0.1)
    outstanding = np.empty((REPLICAS, len(moments)))
    for replica in range(REPLICAS):
        mine = requests["replica"] == replica
        came = np.searchsorted(np.sort(requests["arrival"][mine]), moments, side="right")
        outstanding[replica] = came - np.searchsorted(np.sort(ends[mine]), moments, side="right")
    excess = outstanding[0] - outstanding[1:].mean(axis=0)
    done = np.flatnonzero(excess <= GONE * excess[0])
    return float(moments[done[0]] - SKEW) if len(done) else RECOVERY_SECONDS - SKEW
