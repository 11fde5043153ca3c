"""The phases of one step on the GPUs of a plan: when each begins and ends, and who waits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trimtab.hardware import Model
from trimtab.rlhf import steps
from trimtab.rlhf.generation import Rollout, estimate
from trimtab.rlhf.job import Job
from trimtab.rlhf.placement import ROLES, Plan

NAMES = {"actor": "actor log-probabilities", "critic": "values", "ref": "reference", "reward": "rewards"}


@dataclass(frozen=True)
class Span:
    """One phase on one pool of GPUs, seconds from the begin of the step."""

    pool: str
    phase: str
    start: float
    end: float


@dataclass(frozen=True)
class Step:
    """One step in the steady state. ``seconds`` from one weight update to the next."""

    spans: tuple[Span, ...]
    seconds: float
    phases: dict[str, float]
    staleness: int  # steps that samples may be older than the weights that learn from them

    def idle_share(self, pool: str) -> float:
        """Of a pool's time in the step."""
        busy = sum(span.end - span.start for span in self.spans if span.pool == pool)
        return max(0.0, 1 - busy / self.seconds)


def role_models(job: Job) -> dict[str, Model]:
    """The roles on the cluster and their models."""
    models = (job.actor, job.critic_model, job.ref_model, job.reward_model)
    return {role: model for role, model in zip(ROLES, models, strict=True) if model is not None}


def batching_code(batching: str) -> int:
    """padded 0, packed 1, dynamic 2: as arrays hold it."""
    return ("padded", "packed", "dynamic").index(batching)


def computed_tokens(job: Job, batching: object, micro: object, cap: object, shards: object) -> object:
    """Mean tokens on one GPU of a micro-batch, for what it reaches of the peak."""
    counted = np.maximum(1.0, np.asarray(micro) * job.mean_tokens / np.asarray(shards))
    dynamic = np.maximum(0.9 * np.asarray(cap), job.mean_tokens / np.asarray(shards))
    return np.where(np.asarray(batching) == 2, dynamic, counted)


def phase_seconds(job: Job, plan: Plan, generation_s: float | None = None) -> dict[str, float]:
    """Seconds of each phase alone. ``generation_s`` (simulated, uncalibrated) replaces the estimate."""
    place, training, serving, cluster = plan.placement, plan.training, plan.serving, job.cluster
    factor = steps.calibration_of(cluster)
    if generation_s is None:
        generation_s = estimate(
            job,
            place.engines,
            place.tp,
            serving.utilization,
            serving.eager,
            serving.prefix_caching,
            serving.partial,
        )
    phases = {"generation": factor.generation * generation_s}
    shards = training.ring * training.ds_tp
    kind = batching_code(training.batching)
    for role, model in role_models(job).items():
        world, head = getattr(place, role), role in ("actor", "ref")
        work = steps.work_of(job, model, head)
        micro = computed_tokens(job, kind, training.forward_micro, training.cap, shards)
        padded = steps.padding(job, kind, training.forward_micro)
        phases[NAMES[role]] = factor.forward * float(
            steps.forward_seconds(
                work,
                cluster,
                world,
                training.zero,
                micro,
                padded,
                shards,
                training.ds_tp,
                training.eval_offload and role in ("ref", "reward"),
            )
        )
        if role in ("actor", "critic"):
            micro = computed_tokens(job, kind, training.micro, training.cap, shards)
            phases[f"train {role}"] = factor.train * float(
                steps.train_seconds(
                    work,
                    cluster,
                    world,
                    training.zero,
                    micro,
                    steps.padding(job, kind, training.micro),
                    shards,
                    training.checkpointing,
                    training.adam_offload,
                    training.overlap,
                    job.total_samples // job.train_batch,
                    bool(job.lora_rank),
                    training.ds_tp,
                )
            )
            if serving.ds_sleep and not training.adam_offload:
                phases[f"train {role}"] += 2 * float(steps.reload_seconds(model, world))
    hybrid = place.mode == "hybrid"
    if hybrid and serving.vllm_sleep:
        phases["generation"] += 2 * float(steps.sleep_seconds(job.actor, place.tp))
    phases["weights"] = float(steps.sync_seconds(job.actor, cluster, hybrid))
    phases["fixed"] = steps.FIXED
    return phases


def schedule(job: Job, plan: Plan, rollout: Rollout | None = None) -> Step:
    """The spans of one step. With ``rollout`` the generation is the simulated one."""
    phases = phase_seconds(job, plan, rollout.seconds if rollout else None)
    pools = plan.placement.pools
    engine_pool = plan.placement.pool_of("vllm")
    generation = Span(engine_pool, "generation", 0.0, phases["generation"])
    asynchronous = plan.placement.mode == "async"
    begin = 0.0 if asynchronous else generation.end
    spans, learnt = _learning(job, plan, phases, begin)
    both = max(generation.end, learnt)
    update = phases["weights"] + phases["fixed"]
    trainer = plan.placement.pool_of("actor")
    spans = [generation, *spans]
    spans += [
        Span(pool, "weights", both, both + phases["weights"])
        for pool in pools
        if pool in (engine_pool, trainer)
    ]
    staleness = plan.serving.queue + 1 if asynchronous else 0
    return Step(tuple(spans), both + update, phases, staleness)


def _learning(job: Job, plan: Plan, phases: dict[str, float], begin: float) -> tuple[list[Span], float]:
    """Experience, then training: one after the other within a pool, side by side across pools."""
    pools = plan.placement.pools
    spans, ends = [], [begin]
    for pool, (_, roles) in pools.items():
        clock = begin
        for role in ("reward", "actor", "critic", "ref"):
            if role in roles and NAMES[role] in phases:
                spans.append(Span(pool, NAMES[role], clock, clock + phases[NAMES[role]]))
                clock = spans[-1].end
        ends.append(clock)
    ready = max(ends)
    ends = [ready]
    for pool, (_, roles) in pools.items():
        clock = ready
        for role in ("critic", "actor"):
            if role in roles and f"train {role}" in phases:
                spans.append(Span(pool, f"train {role}", clock, clock + phases[f"train {role}"]))
                clock = spans[-1].end
        ends.append(clock)
    return spans, max(ends)
