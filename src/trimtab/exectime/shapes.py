"""What one layer's operators multiply and move on one device: the shapes behind every time.

Tables and profile readers use the same shapes, so that a measured row and a table entry of the same
operator mean the same thing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.hardware.models import Model

Array = NDArray[np.float64]

BF16 = 2  # bytes


def matrix_shapes(model: Model, tp: int) -> dict[str, tuple[float, float]]:
    """(inputs, outputs) of a dense layer's matrix products by operator; plain and grouped attention only.

    Query, key and value are one product, and so are the halves of a gated MLP. KV heads that do not
    divide by ``tp`` are replicated.
    """
    fused = (model.heads / tp + 2 * -(-model.kv_heads // tp)) * model.head_dim
    width = model.ffn / tp
    return {
        "attn_pre_proj": (model.hidden, fused),
        "attn_post_proj": (model.heads * model.head_dim / tp, model.hidden),
        "mlp_up_proj": (model.hidden, (model.mlp_matrices - 1) * width),
        "mlp_down_proj": (width, model.hidden),
    }


def bytes_per_token(model: Model, tp: int) -> dict[str, float]:
    """Bytes that the element-wise operators of a dense layer read and write for one token."""
    rotated = (model.heads + -(-model.kv_heads // tp) * tp) * (model.qk_rope_head_dim or model.head_dim)
    norms = {"input_layernorm": 2.0 * BF16 * model.hidden}
    if model.post_attention_norm:
        norms["post_attention_layernorm"] = 2.0 * BF16 * model.hidden
    return {
        "attn_rope": 2.0 * BF16 * rotated / tp,
        "mlp_act": BF16 * model.mlp_matrices * model.ffn / tp,
        "add": 3.0 * BF16 * model.hidden,
        **norms,
    }


def matrix_flops(rows: Array, inputs: float, outputs: float) -> Array:
    return 2 * rows * inputs * outputs


def matrix_bytes(rows: Array, inputs: float, outputs: float) -> Array:
    """Weights and activations, both bf16."""
    return BF16 * (inputs * outputs + rows * (inputs + outputs))


def decode_work(model: Model, tp: int, batch: Array, kv: Array) -> tuple[Array, Array]:
    """(FLOPs, bytes) of one layer's attention for ``batch`` decodes over ``kv`` cached tokens each."""
    pairs = batch * (kv + 1)
    return pairs * flops_per_pair(model, tp, decode=True), pairs * layer_kv_bytes(model, tp)


def prefill_work(model: Model, tp: int, past: Array, chunk: Array) -> tuple[Array, Array]:
    """(FLOPs, bytes) of one layer's causal attention of a ``chunk`` after ``past`` cached tokens."""
    pairs = chunk * past + chunk * chunk / 2
    queries = 2 * BF16 * chunk * (model.heads / tp) * (model.v_head_dim or model.head_dim)
    num_bytes = (past + chunk) * layer_kv_bytes(model, tp) + queries
    return pairs * flops_per_pair(model, tp, decode=False), num_bytes


def layer_kv_bytes(model: Model, tp: int) -> float:
    """KV bytes of one token in one layer on one device."""
    return model.kv_bytes_per_token(tp) / model.layers


def flops_per_pair(model: Model, tp: int, decode: bool) -> float:
    """QK' and AV for one query token, one key token, on one device. Latent attention decodes inside
    the latent space (absorbed projections), and prefills with the heads unpacked."""
    heads = model.heads / tp
    if not model.kv_lora_rank:
        return 4 * heads * model.head_dim
    if decode:
        return 2 * heads * (2 * model.kv_lora_rank + model.qk_rope_head_dim)
    return 2 * heads * (model.head_dim + model.qk_rope_head_dim + model.v_head_dim)
