"""``exectime.kind: roofline``: iteration times from published peaks, no profile needed.

Per layer: the projections and the MLP as matrix products, norms, rotary embedding, activation and
residual as memory traffic, attention from its FLOPs and KV bytes, two all-reduces under tensor
parallelism. Each is ``max``-like in compute and memory with efficiencies fitted to measured kernels
(data/hardware/efficiency.yaml). LM head and sampling depend on the sequences of a batch, so they are
in ``cpu_s``; the engine knows one table for all stages, so each stage carries 1/pp of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trimtab.exectime.experts import SLICED, ExpertParallel, dense_mlp, expert_operators
from trimtab.exectime.kernels import Array, Kernels, get_efficiency
from trimtab.exectime.tables import ExecTables
from trimtab.hardware.devices import Device, Node
from trimtab.hardware.models import Model

KV_COLUMNS = 256
CHUNK_COLUMNS = 512
SAMPLING_PASSES = 4  # over float32 logits: cast, penalties, softmax, draw
SAMPLING_US = 30.0  # its kernel launches


def build_roofline(
    model: Model,
    device: Device,
    node: Node,
    tp: int,
    pp: int,
    max_batch: int,
    max_chunk: int,
    max_context: int,
    cpu_s: Array,
    parallel: ExpertParallel = SLICED,
) -> ExecTables:
    """Tables for batches of ``max_batch`` sequences, ``max_chunk`` prompt tokens, ``max_context`` KV.

    ``cpu_s`` (max_batch+1,) is a host overhead per iteration and stage that is added as given;
    ``parallel`` places the experts of a mixture.
    """
    kernels = Kernels(device, node, get_efficiency(device.efficiency), model.dtype_bytes)
    # Grids of at most about 256 x 512: steps grow with the ranges, the engine interpolates.
    kv_step = 16 * max(1, -(-max_context // (16 * KV_COLUMNS)))
    chunk_step = max(1, -(-max_chunk // CHUNK_COLUMNS))
    kv = np.arange(-(-max_context // kv_step) + 1, dtype=np.float64) * kv_step
    chunk = np.arange(-(-max_chunk // chunk_step) + 1, dtype=np.float64) * chunk_step
    batch = np.arange(max_batch + 1, dtype=np.float64)
    tokens = np.arange(max_batch + max_chunk + 1, dtype=np.float64)
    layers = model.layers / pp
    operators = token_operators(kernels, model, tokens, tp, parallel)
    decode = layers * decode_attention(kernels, model, batch[:, None], kv[None, :], tp)
    decode[0] = 0.0
    send = kernels.send(tokens * model.hidden * 2, tp * pp) if pp > 1 else np.zeros_like(tokens)
    per_sequence = head_and_sampling(kernels, model, batch, tp) / pp
    return ExecTables(
        token_s=_from_one(layers * sum(operators.values(), np.zeros_like(tokens))),
        kv_write_s=layers * tokens * 2 * model.kv_bytes_per_token(tp) / model.layers / device.bandwidth,
        decode_s=decode,
        prefill_s=layers * prefill_attention(kernels, model, kv[:, None], chunk[None, :], tp),
        send_s=_from_one(send),
        cpu_s=_from_one(cpu_s + per_sequence),
        kv_step=kv_step,
        chunk_step=chunk_step,
        token_round=1,
        source=f"roofline {model.name} on {device.name}, tp={tp}, pp={pp}, ep={parallel.ranks}",
        operators=_breakdown(kernels, model, operators, tp),
    )


def token_operators(
    kernels: Kernels, model: Model, tokens: Array, tp: int, parallel: ExpertParallel = SLICED
) -> dict[str, Array]:
    """Seconds of one average layer's operators that depend on the tokens of the batch alone."""
    hidden = model.hidden
    rotated = (model.heads + -(-model.kv_heads // tp) * tp) * (model.qk_rope_head_dim or model.head_dim)
    times = {
        **_projections(kernels, model, tokens, tp),
        "attn_rope": kernels.element_wise("rope", 4 * tokens * rotated / tp),
        "input_layernorm": kernels.element_wise("norm", 4 * tokens * hidden),
        "add": kernels.element_wise("add", 6 * tokens * hidden),
        **_mlp(kernels, model, tokens, tp, parallel),
    }
    if model.post_attention_norm:
        times["post_attention_layernorm"] = kernels.element_wise("norm", 4 * tokens * hidden)
    if tp > 1:
        # Once after attention, once after the MLP. Expert-parallel layers keep the tokens apart in between:
        # reduce-scatter before, all-gather after.
        apart = model.moe_layers / model.layers if parallel.ranks > 1 else 0.0
        whole = 2 * (1 - apart) * kernels.all_reduce(tokens * hidden * 2, tp)
        times["all_reduce"] = whole + 2 * apart * kernels.reduce_scatter(tokens * hidden * 2, tp)
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
    kv_heads = -(-model.kv_heads // tp)
    fused = (model.heads / tp + 2 * kv_heads) * model.head_dim
    return {
        "attn_pre_proj": kernels.matrix_product(tokens, model.hidden, fused),
        "attn_post_proj": kernels.matrix_product(tokens, model.heads * model.head_dim / tp, model.hidden),
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
    per_token = model.kv_bytes_per_token(tp) / model.layers

    def seconds(seen: Array) -> Array:
        pairs = count * (seen + 1)
        return kernels.attention_decode(pairs * _flops_per_pair(model, tp, decode=True), pairs * per_token)

    return _with_window(model, seconds, kv)


def prefill_attention(kernels: Kernels, model: Model, past: Array, chunk: Array, tp: int) -> Array:
    """Seconds of one layer's attention of a ``chunk`` after ``past`` cached tokens, causal."""
    per_token = model.kv_bytes_per_token(tp) / model.layers
    queries = 4 * chunk * (model.heads / tp) * (model.v_head_dim or model.head_dim)

    def seconds(seen: Array) -> Array:
        pairs = chunk * seen + chunk * chunk / 2
        if model.sliding_window:
            pairs = np.minimum(pairs, chunk * np.maximum(model.sliding_window, seen))
        num_bytes = (seen + chunk) * per_token + queries
        return kernels.attention_prefill(pairs * _flops_per_pair(model, tp, decode=False), num_bytes)

    return _with_window(model, seconds, past)


def _with_window(model: Model, seconds: Callable[[Array], Array], kv: Array) -> Array:
    """Mean over the layers: some look back ``sliding_window`` tokens only."""
    full = seconds(kv)
    if not model.sliding_window or not model.sliding_layers:
        return np.asarray(full)
    share = model.sliding_layers / model.layers
    return np.asarray((1 - share) * full + share * seconds(np.minimum(kv, model.sliding_window)))


def _flops_per_pair(model: Model, tp: int, decode: bool) -> float:
    """QK' and AV for one query token, one key token, on one device. Latent attention decodes inside
    the latent space (absorbed projections), and prefills with the heads unpacked."""
    heads = model.heads / tp
    if not model.kv_lora_rank:
        return 4 * heads * model.head_dim
    if decode:
        return 2 * heads * (2 * model.kv_lora_rank + model.qk_rope_head_dim)
    return 2 * heads * (model.head_dim + model.qk_rope_head_dim + model.v_head_dim)


def head_and_sampling(kernels: Kernels, model: Model, sequences: Array, tp: int) -> Array:
    """Seconds of LM head (bf16, split over ``tp``) and sampling for one row of logits per sequence."""
    bf16 = Kernels(kernels.device, kernels.node, kernels.efficiency)
    head = bf16.matrix_product(sequences, model.hidden, model.vocab / tp)
    passes = SAMPLING_PASSES * 4 * sequences * model.vocab / kernels.device.bandwidth
    return np.asarray(head + passes + SAMPLING_US * 1e-6)


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
