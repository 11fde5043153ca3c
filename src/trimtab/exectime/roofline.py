"""``exectime.kind: roofline``: iteration times from published peaks and what devices reach of them.

Per layer: the projections and the MLP as matrix products, norms, rotary embedding, activation and
residual as memory traffic, attention from its FLOPs and KV bytes, two all-reduces under tensor
parallelism. Each is ``max``-like in compute and memory, with the device's calibration where one ships
or is given (calibration.py), otherwise with constants (data/hardware/efficiency.yaml). LM head and
sampling depend on the sequences of a batch, so they are in ``cpu_s``; the engine knows one table for
all stages, so each stage carries 1/pp of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from trimtab.exectime.experts import SLICED, ExpertParallel, dense_mlp, expert_operators
from trimtab.exectime.kernels import Array, Kernels
from trimtab.exectime.shapes import (
    bytes_per_token,
    decode_work,
    flops_per_pair,
    layer_kv_bytes,
    matrix_shapes,
    prefill_work,
)
from trimtab.exectime.tables import ExecTables
from trimtab.hardware.models import Model

KV_COLUMNS = 256
CHUNK_COLUMNS = 512
SAMPLING_PASSES = 4  # over float32 logits: cast, penalties, softmax, draw
SAMPLING_US = 30.0  # its kernel launches
EAGER_US = 5.0  # host time per kernel without CUDA graphs; a framework's launch, not a profile


def build_roofline(
    kernels: Kernels,
    model: Model,
    tp: int,
    pp: int,
    max_batch: int,
    max_chunk: int,
    max_context: int,
    cpu_s: Array,
    parallel: ExpertParallel = SLICED,
    eager: bool = False,
) -> ExecTables:
    """Tables for batches of ``max_batch`` sequences, ``max_chunk`` prompt tokens, ``max_context`` KV.

    ``cpu_s`` (max_batch+1,) is a host overhead per iteration and stage that is added as given;
    ``parallel`` places the experts of a mixture. ``eager``: no CUDA graphs, so that a layer takes no less
    than its kernels' launches. No table ever falls when its batch grows.
    """
    # Grids of at most about 256 x 512: steps grow with the ranges, the engine interpolates.
    kv_step = 16 * max(1, -(-max_context // (16 * KV_COLUMNS)))
    chunk_step = max(1, -(-max_chunk // CHUNK_COLUMNS))
    kv = np.arange(-(-max_context // kv_step) + 1, dtype=np.float64) * kv_step
    chunk = np.arange(-(-max_chunk // chunk_step) + 1, dtype=np.float64) * chunk_step
    batch = np.arange(max_batch + 1, dtype=np.float64)
    tokens = np.arange(max_batch + max_chunk + 1, dtype=np.float64)
    layers = model.layers / pp
    operators = token_operators(kernels, model, tokens, tp, parallel)
    layer = sum(operators.values(), np.zeros_like(tokens))
    if eager:
        layer = np.maximum(layer, EAGER_US * 1e-6 * len(operators))
    decode = layers * decode_attention(kernels, model, batch[:, None], kv[None, :], tp)
    decode[0] = 0.0
    prefill = layers * prefill_attention(kernels, model, kv[:, None], chunk[None, :], tp)
    send = kernels.send(tokens * model.hidden * 2, tp * pp) if pp > 1 else np.zeros_like(tokens)
    calibrated = kernels.calibration.source if kernels.calibration else "constants"
    return ExecTables(
        token_s=_rising(_from_one(layers * layer)),
        kv_write_s=_rising(layers * kv_write(kernels, model, tokens, tp)),
        decode_s=_rising(decode),
        prefill_s=_rising(prefill),
        send_s=_rising(_from_one(send)),
        cpu_s=_rising(_from_one(cpu_s + per_sequence(kernels, model, batch, tp) / pp)),
        kv_step=kv_step,
        chunk_step=chunk_step,
        token_round=1,
        source=f"roofline {model.name} on {kernels.device.name}, tp={tp}, pp={pp}, ep={parallel.ranks}, "
        f"{calibrated}",
        operators=_breakdown(kernels, model, operators, tp),
    )


def _rising(table: Array) -> Array:
    for axis in range(table.ndim):
        table = np.maximum.accumulate(table, axis=axis)
    return table


def token_operators(
    kernels: Kernels, model: Model, tokens: Array, tp: int, parallel: ExpertParallel = SLICED
) -> dict[str, Array]:
    """Seconds of one average layer's operators that depend on the tokens of the batch alone."""
    sizes = bytes_per_token(model, tp)
    times = {
        **_projections(kernels, model, tokens, tp),
        "attn_rope": kernels.element_wise("rope", tokens, sizes["attn_rope"]),
        "input_layernorm": kernels.element_wise("norm", tokens, sizes["input_layernorm"]),
        "add": kernels.element_wise("add", tokens, sizes["add"]),
        **_mlp(kernels, model, tokens, tp, parallel),
    }
    if model.post_attention_norm:
        times["post_attention_layernorm"] = kernels.element_wise(
            "norm", tokens, sizes["post_attention_layernorm"]
        )
    if tp > 1:
        # Once after attention, once after the MLP. Expert-parallel layers keep the tokens apart in between:
        # reduce-scatter before, all-gather after.
        apart = model.moe_layers / model.layers if parallel.ranks > 1 else 0.0
        whole = 2 * (1 - apart) * kernels.all_reduce(tokens * model.hidden * 2, tp)
        times["all_reduce"] = whole + 2 * apart * kernels.reduce_scatter(tokens * model.hidden * 2, tp)
    return times


def _projections(kernels: Kernels, model: Model, tokens: Array, tp: int) -> dict[str, Array]:
    if model.kv_lora_rank:
        down, *rest = model.latent_projections
        times = kernels.matrix_product(tokens, down[0], down[1] if model.q_lora_rank else down[1] / tp)
        for inputs, outputs in rest[:-1]:
            # Down-projections to the latent are whole on every device; the up-projections are split.
            split = 1 if inputs == model.hidden else tp
            times = times + kernels.matrix_product(tokens, inputs, outputs / split)
        inputs, outputs = rest[-1]
        return {
            "attn_pre_proj": times,
            "attn_post_proj": kernels.matrix_product(tokens, inputs / tp, outputs),
        }
    shapes = matrix_shapes(model, tp)
    return {
        name: kernels.matrix_product(tokens, *shapes[name]) for name in ("attn_pre_proj", "attn_post_proj")
    }


def _mlp(
    kernels: Kernels, model: Model, tokens: Array, tp: int, parallel: ExpertParallel
) -> dict[str, Array]:
    """The MLP of an average layer: dense and expert layers in their shares."""
    share = model.moe_layers / model.layers
    dense = dense_mlp(kernels, model, tokens, model.ffn / tp)
    times = {name: (1 - share) * row for name, row in dense.items()}
    if not model.experts:
        return times
    experts = expert_operators(kernels, model, tokens, tp, parallel)
    return {name: times.get(name, 0.0) + share * row for name, row in experts.items()}


def decode_attention(kernels: Kernels, model: Model, count: Array, kv: Array, tp: int) -> Array:
    """Seconds of one layer's attention for ``count`` decodes over ``kv`` tokens each."""
    key = (flops_per_pair(model, tp, decode=True), layer_kv_bytes(model, tp))

    def seconds(seen: Array) -> Array:
        flops, num_bytes = decode_work(model, tp, count, seen)
        return kernels.attention_decode(flops, num_bytes) * kernels.factor("decode", key, (count, seen))

    return _with_window(model, seconds, kv)


def prefill_attention(kernels: Kernels, model: Model, past: Array, chunk: Array, tp: int) -> Array:
    """Seconds of one layer's attention of a ``chunk`` after ``past`` cached tokens, causal."""
    pair = flops_per_pair(model, tp, decode=False)

    def seconds(seen: Array) -> Array:
        flops, num_bytes = prefill_work(model, tp, seen, chunk)
        if model.sliding_window:
            flops = np.minimum(flops, pair * chunk * np.maximum(model.sliding_window, seen))
        return kernels.attention_prefill(flops, num_bytes) * kernels.factor("prefill", (pair,), (chunk, seen))

    return _with_window(model, seconds, past)


def _with_window(model: Model, seconds: Callable[[Array], Array], kv: Array) -> Array:
    """Mean over the layers: some look back ``sliding_window`` tokens only."""
    full = seconds(kv)
    if not model.sliding_window or not model.sliding_layers:
        return np.asarray(full)
    share = model.sliding_layers / model.layers
    return np.asarray((1 - share) * full + share * seconds(np.minimum(kv, model.sliding_window)))


def kv_write(kernels: Kernels, model: Model, tokens: Array, tp: int) -> Array:
    """Seconds of one layer's write of keys and values; without a measurement at the full bandwidth."""
    size = 2 * layer_kv_bytes(model, tp)
    if kernels.lattice("kv_save") is not None:
        return _from_one(kernels.element_wise("kv_save", tokens, size))
    return tokens * size / kernels.device.bandwidth


def per_sequence(kernels: Kernels, model: Model, sequences: Array, tp: int) -> Array:
    """Seconds of LM head (bf16, split over ``tp``), sampling for one row of logits per sequence, and the
    host's overhead where it was measured."""
    bf16 = kernels if kernels.weight_bytes == 2 else replace(kernels, weight_bytes=2.0, lattices={})
    head = bf16.matrix_product(sequences, model.hidden, model.vocab / tp)
    logits = 4.0 * model.vocab
    sampling, host = kernels.lattice("sampling"), kernels.lattice("cpu_overhead")
    if sampling is not None:
        times = head + sampling.seconds((logits,), (sequences,))
    else:
        passes = SAMPLING_PASSES * sequences * logits / kernels.device.bandwidth
        times = head + passes + SAMPLING_US * 1e-6
    return np.asarray(times if host is None else times + host.seconds((1.0,), (sequences,)))


def _from_one(row: Array) -> Array:
    """Entry 0 stands for an empty batch, which takes no time."""
    result = np.array(row, dtype=np.float64)
    result[0] = 0.0
    return result


def _breakdown(kernels: Kernels, model: Model, operators: dict[str, Array], tp: int) -> dict[str, float]:
    """Seconds of each operator of one layer for 256 tokens, 64 decodes at 1024 KV, a 256 chunk."""
    tokens = min(256, len(next(iter(operators.values()))) - 1)
    times = {name: float(row[tokens]) for name, row in operators.items()}
    at = np.array([1024.0])
    times["attn_decode"] = float(decode_attention(kernels, model, np.array([64.0]), at, tp)[0])
    times["attn_prefill"] = float(prefill_attention(kernels, model, 0 * at, np.array([256.0]), tp)[0])
    return times
