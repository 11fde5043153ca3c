"""A decoder with random weights, made of the operators that `trimtab profile` measures: Llama's shape, or
with experts Qwen3-MoE's (without its norms of queries and keys).

A step takes any mix of decodes and prompt chunks. Steps of decodes alone are captured once per batch size
and range of contexts, and replayed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trimtab.errors import TrimtabError
from trimtab.exectime.profile import operators as op
from trimtab.exectime.profile.shapes import Shard

SPREAD = 0.02
GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Piece:
    """One sequence of a batch: its first cell in the cache, the tokens there, and how many come now."""

    start: int
    past: int
    count: int


PADDING = Piece(0, 0, 1)


@dataclass(frozen=True)
class Packed:
    """What a step reads, in two pieces of memory so that two copies bring it to the device.

    longs: token, position and cell of every row, then the row of each sequence whose logits count.
    ints: the spans of the decodes, then those of the prompts, each as ends, starts and used.
    """

    longs: Tensor
    ints: Tensor
    num_rows: int
    num_decodes: int
    num_prompts: int
    most: tuple[int, int, int]  # cells of a decode; rows and cells of a prompt

    def on(self, device: torch.device) -> Packed:
        def moved(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        return replace(self, longs=moved(self.longs), ints=moved(self.ints))

    @property
    def rows(self) -> Tensor:
        """(3, rows): token, position, cell."""
        return self.longs[: 3 * self.num_rows].view(3, self.num_rows)

    @property
    def last(self) -> Tensor:
        return self.longs[3 * self.num_rows :]

    @property
    def decodes(self) -> op.Spans | None:
        return self._spans(0, self.num_decodes, 1, self.most[0])

    @property
    def prompts(self) -> op.Spans | None:
        before = _ints_of(self.num_decodes)
        return self._spans(before, self.num_prompts, self.most[1], self.most[2])

    def _spans(self, begin: int, count: int, queries: int, used: int) -> op.Spans | None:
        if not count:
            return None
        ends, starts, seen = self.ints[begin : begin + _ints_of(count)].split([count + 1, count + 1, count])
        return op.Spans(ends, starts, seen, queries, used)


def _ints_of(count: int) -> int:
    return 3 * count + 2 if count else 0


def pack(decodes: list[Piece], prompts: list[Piece], vocab: int, longest: int = 0) -> Packed:
    """A batch on the host. ``longest`` bounds the decodes' cells where a graph needs one bound for many."""
    starts, pasts, counts = np.array([(p.start, p.past, p.count) for p in [*decodes, *prompts]]).T
    ends = counts.cumsum()
    positions = np.arange(ends[-1]) + np.repeat(pasts - ends + counts, counts)
    cells = positions + np.repeat(starts, counts)
    used = pasts + counts
    ints = []
    for group in (slice(0, len(decodes)), slice(len(decodes), None)):
        if len(counts[group]):
            ints += [[0], counts[group].cumsum(), starts[group], [0], used[group]]
    own = slice(len(decodes), None)
    return Packed(
        torch.from_numpy(np.concatenate([7 * positions % vocab, positions, cells, ends - 1])),
        torch.from_numpy(np.concatenate(ints).astype(np.int32)),
        int(ends[-1]),
        len(decodes),
        len(prompts),
        (longest or int(used[: len(decodes)].max(initial=0)),
         int(counts[own].max(initial=0)), int(used[own].max(initial=0))),
    )  # fmt: skip


class Decoder:
    """``cells`` tokens of cache in every layer; cell 0 is for the padding of graphs."""

    def __init__(self, shard: Shard, cells: int, positions: int, device: torch.device, seed: int = 0) -> None:
        if shard.experts and shard.mlp_widths:
            raise TrimtabError(f"{shard.model} mixes dense and expert layers; this benchmark runs either")
        self.shard = shard
        self.device = device
        self.random = torch.Generator(device).manual_seed(seed)
        hidden, width = shard.hidden, shard.head_dim
        self.embedding = self.weights(shard.vocab, hidden)
        self.head = self.weights(shard.vocab, hidden)
        self.norm = torch.ones(hidden, dtype=torch.bfloat16, device=device)
        self.layers = [self.layer() for _ in range(shard.layers)]
        shape = (cells, shard.kv_heads, width)
        self.caches = [
            torch.zeros(2, *shape, dtype=torch.bfloat16, device=device) for _ in range(shard.layers)
        ]
        self.table = op.rope_tables(positions, width, self.head)
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Packed, Tensor]] = {}

    def weights(self, *shape: int) -> Tensor:
        empty = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return empty.normal_(0, SPREAD, generator=self.random)

    def layer(self) -> dict[str, Tensor]:
        shard = self.shard
        attention = shard.heads * shard.head_dim
        made = {
            "before": self.weights(shard.fused_heads * shard.head_dim, shard.hidden),
            "after": self.weights(shard.hidden, attention),
        }
        if shard.experts:
            width = shard.expert_width
            made["gate"] = self.weights(shard.experts, shard.hidden)
            made["up"] = self.weights(shard.experts, shard.halves * width, shard.hidden)
            made["down"] = self.weights(shard.experts, shard.hidden, width)
        else:
            width = shard.mlp_widths[0]
            made["up"] = self.weights(shard.halves * width, shard.hidden)
            made["down"] = self.weights(shard.hidden, width)
        return made

    # --- one step ---------------------------------------------------------------------------

    def forward(self, inputs: Packed) -> Tensor:
        """(sequences,) the next token of each."""
        logits = self.logits(inputs)
        return op.sample(logits, torch.ones(len(logits), 1, device=self.device))

    def logits(self, inputs: Packed) -> Tensor:
        """(sequences, vocab) of each one's last token."""
        tokens, positions, cells = inputs.rows
        x = self.embedding.index_select(0, tokens)
        table = self.table.index_select(0, positions)
        for layer, cache in zip(self.layers, self.caches, strict=True):
            x.add_(self.attention(op.rms_norm(x, self.norm), layer, cache, table, cells, inputs))
            x.add_(self.mlp(op.rms_norm(x, self.norm), layer))
        last = op.rms_norm(x.index_select(0, inputs.last), self.norm)
        return functional.linear(last, self.head)

    def attention(
        self, x: Tensor, layer: dict[str, Tensor], cache: Tensor, table: Tensor, cells: Tensor, inputs: Packed
    ) -> Tensor:
        shard = self.shard
        heads = functional.linear(x, layer["before"]).view(len(x), shard.fused_heads, shard.head_dim)
        rotated = shard.heads + shard.kv_heads
        turned = op.rotate(heads[:, :rotated], table, torch.empty_like(heads[:, :rotated]))
        op.save_kv(turned[:, shard.heads :], heads[:, rotated:], cache[0], cache[1], cells)
        queries = turned[:, : shard.heads]
        seen = []
        if inputs.decodes is not None:
            seen.append(op.attend(queries[: inputs.num_decodes], cache[0], cache[1], inputs.decodes))
        if inputs.prompts is not None:
            seen.append(op.attend(queries[inputs.num_decodes :], cache[0], cache[1], inputs.prompts))
        together = seen[0] if len(seen) == 1 else torch.cat(seen)
        return functional.linear(together.reshape(len(x), -1), layer["after"])

    def mlp(self, x: Tensor, layer: dict[str, Tensor]) -> Tensor:
        shard = self.shard
        if shard.experts:
            routing = op.route(x, layer["gate"], shard.experts_per_token)
            rows = op.experts(op.dispatch(x, routing), layer["up"], layer["down"], routing.ends)
            return op.combine(rows, routing)
        raised = functional.linear(x, layer["up"])
        return functional.linear(op.activate(raised, shard.mlp_widths[0], shard.halves == 2), layer["down"])

    def step(self, decodes: list[Piece], prompts: list[Piece]) -> list[int]:
        """Run a batch and wait for its tokens, decodes first."""
        return self.run(self.pack(decodes, prompts))

    def pack(self, decodes: list[Piece], prompts: list[Piece]) -> Packed:
        """The host's part of a step. On a GPU, decodes alone are padded to the size of their graph."""
        if self.device.type != "cuda":
            return pack(decodes, prompts, self.shard.vocab)
        longest = 0
        if not prompts:
            size, longest = graph_of(len(decodes), max(piece.past + 1 for piece in decodes))
            decodes = [*decodes, *[PADDING] * (size - len(decodes))]
        packed = pack(decodes, prompts, self.shard.vocab, longest)
        return replace(packed, longs=packed.longs.pin_memory(), ints=packed.ints.pin_memory())

    def run(self, packed: Packed) -> list[int]:
        """To the device, through the layers, and back; decodes alone by their graph."""
        if packed.num_prompts or self.device.type != "cuda":
            return self.forward(packed.on(self.device)).tolist()
        key = packed.num_decodes, packed.most[0]
        if key not in self.graphs:
            self.capture(*key)
        graph, static, tokens = self.graphs[key]
        static.longs.copy_(packed.longs, non_blocking=True)
        static.ints.copy_(packed.ints, non_blocking=True)
        graph.replay()
        return tokens.tolist()

    def capture(self, size: int, longest: int) -> None:
        static = pack([PADDING] * size, [], self.shard.vocab, longest).on(self.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.forward(static)  # what is made on first use must not be made during the capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool):
            tokens = self.forward(static)
        self.graphs[size, longest] = (graph, static, tokens)


def graph_of(count: int, longest: int) -> tuple[int, int]:
    """(batch size, longest context) of the graph that serves ``count`` decodes."""
    size = next((size for size in GRAPH_SIZES if size >= count), count)
    return size, 1 << max(8, (longest - 1).bit_length())
