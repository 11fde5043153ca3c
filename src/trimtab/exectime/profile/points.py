"""What is measured: the grids, one point per row of the profile, each with its FLOPs and bytes.

``bytes`` is the least traffic to memory: every operand read once, every result written once, 2 bytes per
value (logits that are sampled: 4). What a row counts, a table that is built from it counts, too: per
token or pair it is one number, so the weights of norms and the queries of decodes are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trimtab.exectime.profile.shapes import Shard
from trimtab.exectime.profile_schema import OPERATORS

VALUE_BYTES = 2  # bf16
ORDER = tuple(OPERATORS)
COLLECTIVES = ("all_reduce", "all_to_all", "send_recv")


@dataclass(frozen=True)
class Point:
    """One row of the profile before it is measured. None: the column does not apply.

    The columns are those of ``exectime/profile_schema.py``; besides, ``batch`` counts the devices of a
    collective, and ``m, n`` the rows and values per row of an element-wise operator.
    """

    operator: str
    tokens: int | None = None
    batch: int | None = None
    kv: int | None = None
    chunk: int | None = None
    m: int | None = None
    k: int | None = None
    n: int | None = None
    flops: float = 0.0
    bytes: float = 0.0
    graph: bool = True


@dataclass(frozen=True)
class Grid:
    """Where to measure. ``eager_every``: every how many-th point is measured eagerly, too."""

    tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    pasts: tuple[int, ...]
    eager_every: int
    repeats: int
    longest: int = 40960  # tokens of past and chunk together


def geometric(first: int, last: int, per_octave: int) -> tuple[int, ...]:
    """Whole numbers from ``first`` to ``last``, ``per_octave`` of them to each doubling.

    >>> geometric(128, 512, 2)
    (128, 181, 256, 362, 512)
    """
    values = []
    step = 0
    while (value := round(first * 2 ** (step / per_octave))) < last:
        values.append(value)
        step += 1
    return tuple(dict.fromkeys([*values, last]))


def full_grid() -> Grid:
    """Dense where engines spend their time: every count that a small decode batch can have."""
    dense = (*range(1, 65), *range(68, 257, 4), *range(264, 513, 8))
    return Grid(
        tokens=(*dense, *geometric(512, 16384, 8)[1:]),
        sequences=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256),
        contexts=geometric(128, 32768, 2),
        chunks=geometric(16, 8192, 4),
        pasts=(0, *geometric(128, 32768, 1)),
        eager_every=8,
        repeats=20,
    )


def quick_grid() -> Grid:
    """A tenth of the points, for a first look."""
    return Grid(
        tokens=(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192),
        sequences=(1, 4, 16, 64, 128, 256),
        contexts=geometric(128, 32768, 1)[::2],
        chunks=geometric(32, 8192, 1)[::2],
        pasts=(0, 512, 2048, 8192),
        eager_every=4,
        repeats=10,
    )


def cpu_grid() -> Grid:
    """A handful of points: the path of a profile, on a machine without a GPU."""
    return Grid(
        tokens=(1, 4, 16, 64),
        sequences=(1, 4, 8),
        contexts=(16, 64, 256),
        chunks=(16, 64),
        pasts=(0, 64),
        eager_every=1,
        repeats=3,
    )


def points(shard: Shard, grid: Grid, kv_capacity: int, graphs: bool) -> list[Point]:
    """All points of a shard that run on one device, operator by operator.

    ``kv_capacity`` is the most tokens that a replica can cache: larger decode batches cannot occur.
    Without ``graphs`` every point is eager.
    """
    found = [point for make in _BY_TOKENS for point in make(shard, grid)]
    found += _decodes(shard, grid, kv_capacity)
    found += _prefills(shard, grid)
    found += _per_sequence(shard, grid)
    found.sort(key=lambda point: ORDER.index(point.operator))
    if not graphs:
        return [replace(point, graph=False) for point in found]
    eager = [replace(point, graph=False) for point in _every(found, grid.eager_every)]
    return sorted([*found, *eager], key=lambda point: ORDER.index(point.operator))


def _every(found: list[Point], step: int) -> Iterator[Point]:
    """Every ``step``-th point of each operator, its last one included."""
    for name in ORDER:
        own = [point for point in found if point.operator == name]
        yield from reversed(own[::-1][::step])


# --- operators by tokens ------------------------------------------------------------------------


def _product(operator: str, tokens: int, inputs: int, outputs: int) -> Point:
    """``tokens`` rows through an (inputs x outputs) weight matrix."""
    flops = 2.0 * tokens * inputs * outputs
    moved = inputs * outputs + tokens * (inputs + outputs)
    return Point(
        operator, tokens, m=tokens, k=inputs, n=outputs, flops=flops, bytes=float(VALUE_BYTES * moved)
    )


def _rows(operator: str, tokens: int, width: int, flops: int, values: int) -> Point:
    """An element-wise operator with ``tokens`` rows of ``width`` results."""
    return Point(operator, tokens, m=tokens, n=width, flops=float(flops), bytes=float(VALUE_BYTES * values))


def _projections(shard: Shard, grid: Grid) -> Iterator[Point]:
    attention = shard.heads * shard.head_dim
    for tokens in grid.tokens:
        yield _product("attn_pre_proj", tokens, shard.hidden, shard.fused_heads * shard.head_dim)
        yield _product("attn_post_proj", tokens, attention, shard.hidden)
        for width in shard.mlp_widths:
            yield _product("mlp_up_proj", tokens, shard.hidden, shard.halves * width)
            yield _product("mlp_down_proj", tokens, width, shard.hidden)


def _activations(shard: Shard, grid: Grid) -> Iterator[Point]:
    for tokens in grid.tokens:
        for width in shard.mlp_widths:
            cells = tokens * width
            yield _rows("mlp_act", tokens, width, 5 * cells, (shard.halves + 1) * cells)


def _element_wise(shard: Shard, grid: Grid) -> Iterator[Point]:
    rotated = (shard.heads + shard.kv_heads) * shard.head_dim
    saved = 2 * shard.kv_heads * shard.head_dim
    norms = ["input_layernorm", *(["post_attention_layernorm"] if shard.post_attention_norm else [])]
    for tokens in grid.tokens:
        cells = tokens * shard.hidden
        for name in norms:
            yield _rows(name, tokens, shard.hidden, 4 * cells, 2 * cells)
        yield _rows("add", tokens, shard.hidden, cells, 3 * cells)
        yield _rows("attn_rope", tokens, rotated, 3 * tokens * rotated, 2 * tokens * rotated)
        yield _rows("attn_kv_cache_save", tokens, saved, 0, 2 * tokens * saved)


def _mixture(shard: Shard, grid: Grid) -> Iterator[Point]:
    """The router with dispatch and combine; the experts: up, activation and down, grouped."""
    if not shard.experts:
        return
    hidden, width = shard.hidden, shard.expert_width
    for tokens in grid.tokens:
        rows = tokens * shard.experts_per_token
        gate = _product("moe_router", tokens, hidden, shard.experts)
        carried = 2 * VALUE_BYTES * hidden * (rows + tokens)  # to the experts and back
        yield replace(gate, bytes=gate.bytes + carried)
        touched = int(np.count_nonzero(rows_by_expert(shard, tokens)))
        matrices = (shard.halves + 1) * hidden * width
        passed = rows * 2 * (hidden + (shard.halves + 1) * width)
        yield Point(
            "moe_grouped",
            tokens,
            touched,
            m=rows,
            k=hidden,
            n=width,
            flops=2.0 * rows * matrices,
            bytes=float(VALUE_BYTES * (touched * matrices + passed)),
        )


def rows_by_expert(shard: Shard, tokens: int) -> NDArray[np.int64]:
    """(experts,) token copies that each expert gets of a batch, all experts equally likely.

    Larger batches begin as smaller ones do, so that they never touch fewer experts.
    """
    chosen = _chosen(shard.experts, shard.experts_per_token, 2 ** (tokens - 1).bit_length())
    return np.bincount(chosen[:tokens].ravel(), minlength=shard.experts)


@lru_cache(maxsize=16)
def _chosen(experts: int, per_token: int, tokens: int) -> NDArray[np.int64]:
    """(tokens, per_token) different experts of each token."""
    scores = np.random.default_rng(0).random((tokens, experts))
    return np.argpartition(scores, per_token - 1, axis=1)[:, :per_token]


_BY_TOKENS = (_projections, _activations, _element_wise, _mixture)


# --- attention, and what depends on the sequences -----------------------------------------------


def _decodes(shard: Shard, grid: Grid, kv_capacity: int) -> list[Point]:
    return [
        decode_point(shard, batch, kv)
        for batch in grid.sequences
        for kv in grid.contexts
        if batch * kv <= kv_capacity
    ]


def decode_point(shard: Shard, batch: int, kv: int) -> Point:
    """``batch`` sequences with ``kv`` cached tokens each; the new token attends to itself, too."""
    pairs = batch * (kv + 1)
    moved = 2 * shard.kv_heads * pairs
    return Point(
        "attn_decode",
        batch,
        batch,
        kv,
        flops=4.0 * shard.heads * shard.head_dim * pairs,
        bytes=float(VALUE_BYTES * shard.head_dim * moved),
    )


def _prefills(shard: Shard, grid: Grid) -> list[Point]:
    return [
        prefill_point(shard, past, chunk)
        for past in grid.pasts
        for chunk in grid.chunks
        if past + chunk <= grid.longest
    ]


def prefill_point(shard: Shard, past: int, chunk: int) -> Point:
    """One sequence: a ``chunk`` of its prompt after ``past`` cached tokens, causal."""
    pairs = chunk * past + chunk * chunk / 2
    moved = 2 * shard.kv_heads * (past + chunk) + 2 * shard.heads * chunk
    return Point(
        "attn_prefill",
        chunk,
        1,
        past,
        chunk,
        flops=4.0 * shard.heads * shard.head_dim * pairs,
        bytes=float(VALUE_BYTES * shard.head_dim * moved),
    )


def _per_sequence(shard: Shard, grid: Grid) -> Iterator[Point]:
    """One row of logits per sequence; and the host's part of a step."""
    most = max(grid.sequences)
    for rows in [tokens for tokens in grid.tokens if tokens <= most]:
        yield replace(_product("lm_head", rows, shard.hidden, shard.vocab), batch=rows)
        logits = rows * shard.all_vocab
        yield replace(_rows("sampling", rows, shard.all_vocab, 8 * logits, 2 * logits), batch=rows)
    for batch in grid.sequences:
        yield Point("cpu_overhead", batch=batch, n=shard.kernels_per_step)


def collective_points(shard: Shard, grid: Grid, devices: int) -> list[Point]:
    """All-reduce and all-to-all of the tensor-parallel group, send to the next pipeline stage.

    ``bytes`` is the message of one device; ``batch`` the devices that take part. What needs more
    than ``devices`` is left out.
    """
    wanted = [("send_recv", 2, 1)]
    if shard.tp > 1:
        wanted.append(("all_reduce", shard.tp, 1))
        if shard.experts:
            wanted.append(("all_to_all", shard.tp, shard.experts_per_token))
    found = []
    for name, size, copies in sorted(wanted):
        for tokens in grid.tokens if size <= devices else ():
            rows = tokens * copies
            if name == "all_to_all":
                rows = -(-rows // size) * size  # an equal part for everyone
            message = float(VALUE_BYTES * rows * shard.hidden)
            found.append(Point(name, tokens, size, m=rows, n=shard.hidden, bytes=message, graph=False))
    return found
