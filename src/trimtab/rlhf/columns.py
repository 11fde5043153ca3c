"""What roles and pools of GPUs cost, for all training settings at once: columns that the search adds up."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.rlhf import memory, steps
from trimtab.rlhf.flags import sleeps_below_zero_3
from trimtab.rlhf.generation import estimate, kv_capacity
from trimtab.rlhf.job import Job
from trimtab.rlhf.placement import Training
from trimtab.rlhf.timeline import computed_tokens, role_models

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
MICRO = (1, 2, 4, 8, 16)
FORWARD_TIMES = (1, 2, 4)  # forward micro-batches over training ones
CAPS = (4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536)
DEGREES = (1, 2, 4, 8)
SHARDED = 5.0  # switches that a ring or tensor parallelism counts for: the least tried parts of OpenRLHF


@dataclass(frozen=True)
class Settings:
    """All training settings as columns (N,)."""

    zero: Array
    adam_offload: Array
    eval_offload: Array
    checkpointing: Array
    batching: Array  # 0 padded, 1 packed, 2 dynamic
    micro: Array
    forward_micro: Array
    cap: Array
    ring: Array
    ds_tp: Array
    overlap: Array

    def __len__(self) -> int:
        return len(self.zero)

    def training(self, row: int) -> Training:
        """One row as a Training."""
        kind = ("padded", "packed", "dynamic")[int(self.batching[row])]
        return Training(
            zero=int(self.zero[row]),
            adam_offload=bool(self.adam_offload[row]),
            eval_offload=bool(self.eval_offload[row]),
            checkpointing=bool(self.checkpointing[row]),
            batching=kind,
            micro=int(self.micro[row]),
            forward_micro=int(self.forward_micro[row]),
            cap=int(self.cap[row]),
            ring=int(self.ring[row]),
            ds_tp=int(self.ds_tp[row]),
            overlap=bool(self.overlap[row]),
        )


def training_settings(job: Job) -> Settings:
    """Every legal combination: rings need packing and divide the heads, DeepSpeed TP needs ZeRO <= 2."""
    counted = [(kind, m, m * t, CAPS[0]) for kind in (0, 1) for m in MICRO for t in FORWARD_TIMES]
    batches = [*counted, *((2, 1, 1, cap) for cap in CAPS)]
    frozen = job.ref_model is not None or job.reward_model is not None
    models = role_models(job).values()
    # Memory of full fine-tuning under TP has no adapters; the flag combination is refused by DeepSpeed.
    rows = []
    for zero, (kind, micro, forward, cap), ring, tp in itertools.product((2, 3), batches, DEGREES, DEGREES):
        if (ring > 1 and kind == 0) or (tp > 1 and (zero == 3 or job.lora_rank)):
            continue
        if any(model.heads % (ring * tp) or model.kv_heads % tp for model in models):
            continue
        for adam, host, check, overlap in itertools.product((0, 1), (0, 1), (0, 1), (0, 1)):
            if not (host and (zero < 3 or not frozen)):
                rows.append((zero, adam, host, check, kind, micro, forward, cap, ring, tp, overlap))
    return Settings(*np.array(rows, np.float64).T)


@dataclass(frozen=True)
class RoleColumns:
    """What one role costs on a group of one size, for all training settings: (N,) bytes and seconds."""

    awake: Array
    resting: Array
    asleep: Array
    forward: Array
    work: Array
    forward_s: Array
    train_s: Array
    reload_s: float
    legal: Mask
    host: Array  # bytes per GPU of offloaded state
    host_asleep: float


def role_columns(job: Job, role: str, size: int, rows: Settings, ranks: Array) -> RoleColumns:
    """``ranks`` (N,): data-parallel ranks of the actor, which set the number of forward batches."""
    model, head, trains = role_models(job)[role], role in ("actor", "ref"), role in ("actor", "critic")
    share = memory.Share(float(size), rows.zero, rows.ds_tp, rows.overlap)
    shards = rows.ring * rows.ds_tp
    own_ranks = np.floor(size / shards)
    tokens = memory.forward_tokens(
        job, rows.batching == 2, rows.forward_micro, rows.cap, rows.ring, rows.ds_tp, np.maximum(ranks, 1)
    )
    forward = memory.forward_activations(model, tokens, rows.ds_tp) + memory.gathered(model, share)
    forward = forward + (memory.logits(model, tokens, memory.LOGITS_FORWARD) if head else 0.0)
    legal = (size % shards == 0) & (job.total_samples // rows.forward_micro >= own_ranks)
    work, reload_s, host_asleep = np.zeros(len(rows)), 0.0, 0.0
    if trains:
        per_rank = np.where(rows.batching == 2, 1, rows.micro) * own_ranks
        legal &= (own_ranks > 0) & (job.train_batch % np.maximum(per_rank, 1) == 0)
        parts = memory.trained(model, head, share, rows.adam_offload, job.lora_rank)
        awake = sum(parts.values())
        resting, asleep = (sum(memory.idle(parts, sleeps).values()) for sleeps in (False, True))
        live = memory.micro_tokens(job, rows.batching, rows.micro, rows.cap, rows.ring, rows.ds_tp)
        work = memory.activations(model, live, rows.checkpointing, rows.ds_tp)
        work = work + (memory.logits(model, live, memory.LOGITS_TRAIN) if role == "actor" else 0.0)
        reload_s = 2 * float(steps.reload_seconds(model, size))
        trained = memory.trainable(model, head, job.lora_rank)
        host, host_asleep = rows.adam_offload * 16 * trained / size, 14 * trained / size
    else:
        awake = resting = asleep = memory.frozen(model, head, share, rows.eval_offload)["weights"]
        host = rows.eval_offload * 2 * memory.parameters(model, head) / size
    forward_s, train_s = _seconds(job, role, size, rows)
    ones = np.ones(len(rows))
    return RoleColumns(
        awake=awake * ones,
        resting=resting * ones,
        asleep=asleep * ones,
        forward=forward * ones,
        work=work * ones,
        forward_s=forward_s,
        train_s=train_s,
        reload_s=reload_s,
        legal=legal,
        host=host * ones,
        host_asleep=host_asleep,
    )


def _seconds(job: Job, role: str, size: int, rows: Settings) -> tuple[Array, Array]:
    """(N,) calibrated seconds of a role's forward pass, and of its training (zeros where it has none)."""
    model, cluster = role_models(job)[role], job.cluster
    work = steps.work_of(job, model, role in ("actor", "ref"))
    factor = steps.calibration_of(cluster)
    shards, trains = rows.ring * rows.ds_tp, role in ("actor", "critic")
    micro = computed_tokens(job, rows.batching, rows.forward_micro, rows.cap, shards)
    padded = steps.padding(job, rows.batching, rows.forward_micro)
    offload = rows.eval_offload * (not trains)
    forward_s = factor.forward * steps.forward_seconds(
        work, cluster, size, rows.zero, micro, padded, shards, rows.ds_tp, offload
    )
    if not trains:
        return forward_s, np.zeros(len(rows))
    train_s = factor.train * steps.train_seconds(
        work,
        cluster,
        size,
        rows.zero,
        computed_tokens(job, rows.batching, rows.micro, rows.cap, shards),
        steps.padding(job, rows.batching, rows.micro),
        shards,
        rows.checkpointing,
        rows.adam_offload,
        rows.overlap,
        job.total_samples // job.train_batch,
        bool(job.lora_rank),
        rows.ds_tp,
    )
    return forward_s, train_s


@dataclass(frozen=True)
class PoolColumns:
    """A pool of roles, without engines: peak bytes, host bytes per GPU, experience and training seconds."""

    peak: Array
    resting: Array
    host: Array
    experience_s: Array
    train_s: Array
    legal: Mask
    any_legal: bool


class Tables:
    """Columns of roles and pools, each worked out once."""

    def __init__(self, job: Job):
        self.job = job
        self.rows = training_settings(job)
        self.models = role_models(job)
        self._roles: dict[tuple[str, int, int], RoleColumns] = {}
        self._pools: dict[tuple[Any, ...], PoolColumns] = {}
        self._generation: dict[tuple[Any, ...], float] = {}
        self.switches = (
            self.rows.adam_offload + self.rows.eval_offload + self.rows.checkpointing + self.rows.overlap
        ) + SHARDED * ((self.rows.ring > 1).astype(np.float64) + (self.rows.ds_tp > 1))

    def role(self, role: str, size: int, actor: int) -> RoleColumns:
        key = (role, size, actor)
        if key not in self._roles:
            ranks = np.floor(actor / (self.rows.ring * self.rows.ds_tp))
            self._roles[key] = role_columns(self.job, role, size, self.rows, ranks)
        return self._roles[key]

    def pool(self, roles: tuple[str, ...], size: int, actor: int, ds_sleep: bool) -> PoolColumns:
        """The roles on ``size`` GPUs; ``actor`` GPUs of the actor set the number of forward batches."""
        key = (roles, size, actor, ds_sleep)
        if key not in self._pools:
            self._pools[key] = self._pool(roles, size, actor, ds_sleep)
        return self._pools[key]

    def _pool(self, roles: tuple[str, ...], size: int, actor: int, ds_sleep: bool) -> PoolColumns:
        columns = {role: self.role(role, size, actor) for role in roles}
        sleeps = ds_sleep * (1 - self.rows.adam_offload)
        rests = {role: np.where(sleeps > 0, each.asleep, each.resting) for role, each in columns.items()}
        context = memory.CONTEXT * len(roles)
        resting = np.sum(list(rests.values()), axis=0) + context
        peak = resting + np.max([each.forward for each in columns.values()], axis=0)
        train_s, host = np.zeros(len(self.rows)), memory.PROCESS_HOST * len(roles) + np.zeros(len(self.rows))
        for role, each in columns.items():
            host = host + each.host
            if role in ("actor", "critic"):
                peak = np.maximum(peak, resting - rests[role] + each.awake + each.work)
                train_s = train_s + each.train_s + sleeps * each.reload_s
                host = host + sleeps * each.host_asleep
        legal = np.all([each.legal for each in columns.values()], axis=0)
        if ds_sleep and not sleeps_below_zero_3(self.job.version):
            legal &= (self.rows.zero == 3) | (self.rows.adam_offload > 0)
        experience_s = np.sum([each.forward_s for each in columns.values()], axis=0)
        return PoolColumns(peak, resting, host, experience_s, train_s, legal, bool(legal.any()))

    def generation(self, gpus: int, tp: int, utilization: float, eager: bool, partial: bool) -> float:
        """Seconds of a rollout, calibrated; inf where a sequence does not fit."""
        key = (gpus, tp, utilization, eager, partial)
        if key not in self._generation:
            job = self.job
            seconds = np.inf
            if kv_capacity(job, tp, utilization) >= job.max_tokens:
                factor = steps.calibration_of(job.cluster).generation
                seconds = factor * estimate(job, gpus // tp, tp, utilization, eager, job.samples > 1, partial)
            self._generation[key] = seconds
        return self._generation[key]

    def degrees(self) -> list[int]:
        """Tensor parallelism that an engine may have: inside a node, dividing the heads."""
        model, most = self.job.actor, self.job.cluster.gpus_per_node
        return [
            tp
            for tp in DEGREES
            if tp <= most and model.heads % tp == 0 and (model.kv_heads % tp == 0 or tp % model.kv_heads == 0)
        ]


def group_sizes(job: Job) -> list[int]:
    """Sizes of a group of GPUs: divisors of a node, and whole nodes."""
    node, most = job.cluster.gpus_per_node, job.cluster.gpus
    return [*(n for n in range(1, node) if node % n == 0 and n <= most), *range(node, most + 1, node)]
