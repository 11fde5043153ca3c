"""Turns a point into something to run: operands in place, each run on other weights or another cache."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.exectime.profile import operators as op
from trimtab.exectime.profile.points import COLLECTIVES, VALUE_BYTES, Point, rows_by_expert
from trimtab.exectime.profile.shapes import Shard
from trimtab.exectime.profile.timing import CudaTimer, Run, Timer

POOL_BYTES = 8 << 30  # far beyond any cache; less where the device has less
POOL_SHARE = 0.4  # of the device's free memory
CPU_POOL_BYTES = 64 << 20
SPREAD = 0.02  # standard deviation of weights: zeros would draw less power and run faster
ALIGNMENT = 128  # values
SCATTER_VALUES = 1 << 28  # of keys, and of values, that tokens are scattered over


class Workbench:
    """Random weights and caches to take operands from, without allocating for each point."""

    def __init__(self, shard: Shard, timer: Timer, largest: int) -> None:
        """``largest``: values of the largest operand that points need; a pool that has not enough of
        them is a TrimtabError of one line."""
        self.shard = shard
        self.timer = timer
        self.device = timer.device
        values = self._pool_values(largest)
        self.pool = torch.empty(values, dtype=torch.bfloat16, device=self.device).normal_(0, SPREAD)

    def _pool_values(self, largest: int) -> int:
        if not isinstance(self.timer, CudaTimer):
            return max(CPU_POOL_BYTES // VALUE_BYTES, largest)
        free = int(torch.cuda.mem_get_info(self.device)[0])
        most = int(free * POOL_SHARE) // VALUE_BYTES
        if largest > most:
            raise TrimtabError(
                f"the largest operand takes {largest * VALUE_BYTES / 2**30:.1f} GiB, but the device has only "
                f"{free / 2**30:.1f} GiB free; stop what else runs there, or raise --tp"
            )
        return max(largest, min(POOL_BYTES // VALUE_BYTES, most))

    def stretch(self, i: int, *shape: int) -> Tensor:
        """The i-th view of that shape into the pool; the pool is gone through, then begun again."""
        size = 1
        for extent in shape:
            size *= extent
        step = -(-size // ALIGNMENT) * ALIGNMENT
        begin = (i % max(1, len(self.pool) // step)) * step
        return self.pool[begin : begin + size].view(shape)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=self.device)

    def integers(self, values: Tensor) -> Tensor:
        return values.to(self.device)


def build(bench: Workbench, point: Point) -> Run:
    """The operator of ``point`` with its operands; each call of the result launches it once."""
    assert point.operator not in COLLECTIVES, "collectives run in processes of their own"
    return _BUILDERS[point.operator](bench, point)


def largest_operand(points: list[Point], shard: Shard) -> int:
    """Values of the largest weight or cache that these points need."""
    sizes = [1]
    for point in points:
        if point.operator == "attn_decode":
            assert point.batch is not None
            assert point.kv is not None
            sizes.append(2 * point.batch * (point.kv + 1) * shard.kv_heads * shard.head_dim)
        elif point.operator == "attn_prefill":
            assert point.chunk is not None
            assert point.kv is not None
            sizes.append(2 * (point.kv + point.chunk) * shard.kv_heads * shard.head_dim)
        elif point.operator == "attn_kv_cache_save":
            sizes.append(2 * (point.tokens or 0) * shard.kv_heads * shard.head_dim)
        elif point.operator == "moe_grouped":
            sizes.append(shard.experts * (shard.halves + 1) * shard.hidden * shard.expert_width)
        elif point.k is not None and point.n is not None:
            sizes.append(point.k * point.n)
    return max(sizes) + ALIGNMENT


def _product(bench: Workbench, point: Point) -> Run:
    assert point.m is not None
    assert point.k is not None
    assert point.n is not None
    outputs, inputs = point.n, point.k
    x = bench.random(point.m, inputs)
    out = bench.random(point.m, outputs)
    return lambda i: torch.mm(x, bench.stretch(i, outputs, inputs).t(), out=out)


def _activation(bench: Workbench, point: Point) -> Run:
    assert point.m is not None
    assert point.n is not None
    width, halves = point.n, bench.shard.halves
    x = bench.random(point.m, halves * width)
    return lambda i: op.activate(x, width, halves == 2)


def _norm(bench: Workbench, point: Point) -> Run:
    assert point.m is not None
    x = bench.random(point.m, bench.shard.hidden)
    weight = bench.random(bench.shard.hidden)
    return lambda i: op.rms_norm(x, weight)


def _add(bench: Workbench, point: Point) -> Run:
    assert point.m is not None
    x, y = bench.random(point.m, bench.shard.hidden), bench.random(point.m, bench.shard.hidden)
    return lambda i: torch.add(x, y, out=x)


def _rope(bench: Workbench, point: Point) -> Run:
    assert point.m is not None
    shard = bench.shard
    rotated = shard.heads + shard.kv_heads
    fused = bench.random(point.m, shard.fused_heads, shard.head_dim)[:, :rotated]
    out = bench.random(point.m, rotated, shard.head_dim)
    table = op.rope_tables(point.m, shard.head_dim, out)
    return lambda i: op.rotate(fused, table, out)


def _save(bench: Workbench, point: Point) -> Run:
    """Into scattered cells of a cache far larger than the device's own."""
    assert point.m is not None
    shard = bench.shard
    heads, width = shard.kv_heads, shard.head_dim
    fused = bench.random(point.m, shard.fused_heads, width)
    keys, values = fused[:, -2 * heads : -heads], fused[:, -heads:]
    half = min(len(bench.pool) // 2, SCATTER_VALUES) // (heads * width)
    halves = bench.stretch(0, 2, half, heads, width)
    cells = bench.integers(_scattered(point.m, half))
    return lambda i: op.save_kv(keys, values, halves[0], halves[1], cells)


def _scattered(count: int, cells: int) -> Tensor:
    """``count`` different cells, far apart, in no order that memory likes."""
    step = max(1, cells // count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order * step % cells


def _decode(bench: Workbench, point: Point) -> Run:
    assert point.batch is not None
    assert point.kv is not None
    return _attention(bench, [1] * point.batch, [point.kv + 1] * point.batch)


def _prefill(bench: Workbench, point: Point) -> Run:
    assert point.chunk is not None
    assert point.kv is not None
    return _attention(bench, [point.chunk], [point.kv + point.chunk])


def _attention(bench: Workbench, queries: list[int], used: list[int]) -> Run:
    shard = bench.shard
    starts = [0, *accumulate(used[:-1])]
    rows = bench.random(sum(queries), shard.heads, shard.head_dim)
    spans = op.make_spans(queries, starts, used, rows)
    cells = sum(used)

    def run(i: int) -> Tensor:
        keys, values = bench.stretch(i, 2, cells, shard.kv_heads, shard.head_dim)
        return op.attend(rows, keys, values, spans)

    return run


def _router(bench: Workbench, point: Point) -> Run:
    """Scores, the best experts, the sort, the copies to the experts' order and the sum back."""
    assert point.m is not None
    shard = bench.shard
    x = bench.random(point.m, shard.hidden)

    def run(i: int) -> Tensor:
        gate = bench.stretch(i, shard.experts, shard.hidden)
        routing = op.route(x, gate, shard.experts_per_token)
        return op.combine(op.dispatch(x, routing), routing)

    return run


def _grouped(bench: Workbench, point: Point) -> Run:
    """All experts' matrices lie in memory; those of experts without tokens are not read."""
    assert point.tokens is not None
    assert point.m is not None
    shard = bench.shard
    hidden, width, halves = shard.hidden, shard.expert_width, shard.halves
    x = bench.random(point.m, hidden)
    ends = bench.integers(torch.from_numpy(rows_by_expert(shard, point.tokens).cumsum()).to(torch.int32))

    def run(i: int) -> Tensor:
        weights = bench.stretch(i, shard.experts * (halves + 1) * width * hidden)
        split = shard.experts * halves * width * hidden
        up = weights[:split].view(shard.experts, halves * width, hidden)
        down = weights[split:].view(shard.experts, hidden, width)
        return op.experts(x, up, down, ends)

    return run


def _sampling(bench: Workbench, point: Point) -> Run:
    assert point.m is not None
    logits = bench.random(point.m, bench.shard.all_vocab)
    temperature = torch.ones(point.m, 1, device=bench.device)
    return lambda i: op.sample(logits, temperature)


_BUILDERS: dict[str, Callable[[Workbench, Point], Run]] = {
    "attn_pre_proj": _product,
    "attn_post_proj": _product,
    "mlp_up_proj": _product,
    "mlp_down_proj": _product,
    "mlp_act": _activation,
    "attn_rope": _rope,
    "input_layernorm": _norm,
    "post_attention_layernorm": _norm,
    "add": _add,
    "attn_prefill": _prefill,
    "attn_decode": _decode,
    "attn_kv_cache_save": _save,
    "lm_head": _product,
    "sampling": _sampling,
    "moe_router": _router,
    "moe_grouped": _grouped,
}
