"""Seconds of each phase of a step. Arithmetic on arrays as in memory.py; generation is in generation.py.

A phase is work over the peak of its GPUs times what they reach of it; communication that ZeRO causes hides
behind it as far as it can. docs/background/rlhf-model.md has the formulas, the constants and their sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import yaml

from trimtab.exectime.kernels import get_efficiency
from trimtab.hardware import Model
from trimtab.rlhf.flags import FOLDER
from trimtab.rlhf.job import Cluster, Job

Number = Any  # a float or an array of float64

REACHED = 0.55  # of the peak, by large matrix products in a training framework
REACHED_EXPERTS = 0.5  # times that for mixtures of experts: small grouped products, exchanges
HALF_TOKENS = 512.0  # tokens of a micro-batch at which half of that is reached
LAUNCH = 0.010  # s per micro-batch and 32 layers: kernel launches of forward and backward, hooks
PCIE = 20e9  # bytes/s of one GPU to its host
HOST_ADAM = 2e9  # parameters/s of one node
NETWORK = 0.6  # of a node's network that a broadcast reaches
PER_TENSOR = 0.8e-3  # s for each tensor of a weight update
HIDDEN = 0.8  # of communication that can hide behind computation
FIXED = 4.0  # s per step outside all phases: data, Ray, logging


@dataclass(frozen=True)
class Calibration:
    """Measured over predicted seconds of a hardware family, from one published row."""

    generation: float = 1.0
    forward: float = 1.0
    train: float = 1.0
    source: str = "not calibrated"


@lru_cache(maxsize=1)
def calibrations() -> dict[str, Calibration]:
    """Calibrations by family; ``other`` is for devices that nobody has published."""
    entries = yaml.safe_load((FOLDER / "calibration.yaml").read_text(encoding="utf-8"))
    return {name: Calibration(**entry) for name, entry in entries.items()}


def calibration_of(cluster: Cluster) -> Calibration:
    """The device's calibration, or that of the nearest family."""
    found = calibrations()
    return found.get(cluster.device.name) or found["other"]


def worked_parameters(model: Model, head: bool) -> float:
    """Weights that a token is multiplied with: no input embedding, no LM head without ``head``."""
    embeddings = model.vocab * model.hidden * (1 if head else 0)
    return float(model.active_parameters - model.embedding_parameters + embeddings)


def forward_flops(model: Model, head: bool, tokens: Number, squares: Number) -> Number:
    """FLOPs of one pass: 2 per weight and token, and causal attention over sum of squared lengths."""
    return 2.0 * worked_parameters(model, head) * tokens + 2.0 * model.layers * model.heads * (
        model.head_dim * squares
    )


def reached(model: Model, micro: Number) -> Number:
    """Share of the peak that micro-batches of so many rows reach: tensor parallelism keeps all tokens on each
    GPU and cuts the matrices, a ring cuts the tokens."""
    experts = REACHED_EXPERTS if model.experts else 1.0
    return REACHED * experts * micro / (micro + HALF_TOKENS)


def inside_rate(cluster: Cluster) -> float:
    """Bytes/s of one GPU in a collective inside a node: what large all-reduces were measured to reach."""
    fraction = get_efficiency(cluster.device.efficiency).link
    return fraction * cluster.device.link_gb_s / 2 * 1e9


def link_rate(cluster: Cluster, gpus: Number) -> Number:
    """Bytes/s of one GPU in a collective over ``gpus``: links inside a node, the network beyond it.

    Collectives of whole nodes send through every GPU's own port.
    """
    inside = inside_rate(cluster)
    return np.where(np.asarray(gpus) <= cluster.gpus_per_node, inside, np.minimum(inside, cluster.network))


@dataclass(frozen=True)
class Pass:
    """A model's work over one step's samples: its tokens and sum of squared lengths."""

    model: Model
    head: bool
    tokens: float
    squares: float


def work_of(job: Job, model: Model, head: bool) -> Pass:
    return Pass(model, head, job.total_tokens, job.square_tokens)


def number_of_micro(tokens: Number, micro: Number, ranks: Number) -> Number:
    """Micro-batches of each rank."""
    return np.ceil(tokens / ranks / micro)


def forward_seconds(
    work: Pass,
    cluster: Cluster,
    world: Number,
    zero: Number,
    micro: Number,
    padded: Number,
    shards: Number,
    tp: Number = 1,
    offload: Number = False,
) -> Number:
    """A pass without gradients over all samples.

    ``micro`` is the tokens of a micro-batch on one GPU, of which ``shards`` = ring x ``tp`` share it;
    ``padded`` >= 1: computed over real tokens. ``offload``: under ZeRO-3 each micro-batch fetches the weights
    from the host.
    """
    flops = padded * forward_flops(work.model, work.head, work.tokens, work.squares)
    compute = flops / (world * cluster.device.peak_flops * reached(work.model, micro * tp))
    batches = number_of_micro(padded * work.tokens, micro * shards, world / shards)
    gather = np.where(zero >= 3, 2.0 * work.model.parameters / link_rate(cluster, world), 0.0) * batches
    fetched = np.where(
        (zero >= 3) & np.asarray(offload, bool), 2.0 * work.model.parameters / world / PCIE, 0.0
    )
    launches = batches * LAUNCH / 3 * work.model.layers / 32
    shared = shard_seconds(work, cluster, world, padded, shards)
    return hidden(compute, gather + fetched * batches) + shared + launches


def train_seconds(
    work: Pass,
    cluster: Cluster,
    world: Number,
    zero: Number,
    micro: Number,
    padded: Number,
    shards: Number,
    checkpointing: Number,
    adam_offload: Number,
    overlap: Number,
    updates: float,
    lora: bool = False,
    tp: Number = 1,
) -> Number:
    """Forward, backward, recomputation, gradient exchange and ``updates`` optimiser steps."""
    forward = padded * forward_flops(work.model, work.head, work.tokens, work.squares)
    passes = np.where(checkpointing, 4.0, 3.0) - (1.0 if lora else 0.0)
    compute = passes * forward / (world * cluster.device.peak_flops * reached(work.model, micro * tp))
    batches = np.maximum(number_of_micro(padded * work.tokens, micro * shards, world / shards), updates)
    size, rate = 2.0 * work.model.parameters, link_rate(cluster, world)
    # ZeRO-3 gathers weights for each pass and scatters gradients in each micro-batch; ZeRO-2 exchanges
    # gradients in each micro-batch, ZeRO-1 once per update.
    times = np.where(zero >= 3, passes * batches, np.where(zero >= 2, batches, updates))
    exchange = np.where(np.asarray(world) > 1, times * size / rate, 0.0)
    hides = np.where((zero >= 3) | np.asarray(overlap, bool), HIDDEN, 0.4)
    launches = batches * LAUNCH * work.model.layers / 32
    shared = (passes - 1) * shard_seconds(work, cluster, world, padded, shards)
    update = updates * update_seconds(work.model, cluster, world, adam_offload)
    return hidden(compute, exchange, hides) + shared + launches + update


def shard_seconds(work: Pass, cluster: Cluster, world: Number, padded: Number, shards: Number) -> Number:
    """What ring and tensor parallelism exchange in one pass, which nothing hides: all-reduces of the hidden
    states twice per layer."""
    tokens = padded * work.tokens / world * shards
    moved = 2 * (np.asarray(shards) - 1) / shards * tokens * work.model.hidden * 2
    seconds = 2.0 * work.model.layers * moved / inside_rate(cluster)
    return np.where(np.asarray(shards) > 1, seconds, 0.0)


def hidden(compute: Number, exchange: Number, share: Number = HIDDEN) -> Number:
    """Seconds of both where ``share`` of the exchange can run beside the computation."""
    return np.maximum(compute, share * exchange) + (1 - share) * exchange


def update_seconds(model: Model, cluster: Cluster, world: Number, adam_offload: Number) -> Number:
    """One optimiser step: through the device's memory, or over PCIe and on the host's cores."""
    count = float(model.parameters)
    device = 30.0 * count / world / cluster.device.bandwidth
    here = np.minimum(world, cluster.gpus_per_node)
    host = 4.0 * count / world / PCIE + count / world * here / HOST_ADAM
    return np.where(adam_offload, host, device)


def reload_seconds(model: Model, world: Number) -> Number:
    """DeepSpeed's state to the host or back."""
    return 14.0 * model.parameters / world / PCIE


def sleep_seconds(model: Model, tp: Number) -> Number:
    """vLLM's weights to the host or back."""
    return 2.0 * model.parameters / tp / PCIE


def sync_seconds(model: Model, cluster: Cluster, hybrid: Number) -> Number:
    """New weights to the engines: tensor by tensor, by CUDA IPC when hybrid, else broadcast, whose time
    hardly depends on the number of engines."""
    tensors = model.layers * (9 + model.experts * model.mlp_matrices)
    rate = np.where(hybrid, inside_rate(cluster), NETWORK * cluster.network)
    return tensors * PER_TENSOR + 2.0 * model.parameters / rate


def padding(job: Job, batching: Number, micro: Number) -> Number:
    """Tokens computed over real ones. Padded micro-batches are as long as their longest sequence."""
    lengths = np.sort(job.prompt.quantiles.mean() + job.response.quantiles)
    shares = (np.arange(len(lengths)) + 1) / len(lengths)
    sizes, where = np.unique(np.asarray(micro, np.float64), return_inverse=True)
    # The longest of ``size`` lengths is at most the k-th quantile with probability share^size.
    longest = np.array([(lengths * np.diff(shares**size, prepend=0)).sum() for size in sizes.tolist()])
    padded = np.maximum(1.0, longest / lengths.mean())[where].reshape(np.shape(micro))
    return np.where(np.asarray(batching) == 0, padded, 1.0)
