"""Bytes on a GPU by phase and part, as OpenRLHF with DeepSpeed and vLLM uses them.

Everything is arithmetic on arrays, so that a search takes thousands of settings at once; a plan is the case
of one. docs/background/rlhf-model.md derives the formulas and says where each constant comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.hardware import Model
from trimtab.rlhf.job import GIB, Job
from trimtab.rlhf.placement import Plan

Number = Any  # a float or an array of float64; all functions broadcast

CONTEXT = 0.8 * GIB  # of one process on a GPU: CUDA context, NCCL buffers, kernels
ASLEEP = 2.0 * GIB  # what a sleeping engine keeps: context, NCCL, CUDA graphs (1 to 5 GiB seen)
GRAPHS = 1.5 * GIB  # CUDA graphs, on top of the engine's share
ENGINE_FIXED = 1.5 * GIB  # activations and buffers inside the engine's share
BUCKET = 5e8  # elements that DeepSpeed reduces at once
LIVE = 1e9  # elements that ZeRO-3 keeps gathered
LOGITS_TRAIN, LOGITS_FORWARD = 10, 6  # bytes of one logit: bf16, its fp32 copy, the gradient
SLACK = 0.04  # of the device, which torch's allocator loses to fragments
ENGINE_SLACK = 0.01  # of a device that holds an engine only, which takes its memory in one piece
PROCESS_HOST = 3.0 * GIB  # host memory of one process
HOST_LIMIT = 0.95  # Ray kills above it

Parts = dict[str, Number]


@dataclass(frozen=True)
class Share:
    """How a model is cut: ``world`` GPUs of its group, of which ``ds_tp`` share each layer."""

    world: Number
    zero: Number
    ds_tp: Number = 1
    overlap: Number = False


def parameters(model: Model, head: bool) -> float:
    """Weights of a model; a critic or reward model has no LM head (``head`` false)."""
    without = 0 if head or model.tied_embeddings else model.vocab * model.hidden
    return float(model.parameters - without)


def trainable(model: Model, head: bool, lora_rank: int) -> float:
    """Weights that are trained: all, or adapters of ``lora_rank`` on every projection."""
    if not lora_rank:
        return parameters(model, head)
    experts = max(1, model.experts + model.shared_experts) if model.experts else 1
    width = model.expert_ffn if model.experts else model.ffn
    attention = 2 * (model.hidden + model.heads * model.head_dim)
    attention += 2 * (model.hidden + model.kv_heads * model.head_dim)
    mlp = experts * model.mlp_matrices * (model.hidden + width)
    return float(lora_rank * model.layers * (attention + mlp))


def largest_block(model: Model) -> float:
    """Elements that ZeRO-3 gathers at the least: the embedding, or a whole layer of experts."""
    experts = model.experts * model.mlp_matrices * model.hidden * model.expert_ffn
    return float(max(model.vocab * model.hidden, experts))


def trained(model: Model, head: bool, share: Share, adam_offload: Number, lora_rank: int = 0) -> Parts:
    """Weights, gradients, optimiser and communication of a model in training, awake.

    With Adam on the host the gradients' share goes there too; what remains is the bucket.
    """
    count, train = parameters(model, head), trainable(model, head, lora_rank)
    sharded: Number = np.where(share.zero >= 3, share.world, share.ds_tp)
    buffers = np.minimum(BUCKET, train) * 2 * np.where(share.overlap, 2, 1)
    live = np.where(share.zero >= 3, 2 * np.maximum(np.minimum(LIVE, count), largest_block(model)), 0.0)
    return {
        "weights": 2 * count / sharded,
        "gradients": np.where(adam_offload, 0.0, 2 * train / share.world),
        "optimiser": np.where(adam_offload, 0.0, 12 * train / share.world),
        "communication": (buffers + live) * (share.world > 1),
    }


def idle(parts: Parts, sleeps: Number) -> Parts:
    """What stays of a trained model while others work: all but the buffers, and the bf16 weights alone where
    DeepSpeed sleeps."""
    kept = {name: np.where(sleeps, 0.0, parts[name]) for name in ("gradients", "optimiser")}
    return {"weights": parts["weights"], **kept}


def frozen(model: Model, head: bool, share: Share, offload: Number) -> Parts:
    """A reference or reward model: replicated below ZeRO-3; on the host if offloaded there."""
    count = parameters(model, head)
    cut: Number = np.where(share.zero >= 3, share.world, share.ds_tp)
    return {"weights": np.where((share.zero >= 3) & np.asarray(offload, bool), 0.0, 2 * count / cut)}


def gathered(model: Model, share: Share) -> Number:
    """Bytes of weights that a ZeRO-3 forward pass has gathered."""
    at_least = largest_block(model)
    live = 2 * np.maximum(np.minimum(LIVE, model.parameters), at_least)
    return np.where((share.zero >= 3) & (np.asarray(share.world) > 1), live, 0.0)


def layer_activations(model: Model) -> tuple[float, float]:
    """Bytes that one layer keeps per token for the backward pass: (whole, split by tensor parallelism)."""
    width = (
        (model.experts_per_token + model.shared_experts) * model.expert_ffn if model.experts else model.ffn
    )
    gates = 4 if model.gated_mlp else 2
    # Norms and their fp32 copies, inputs of the projections; queries, keys, values, the inner MLP.
    whole = 16.0 * model.hidden
    split = 4.0 * model.heads * model.head_dim + 4.0 * model.kv_heads * model.head_dim + 2.0 * gates * width
    return whole, split


def activations(model: Model, tokens: Number, checkpointing: Number, ds_tp: Number) -> Number:
    """Bytes kept for the backward pass of ``tokens`` on one GPU."""
    whole, split = layer_activations(model)
    layer = whole + split / ds_tp
    kept = np.where(checkpointing, 2.0 * model.hidden * model.layers + layer, layer * model.layers)
    return tokens * kept


def forward_activations(model: Model, tokens: Number, ds_tp: Number) -> Number:
    """Bytes alive in a pass without gradients: one layer, and the hidden states."""
    whole, split = layer_activations(model)
    return tokens * (0.5 * whole + 0.5 * split / ds_tp)


def logits(model: Model, tokens: Number, bytes_each: float) -> Number:
    """OpenRLHF casts the logits of all tokens to fp32: this often outweighs the model."""
    return tokens * model.vocab * bytes_each


def micro_tokens(
    job: Job, batching: Number, micro: Number, cap: Number, ring: Number, ds_tp: Number
) -> Number:
    """Tokens on one GPU of the fullest training micro-batch; ``batching`` 2 is dynamic.

    Counted batches may hold nothing but longest sequences. A dynamic one holds ``cap`` x ring x TP tokens, a
    sequence beyond that sits alone, and a ring shares it out.
    """
    counted = micro * job.max_tokens / ring
    dynamic = np.maximum(cap * ring * ds_tp, job.max_tokens) / ring
    return np.where(np.asarray(batching) == 2, dynamic, counted)


def rollout_overshoot(job: Job, cap: Number, ranks: Number) -> Number:
    """How far the forward micro-batches exceed their cap, because OpenRLHF floors their number.

    K = tokens / cap batches (first fit fills them to about 97 %) become a multiple of the ranks, at least
    one each.
    """
    batches = np.maximum(1.0, np.ceil(job.total_tokens / (0.97 * cap)))
    floored = np.maximum(np.floor(batches / ranks), 1) * ranks
    return np.maximum(1.0, job.total_tokens / floored / cap)


def kv_bytes_per_token(model: Model, tp: int) -> float:
    return model.kv_bytes_per_token(tp)


def engine_kv_tokens(model: Model, memory: float, utilization: Number, tp: int) -> Number:
    """Tokens that the KV cache of one engine holds; negative where not even the weights fit."""
    room = utilization * memory - 2.0 * model.parameters / tp - ENGINE_FIXED
    return room / kv_bytes_per_token(model, tp)


@dataclass(frozen=True)
class Forecast:
    """Bytes per GPU by pool, phase and part; host bytes per node by part."""

    device_bytes: float
    pools: dict[str, dict[str, dict[str, float]]]
    host: dict[str, float]
    host_bytes: float

    def peak(self, pool: str) -> tuple[str, float]:
        """(phase, bytes) where the pool is fullest."""
        totals = {phase: sum(parts.values()) for phase, parts in self.pools[pool].items()}
        phase = max(totals, key=lambda name: totals[name])
        return phase, totals[phase]

    @property
    def fullest(self) -> tuple[str, str, float]:
        """(pool, phase, bytes) of the GPU that is nearest to its limit; engines on GPUs of their own fill
        theirs on purpose and are left out."""
        pools = [pool for pool in self.pools if pool != "vllm"]
        pool = max(pools, key=lambda name: self.peak(name)[1])
        return pool, *self.peak(pool)

    def usable(self, pool: str) -> float:
        """Bytes of a GPU of ``pool`` that may be used."""
        return self.device_bytes * (1 - (ENGINE_SLACK if pool == "vllm" else SLACK))

    @property
    def usable_bytes(self) -> float:
        """Of the fullest GPU."""
        return self.usable(self.fullest[0])

    @property
    def host_total(self) -> float:
        return sum(self.host.values())

    @property
    def fits(self) -> bool:
        """On every GPU, and on the host."""
        return not self.overfull and self.host_total <= HOST_LIMIT * self.host_bytes

    @property
    def overfull(self) -> list[str]:
        """Pools whose GPUs need more than they have."""
        return [pool for pool in self.pools if self.peak(pool)[1] > self.usable(pool)]


def forecast(job: Job, plan: Plan) -> Forecast:
    """Memory of every pool in every phase."""
    pools = {}
    for name, (size, roles) in plan.placement.pools.items():
        phases = _phases(job, plan, size, roles)
        pools[name] = {
            phase: {part: float(value) for part, value in parts.items() if value > 0}
            for phase, parts in phases.items()
        }
    cluster = job.cluster
    return Forecast(cluster.device.memory_bytes, pools, host_parts(job, plan), cluster.host_gib * GIB)


def _models(job: Job) -> dict[str, Model | None]:
    return {
        "actor": job.actor,
        "critic": job.critic_model,
        "ref": job.ref_model,
        "reward": job.reward_model,
    }


def _phases(job: Job, plan: Plan, size: int, roles: tuple[str, ...]) -> dict[str, Parts]:
    """phase -> part -> bytes on one GPU of a pool."""
    training, serving = plan.training, plan.serving
    models = _models(job)
    awake: dict[str, Parts] = {}
    resting: dict[str, Parts] = {}
    for role in roles:
        model = models.get(role)
        if model is None:
            continue
        share = Share(size, training.zero, training.ds_tp, training.overlap)
        head = role in ("actor", "ref")
        if role in ("actor", "critic"):
            awake[role] = trained(model, head, share, training.adam_offload, job.lora_rank)
            sleeps = serving.ds_sleep and not training.adam_offload
            resting[role] = idle(awake[role], sleeps)
        else:
            awake[role] = resting[role] = frozen(model, head, share, training.eval_offload)
    processes = {"contexts": CONTEXT * len(awake)}
    engine = _engine(job, plan) if "vllm" in roles else {}
    quiet = {"engine asleep": ASLEEP} if serving.vllm_sleep and engine else engine
    phases: dict[str, Parts] = {}
    if engine:
        phases["generation"] = added(processes, engine, *resting.values())
    if awake:
        working = _forward_work(job, plan, size, roles, models)
        phases["experience"] = added(processes, quiet, *resting.values(), working)
    for role in ("actor", "critic"):
        if role in awake:
            others = [resting[name] for name in awake if name != role]
            work = _train_work(job, plan, role, models[role])
            phases[f"train {role}"] = added(processes, quiet, awake[role], *others, work)
    return phases


def _engine(job: Job, plan: Plan) -> Parts:
    """An engine awake: weights, KV cache and buffers fill its share of the memory."""
    memory, place = job.cluster.device.memory_bytes, plan.placement
    weights = 2.0 * job.actor.parameters / place.tp
    inside = plan.serving.utilization * memory
    graphs = 0.0 if plan.serving.eager else GRAPHS
    return {
        "engine weights": weights,
        "KV cache": max(0.0, inside - weights - ENGINE_FIXED),
        "engine buffers": ENGINE_FIXED,
        "CUDA graphs": graphs,
    }


def _forward_work(
    job: Job, plan: Plan, size: int, roles: tuple[str, ...], models: dict[str, Model | None]
) -> Parts:
    """The fullest forward pass of the roles of a pool."""
    training = plan.training
    fullest: Parts = {}
    for role in roles:
        model = models.get(role)
        if model is None:
            continue
        tokens = forward_tokens(
            job,
            training.batching == "dynamic",
            training.forward_micro,
            training.cap,
            training.ring,
            training.ds_tp,
            plan.data_parallel("actor"),
        )
        work = {
            "activations": forward_activations(model, tokens, training.ds_tp),
            "communication": gathered(model, Share(size, training.zero)),
        }
        if role in ("actor", "ref"):
            work["logits"] = logits(model, tokens, LOGITS_FORWARD)
        if sum(work.values()) > sum(fullest.values()):
            fullest = work
    return fullest


def forward_tokens(
    job: Job, dynamic: Number, micro: Number, cap: Number, ring: Number, ds_tp: Number, ranks: Number
) -> Number:
    """Tokens on one GPU of the fullest forward micro-batch."""
    whole = cap * ring * ds_tp
    capped = np.maximum(whole * rollout_overshoot(job, whole, ranks), job.max_tokens) / ring
    return np.where(dynamic, capped, micro * job.max_tokens / ring)


def _train_work(job: Job, plan: Plan, role: str, model: Model | None) -> Parts:
    assert model is not None
    training = plan.training
    kind = 2 if training.batching == "dynamic" else 0
    tokens = micro_tokens(job, kind, training.micro, training.cap, training.ring, training.ds_tp)
    work = {"activations": activations(model, tokens, training.checkpointing, training.ds_tp)}
    if role == "actor":
        work["logits"] = logits(model, tokens, LOGITS_TRAIN)
    return work


def added(*several: Parts) -> Parts:
    """Sums part by part."""
    total: Parts = {}
    for parts in several:
        for part, value in parts.items():
            total[part] = total.get(part, 0.0) + value
    return total


def host_parts(job: Job, plan: Plan) -> dict[str, float]:
    """Host bytes of the fullest node: offloaded and sleeping state, processes, experiences.

    A node is full of one pool's GPUs, or of all of them where the pools are smaller than a node.
    """
    per_node, training, serving = job.cluster.gpus_per_node, plan.training, plan.serving
    models = _models(job)
    worst: dict[str, float] = {}
    shared: dict[str, float] = {}
    for size, roles in plan.placement.pools.values():
        here = min(size, per_node)
        parts = {"processes": PROCESS_HOST * here * len(roles)}
        for role in roles:
            model = models.get(role)
            if model is None:
                continue
            train = trainable(model, role == "actor", job.lora_rank)
            if role in ("actor", "critic") and training.adam_offload:
                # moments, master copy and fp32 gradients
                parts["Adam"] = parts.get("Adam", 0.0) + 16 * train / size * here
            elif role in ("actor", "critic") and serving.ds_sleep:
                parts["DeepSpeed asleep"] = parts.get("DeepSpeed asleep", 0.0) + 14 * train / size * here
            elif role in ("ref", "reward") and training.eval_offload and training.zero == 3:
                frozen_bytes = 2 * parameters(model, role == "ref") / size * here
                parts["offloaded weights"] = parts.get("offloaded weights", 0.0) + frozen_bytes
        if "vllm" in roles and serving.vllm_sleep:
            parts["vLLM asleep"] = 2.0 * job.actor.parameters / plan.placement.tp * here
        if size < per_node:
            shared = {key: shared.get(key, 0.0) + parts.get(key, 0.0) for key in {**shared, **parts}}
            parts = shared
        if sum(parts.values()) > sum(worst.values()):
            worst = dict(parts)
    worst["experiences"] = experience_bytes(job)
    return worst


def experience_bytes(job: Job) -> float:
    """Tokens, log-probabilities, values and advantages of all samples, in the object store of one node."""
    return job.total_tokens * 40 / job.cluster.nodes
