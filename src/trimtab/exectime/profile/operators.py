"""The operators of a decoder layer in torch: what the profile measures is what the benchmark's model runs.

Plain torch kernels, so that a bare torch will do: the rotation takes four and the gated activation two
where engines fuse each into one. Attention over the cache is flash attention, one call for any mix of
lengths; a sequence's keys lie side by side in its slot of the cache. A paged cache reads the same bytes
in pieces of a page.

Shapes: x (tokens, hidden); heads (tokens, heads, head_dim); caches (cells, kv_heads, head_dim), where a
sequence's tokens are the cells from its start on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

NORM_EPSILON = 1e-5
ROPE_BASE = 500_000.0


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, NORM_EPSILON)


def rope_tables(positions: int, head_dim: int, like: Tensor) -> Tensor:
    """(positions, 2, 1, head_dim/2): cosines and sines by position."""
    rates = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim)
    angles = torch.arange(positions, device=like.device, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.cos(), angles.sin()], dim=1)[:, :, None, :].to(like.dtype)


def rotate(heads: Tensor, table: Tensor, out: Tensor) -> Tensor:
    """Turn each head by its token's angle. ``table`` (tokens, 2, 1, head_dim/2)."""
    half = heads.shape[-1] // 2
    left, right = heads[..., :half], heads[..., half:]
    cosine, sine = table[:, 0], table[:, 1]
    torch.mul(left, cosine, out=out[..., :half]).addcmul_(right, sine, value=-1)
    torch.mul(right, cosine, out=out[..., half:]).addcmul_(left, sine)
    return out


def activate(raised: Tensor, width: int, gated: bool) -> Tensor:
    """silu(gate) * up of (rows, 2*width), or gelu of (rows, width)."""
    if not gated:
        return functional.gelu(raised)
    return functional.silu(raised[:, :width]).mul_(raised[:, width:])


def save_kv(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, cells: Tensor) -> None:
    """Write each token's key and value to its cell."""
    key_cache.index_copy_(0, cells, keys)
    value_cache.index_copy_(0, cells, values)


@dataclass(frozen=True)
class Spans:
    """Which rows of the queries see which cells of the cache.

    query_ends: (sequences+1,) int32, cumulative rows. starts: (sequences+1,) int32, first cell of each
    sequence, and one more that nobody reads. used: (sequences,) int32, cells seen, own tokens included.
    most_queries, most_used: upper bounds of any sequence's rows and cells.
    """

    query_ends: Tensor
    starts: Tensor
    used: Tensor
    most_queries: int
    most_used: int


def make_spans(queries: list[int], starts: list[int], used: list[int], like: Tensor) -> Spans:
    ends = [0]
    for count in queries:
        ends.append(ends[-1] + count)

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=like.device)

    return Spans(ints(ends), ints([*starts, starts[-1] + used[-1]]), ints(used), max(queries), max(used))


def attend(queries: Tensor, key_cache: Tensor, value_cache: Tensor, spans: Spans) -> Tensor:
    """Causal attention of (rows, heads, head_dim), the last query of a sequence aligned to its last key.

    One query per sequence takes the kernel's decode path: the heads that share a KV head are one
    tile, and long caches are split over the multiprocessors.
    """
    if not queries.is_cuda:
        return _attend_one_by_one(queries, key_cache, value_cache, spans)
    # By its operator: torch's public wrapper has changed its arguments from version to version.
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        queries,
        key_cache,
        value_cache,
        spans.query_ends,
        spans.starts,
        spans.most_queries,
        spans.most_used,
        0.0,
        True,
        False,
        seqused_k=spans.used,
    )[0]
    return attended


def _attend_one_by_one(queries: Tensor, key_cache: Tensor, value_cache: Tensor, spans: Spans) -> Tensor:
    """The same on a CPU, which has no flash attention over many lengths."""
    parts = []
    ends, starts = spans.query_ends.tolist(), spans.starts.tolist()
    for i, used in enumerate(spans.used.tolist()):
        rows = queries[ends[i] : ends[i + 1]].transpose(0, 1)
        keys = key_cache[starts[i] : starts[i] + used].transpose(0, 1)
        values = value_cache[starts[i] : starts[i] + used].transpose(0, 1)
        count = rows.shape[1]
        mask = torch.ones(count, used, dtype=torch.bool).tril(used - count)
        seen = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, enable_gqa=True)
        parts.append(seen.transpose(0, 1))
    return torch.cat(parts)


@dataclass(frozen=True)
class Routing:
    """Where token copies go. order: (rows,) row -> copy, sorted by expert; ends: (experts,) int32
    cumulative rows; weights: (tokens, experts per token)."""

    order: Tensor
    ends: Tensor
    weights: Tensor


def route(x: Tensor, gate: Tensor, experts_per_token: int) -> Routing:
    """The experts of each token by the gate (experts, hidden), without waiting for the device."""
    scores = functional.linear(x, gate).float().softmax(dim=-1)
    weights, chosen = scores.topk(experts_per_token, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    sorted_experts, order = chosen.flatten().sort()
    every = torch.arange(gate.shape[0], device=x.device, dtype=sorted_experts.dtype)
    ends = torch.searchsorted(sorted_experts, every, right=True, out_int32=True)
    return Routing(order, ends, weights.to(x.dtype))


def dispatch(x: Tensor, routing: Routing) -> Tensor:
    """(rows, hidden): the copies of tokens in the order of their experts."""
    return x.index_select(0, routing.order // routing.weights.shape[1])


def experts(rows: Tensor, up: Tensor, down: Tensor, ends: Tensor) -> Tensor:
    """(rows, hidden): each row through its expert; up (experts, halves*width, hidden), down (experts,
    hidden, width)."""
    raised = functional.grouped_mm(rows, up.transpose(1, 2), offs=ends)
    width = down.shape[2]
    return functional.grouped_mm(
        activate(raised, width, up.shape[1] > width), down.transpose(1, 2), offs=ends
    )


def combine(rows: Tensor, routing: Routing) -> Tensor:
    """(tokens, hidden): the weighted sum of each token's copies."""
    tokens, copies = routing.weights.shape
    back = torch.empty_like(rows).index_copy_(0, routing.order, rows)
    return torch.bmm(routing.weights[:, None, :], back.view(tokens, copies, -1)).squeeze(1)


def sample(logits: Tensor, temperature: Tensor) -> Tensor:
    """One token per row, by its probability; temperature (rows, 1). No wait for the device."""
    chances = (logits.float() / temperature).softmax(dim=-1)
    return chances.div_(torch.empty_like(chances).exponential_()).argmax(dim=-1)
