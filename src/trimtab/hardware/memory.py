"""How much KV cache is left beside the weights: as production engines plan it, and as Vidur does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trimtab.errors import TrimtabError
from trimtab.hardware.devices import Device
from trimtab.hardware.models import Model
from trimtab.hardware.parallelism import TENSOR_PARALLEL

GIB = 2**30

# What an engine needs beside weights and KV. Fixed: CUDA graphs, collective buffers, allocator slack
# (vLLM logs 0.5 to 1.5 GiB for graphs and non-torch memory of 7B to 70B models). Activations: the
# peak of a profile run with this many tokens and sequences (vLLM's defaults), where the gated MLP's
# two halves, the residual stream and the float32 logits are alive together.
FIXED_GIB = 1.0
PROFILE_TOKENS = 8192
PROFILE_SEQUENCES = 256


@dataclass(frozen=True)
class KvPlan:
    """Memory of one device of a replica, and the KV blocks it leaves.

    ``bytes_per_token`` is on one device; ``num_blocks`` and ``max_tokens_cached`` count the replica's
    tokens (every device holds its share of every token).
    """

    weights_gib: float
    activation_gib: float
    kv_gib: float
    bytes_per_token: float
    num_blocks: int
    max_tokens_cached: int


def plan_kv(
    model: Model,
    device: Device,
    tp: int = 1,
    pp: int = 1,
    block_size: int = 16,
    memory_margin: float = 0.1,
    max_tokens: int | None = None,
    ep: int = 1,
    moe_imbalance: float = 1.0,
) -> KvPlan:
    """KV blocks of one replica: memory * (1 - margin) - weights - activations, on the fullest stage.

    ``max_tokens``, if given, is the longest request that must fit. ``ep`` = tp: whole experts on each
    device, the busiest with ``moe_imbalance`` times the mean tokens.

    Raises
    ------
    TrimtabError
        if the weights, or one request of ``max_tokens``, do not fit: needed, available, and the
        smallest tensor parallelism that would do.
    """
    weights = weight_bytes(model, tp, pp, ep)
    activations = activation_bytes(model, tp, ep, moe_imbalance)
    per_token = model.kv_bytes_per_token(tp, pp)
    free = device.memory_bytes * (1 - memory_margin) - weights - activations
    num_blocks = max(0, int(free // (per_token * block_size)))
    needed_blocks = -(-(max_tokens or 1) // block_size)
    if num_blocks < needed_blocks:

        def needed(degree: int) -> float:
            ranks = degree if ep > 1 else 1
            fixed = weight_bytes(model, degree, pp, ranks)
            fixed += activation_bytes(model, degree, ranks, moe_imbalance)
            return fixed + needed_blocks * block_size * model.kv_bytes_per_token(degree, pp)

        what = f" and one request of {max_tokens} tokens" if max_tokens else ""
        raise TrimtabError(_does_not_fit(model, device, tp, pp, memory_margin, needed, what))
    return KvPlan(
        weights_gib=weights / GIB,
        activation_gib=activations / GIB,
        kv_gib=num_blocks * block_size * per_token / GIB,
        bytes_per_token=per_token,
        num_blocks=num_blocks,
        max_tokens_cached=num_blocks * block_size,
    )


def weight_bytes(model: Model, tp: int, pp: int, ep: int = 1) -> float:
    """Bytes of weights on the fullest device: its layers, and one embedding matrix (both if pp = 1).

    Whole experts on ``ep`` = tp devices weigh what slices of all of them do; shared experts are then on
    every device.
    """
    layers = model.parameters - model.embedding_parameters
    embeddings = model.embedding_parameters if pp == 1 else model.vocab * model.hidden
    # Embeddings stay in bf16 also where the matrices are quantised.
    split = (layers / pp * model.dtype_bytes + embeddings * 2) / tp
    shared = model.moe_layers * model.shared_experts * model.mlp_matrices * model.hidden * model.expert_ffn
    return split + shared / pp * model.dtype_bytes * (1 - 1 / ep)


def activation_bytes(model: Model, tp: int, ep: int = 1, moe_imbalance: float = 1.0) -> float:
    """Bytes beside weights and KV on one device; see the constants above.

    The busiest expert-parallel rank also holds the token copies that were sent to it.
    """
    copies = model.experts_per_token * moe_imbalance / ep
    width = max(model.ffn / tp, copies * model.expert_ffn / (tp / ep))
    received = copies * model.hidden if ep > 1 else 0.0
    alive = (2 * width + received + 4 * model.hidden) * PROFILE_TOKENS * 2
    return FIXED_GIB * GIB + alive + PROFILE_SEQUENCES * model.vocab * 4 / tp


def _does_not_fit(
    model: Model, device: Device, tp: int, pp: int, margin: float, needed: Callable[[int], float], what: str
) -> str:
    """One line with needed and available memory, and the smallest tp that would do."""
    available = device.memory_bytes * (1 - margin)
    degrees = [d for d in TENSOR_PARALLEL if d > tp and model.heads % d == 0 and model.tensor_parallel]
    fitting = [degree for degree in degrees if needed(degree) <= available]
    advice = f"tp={fitting[0]} would fit" if fitting else "no tp up to 8 fits: use more pp or a larger device"
    return (
        f"{model.name}{what} does not fit on {device.name} with tp={tp}, pp={pp}: "
        f"needs {needed(tp) / GIB:.1f} GiB per device, available {available / GIB:.1f} "
        f"of {device.memory_gib:g} GiB; {advice}"
    )


# --- as Vidur counts ----------------------------------------------------------------------------


def params_per_device(model: Model, tp: int = 1, pp: int = 1, active: bool = True) -> float:
    """Weights of one device by Vidur's counter: attention and MLP only, no embeddings.

    Used for MFU (2 FLOPs per parameter and token), so experts count as those one token uses;
    ``active=False`` counts all of them.
    """
    if model.experts or model.kv_lora_rank:
        total = (model.active_parameters if active else model.parameters) - model.embedding_parameters
        return total / tp / pp
    kv_heads = -(-model.kv_heads // tp)
    attention = model.hidden * model.head_dim * (model.heads / tp + 2 * kv_heads)
    attention += model.hidden * model.head_dim * model.heads / tp
    mlp = model.mlp_matrices * model.hidden * model.ffn // tp
    return (attention + mlp) * (model.layers // pp)


def attention_flops_per_pair(model: Model, tp: int = 1, pp: int = 1) -> float:
    """FLOPs of one device per (query token, key token) pair: QK' and AV, as Vidur counts for MFU."""
    return 4 * (model.layers / pp) * (model.heads / tp) * model.head_dim


def vidur_num_blocks(
    model: Model,
    device: Device,
    tp: int,
    pp: int,
    block_size: int,
    margin: float,
    max_tokens: int,
    batch_cap: int | None = None,
) -> tuple[int, int]:
    """(KV blocks, largest batch) by Vidur's memory planner.

    Slots of ``max_tokens`` each that fit beside the weights (embeddings ignored; KV of all layers on
    every stage, then multiplied by the stages); blocks = slots * (max_tokens // block_size) * pp. The
    largest batch is the slots, at most ``batch_cap``.
    """

    def weights(degree: int) -> float:
        return 2 * params_per_device(model, degree, pp, active=False)

    def per_request(degree: int) -> int:
        return 2 * 2 * model.head_dim * -(-model.kv_heads // degree) * max_tokens * model.layers

    slots = int((device.memory_bytes * (1 - margin) - weights(tp)) // per_request(tp))
    if slots < 1:
        what = f" and one request of {max_tokens} tokens"
        raise TrimtabError(
            _does_not_fit(model, device, tp, pp, margin, lambda d: weights(d) + per_request(d), what)
        )
    num_blocks = (max_tokens // block_size) * slots * pp
    return num_blocks, slots if batch_cap is None else min(slots, batch_cap)
