"""Mixture-of-experts layers: sliced over tensor-parallel devices, or whole experts on each of them.

Sliced (``ranks`` 1): every device holds 1/tp of every expert and sees every token, so no device can
be busier than another. Expert parallelism (``ranks`` = tp, as vLLM's ``--enable-expert-parallel`` with
sequence-parallel MoE): a device holds experts/ranks whole experts and 1/ranks of the tokens; two
all-to-alls bring token copies to their experts and back, and the layer waits for the busiest rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trimtab.exectime.kernels import Array, Kernels, kernels_for
from trimtab.hardware.devices import Device, Node
from trimtab.hardware.models import Model

ACTIVATION_BYTES = 2  # bf16 also where weights are quantised


@dataclass(frozen=True)
class ExpertParallel:
    """``ranks`` devices with whole experts (1: sliced); ``imbalance``: busiest over mean rank's tokens."""

    ranks: int = 1
    imbalance: float = 1.0


SLICED = ExpertParallel()


def expert_operators(
    kernels: Kernels, model: Model, tokens: Array, tp: int, parallel: ExpertParallel = SLICED
) -> dict[str, Array]:
    """Seconds of one expert layer's operators for ``tokens`` of the whole replica, by operator.

    Routing is random: on the busiest rank each of its experts is chosen by a token with probability
    imbalance * k / experts.
    """
    ranks = parallel.ranks
    chance = model.experts_per_token / model.experts * parallel.imbalance
    touched = model.experts / ranks * (1 - (1 - np.minimum(chance, 1.0)) ** tokens)
    rows = tokens * model.experts_per_token * parallel.imbalance / ranks
    own = _own_tokens(kernels, model, tokens / ranks, tp / ranks)
    grouped = grouped_products(kernels, model, rows, touched, model.expert_ffn / (tp / ranks))
    times = {"moe_router": own["moe_router"]}
    times |= {name: row + own.get(name, 0.0) for name, row in grouped.items()}
    if ranks > 1:
        times["all_to_all"] = 2 * kernels.all_to_all(_copies_bytes(model, rows), ranks)
    return times


def grouped_products(
    kernels: Kernels, model: Model, rows: Array, touched: Array, width: float
) -> dict[str, Array]:
    """Seconds of one device's grouped products: ``rows`` token copies over ``touched`` experts that are
    ``width`` wide on this device. Every touched expert's weights are read once.
    """
    halves = model.mlp_matrices - 1
    up = model.hidden * halves * width
    down = model.hidden * width
    moved = 2 * rows * (model.hidden + halves * width)
    times = {
        "mlp_up_proj": kernels.roof(2 * rows * up, touched * up * kernels.weight_bytes + moved),
        "mlp_act": kernels.element_wise("act", rows, 2 * (halves + 1) * width),
        "mlp_down_proj": kernels.roof(2 * rows * down, touched * down * kernels.weight_bytes + moved),
    }
    factor = kernels.factor("grouped", (model.hidden, width), (rows / np.maximum(touched, 1e-9),))
    return {name: row * factor for name, row in times.items()}


def dense_mlp(kernels: Kernels, model: Model, tokens: Array, width: float) -> dict[str, Array]:
    """Seconds of a plain MLP that is ``width`` wide on this device."""
    halves = model.mlp_matrices - 1
    return {
        "mlp_up_proj": kernels.matrix_product(tokens, model.hidden, halves * width),
        "mlp_act": kernels.element_wise("act", tokens, 2 * (halves + 1) * width),
        "mlp_down_proj": kernels.matrix_product(tokens, width, model.hidden),
    }


def moe_layer_seconds(model: Model, device: Device, node: Node, rows: Array, touched: Array) -> Array:
    """Seconds of one expert layer under expert parallelism, from the loads of its ranks.

    Parameters
    ----------
    rows : (..., ranks)
        token copies that each rank computes (tokens * experts per token, in all).
    touched : (..., ranks)
        experts on each rank that got at least one row.

    Returns
    -------
    (...) seconds: router, shared experts, dispatch, the slowest rank's grouped products, combine.
    """
    kernels = kernels_for(device, node, model.dtype_bytes)
    rows, touched = np.asarray(rows, dtype=np.float64), np.asarray(touched, dtype=np.float64)
    ranks = rows.shape[-1]
    tokens = rows.sum(axis=-1) / model.experts_per_token
    own = _own_tokens(kernels, model, tokens / ranks, 1)
    grouped = grouped_products(kernels, model, rows, touched, model.expert_ffn)
    slowest = sum(grouped.values(), np.zeros_like(rows)).max(axis=-1)
    exchange = 2 * kernels.all_to_all(_copies_bytes(model, rows.max(axis=-1)), ranks)
    return np.asarray(slowest + exchange + sum(own.values(), np.zeros_like(tokens)))


def _own_tokens(kernels: Kernels, model: Model, tokens: Array, slices: float) -> dict[str, Array]:
    """Router and shared experts, on the tokens that a device holds itself."""
    times = {"moe_router": kernels.matrix_product(tokens, model.hidden, model.experts)}
    if model.shared_experts:
        times |= dense_mlp(kernels, model, tokens, model.shared_experts * model.expert_ffn / slices)
    return times


def _copies_bytes(model: Model, rows: Array) -> Array:
    """Bytes that ``rows`` token copies take on the way to, or from, their experts."""
    return rows * model.hidden * ACTIVATION_BYTES
