"""Composes per-operator times into the engine's tables exactly as Vidur does.

One stage takes ``layers/pp * (attention + mlp + add) + send_recv``, in milliseconds there and in
seconds here (reference: vidur/entities/execution_time.py and
vidur/execution_time_predictor/sklearn_execution_time_predictor.py, microsoft/vidur@7d47513). The
residual ``add`` is counted once per layer, as Vidur does; embedding, LM head and sampling are not
counted at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.exectime.tables import ExecTables
from trimtab.hardware.models import Model

Milliseconds = NDArray[np.float64]

# Operators whose time depends on the tokens of the batch, by Vidur's names.
TOKEN_OPERATORS = (
    "attn_pre_proj",
    "attn_post_proj",
    "attn_rope",
    "input_layernorm",
    "mlp_up_proj",
    "mlp_down_proj",
    "mlp_act",
    "post_attention_layernorm",
    "add",
)
KV_STEP = 64  # kv_cache_prediction_granularity
TOKEN_ROUND = 8
NCCL_LAUNCH_MS = 0.02  # nccl_cpu_launch_overhead_ms; the skew overhead per device is 0 by default
BATCHING_OVERHEAD = 0.1  # attention_{decode,prefill}_batching_overhead_fraction, GQA models only


@dataclass(frozen=True)
class OperatorGrids:
    """Milliseconds of one layer's operators on Vidur's grids.

    by_tokens, kv_save: (tokens+1,), entry 0 unused. decode: (batch+1, kv/64+1), row 0 unused.
    prefill: (kv/64+1, chunk+1), column 0 unused. all_reduce, send_recv: (tokens+1,) or None.
    """

    by_tokens: dict[str, Milliseconds]
    kv_save: Milliseconds
    decode: Milliseconds
    prefill: Milliseconds
    all_reduce: Milliseconds | None
    send_recv: Milliseconds | None


def token_operators(model: Model) -> list[str]:
    """The token operators that a layer of this model has."""
    absent = set() if model.post_attention_norm else {"post_attention_layernorm"}
    return [name for name in TOKEN_OPERATORS if name not in absent]


def compose(
    grids: OperatorGrids, model: Model, pp: int, cpu_s: NDArray[np.float64], source: str
) -> ExecTables:
    """Tables of one stage; see the module's docstring for the formula."""
    scale = model.layers // pp / 1000.0
    layer = np.zeros(len(grids.kv_save))
    for name in token_operators(model):
        layer += grids.by_tokens[name]
    if grids.all_reduce is not None:
        # Once after attention, once after the MLP.
        layer = layer + 2 * (grids.all_reduce + NCCL_LAUNCH_MS)
    overhead = 1.0 + (BATCHING_OVERHEAD if model.grouped_query else 0.0)
    decode = grids.decode * scale
    decode[2:] *= overhead
    decode[0] = 0.0
    prefill = grids.prefill * scale
    prefill[:, 0] = 0.0
    tokens = len(grids.kv_save)
    send = np.zeros(tokens) if grids.send_recv is None else grids.send_recv / 1000.0
    return ExecTables(
        token_s=_from_one(layer * scale),
        kv_write_s=_from_one(grids.kv_save * scale),
        decode_s=decode,
        prefill_s=prefill,
        send_s=_from_one(send),
        cpu_s=cpu_s,
        kv_step=KV_STEP,
        chunk_step=1,
        token_round=TOKEN_ROUND,
        many_prefills_factor=overhead,
        vidur=True,
        source=source,
        operators=_breakdown(grids, model),
    )


def _from_one(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entry 0 stands for an empty batch, which takes no time."""
    result = np.array(row, dtype=np.float64)
    result[0] = 0.0
    return result


def _breakdown(grids: OperatorGrids, model: Model) -> dict[str, float]:
    """Seconds of each operator of one layer for 256 tokens, 64 decodes at 1024 KV, a 256 chunk."""
    tokens = min(256, len(grids.kv_save) - 1)
    times = {name: float(grids.by_tokens[name][tokens]) for name in token_operators(model)}
    times["attn_kv_cache_save"] = float(grids.kv_save[tokens])
    rows, columns = grids.decode.shape
    times["attn_decode"] = float(grids.decode[min(64, rows - 1), min(16, columns - 1)])
    times["attn_prefill"] = float(grids.prefill[0, min(256, grids.prefill.shape[1] - 1)])
    if grids.all_reduce is not None:
        times["all_reduce"] = 2 * (float(grids.all_reduce[tokens]) + NCCL_LAUNCH_MS)
    return {name: milliseconds / 1000.0 for name, milliseconds in times.items()}
