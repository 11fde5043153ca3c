"""A small mixture-of-experts language model over bytes: large enough for experts to specialise on text.

Pre-norm decoder with learned positions; every layer's MLP is a mixture with shared experts. Meant for
studies on a CPU, and so without what costs more time than it gains there (rotary positions, gated units).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.errors import TrimtabError
from trimtab.moe.gate import Routing, TopKGate


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. ``expert_width``: of one expert's inner layer; shared experts are as wide.

    The first ``dense_layers`` have a plain MLP as wide as what a token uses elsewhere: their gates would
    route by the letters alone, and released models start with them too (DeepSeek-V3, GLM-4.5, Kimi K2).
    """

    hidden: int = 96
    layers: int = 3
    heads: int = 3
    dense_layers: int = 1
    experts: int = 32
    top_k: int = 4
    expert_width: int = 48
    shared_experts: int = 1
    scores: str = "sigmoid"
    vocabulary: int = 256
    context: int = 128  # tokens
    look_back: int = 3  # bytes that a position's embedding is the sum of: itself and those before


class Output(NamedTuple):
    """Logits (sequences, tokens, vocabulary) and one `Routing` per layer with experts."""

    logits: Tensor
    routings: list[Routing]


class DenseLayer(nn.Module):
    """A plain MLP."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(hidden, width, bias=False), nn.Linear(width, hidden, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Output of the same shape as ``tokens`` (..., hidden)."""
        out: Tensor = self.down(functional.silu(self.up(tokens)))
        return out


class ExpertLayer(nn.Module):
    """Experts with a gate before them, and shared experts that every token uses."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, hidden = shape.expert_width, shape.hidden
        shared = shape.shared_experts * width
        self.gate = TopKGate(hidden, shape.experts, shape.top_k, scores=shape.scores)
        self.up = nn.Parameter(torch.randn(shape.experts, hidden, width) * hidden**-0.5)
        self.down = nn.Parameter(torch.randn(shape.experts, width, hidden) * (2 * width) ** -0.5)
        self.shared = DenseLayer(hidden, shared) if shared else None

    def forward(self, tokens: Tensor) -> tuple[Tensor, Routing]:
        """Output of the same shape as ``tokens`` (..., hidden), and what the gate decided."""
        routing = self.gate(tokens)
        flat = tokens.reshape(-1, tokens.shape[-1])
        out = self.routed(flat, routing)
        if self.shared is not None:
            out = out + self.shared(flat)
        return out.reshape(tokens.shape), routing

    def routed(self, flat: Tensor, routing: Routing) -> Tensor:
        """Each expert on the tokens that took it: sorted by expert, one matrix product per expert."""
        top_k = routing.choices.shape[-1]
        chosen = routing.choices.reshape(-1)
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=self.gate.experts).tolist()
        rows = flat[order // top_k].split(counts)
        # unbind, because the gradient of up[expert] would be a whole zero array per expert.
        experts = zip(rows, self.up.unbind(), self.down.unbind(), strict=True)
        parts = [functional.silu(part @ up) @ down for part, up, down in experts]
        weighted = torch.cat(parts) * routing.weights.reshape(-1)[order, None].to(flat.dtype)
        return torch.zeros_like(flat).index_add_(0, order // top_k, weighted)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.inputs = nn.Linear(shape.hidden, 3 * shape.hidden, bias=False)
        self.output = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        split = self.inputs(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(-2))
        return out


class Layer(nn.Module):
    """Attention, then a plain MLP or experts, each with a norm before and a residual around it."""

    def __init__(self, shape: Shape, dense: bool) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(shape.hidden), nn.LayerNorm(shape.hidden)
        self.attention = Attention(shape)
        width = shape.expert_width * (shape.top_k + shape.shared_experts)
        self.mlp = DenseLayer(shape.hidden, width) if dense else ExpertLayer(shape)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Routing | None]:
        """The tokens after this layer, and what its gate decided where it has one."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        out = self.mlp(self.mlp_norm(tokens))
        out, routing = out if isinstance(out, tuple) else (out, None)
        return tokens + out, routing


class MoELanguageModel(nn.Module):
    """Bytes (sequences, tokens) in, logits of the next byte out. ``seed`` fixes the initial weights."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        if shape.hidden % shape.heads:
            raise TrimtabError(f"hidden {shape.hidden} must be a multiple of heads ({shape.heads})")
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embeddings = nn.ModuleList(
                nn.Embedding(shape.vocabulary, shape.hidden) for _ in range(shape.look_back)
            )
            self.layers = nn.ModuleList(
                Layer(shape, dense=index < shape.dense_layers) for index in range(shape.layers)
            )
            self.norm = nn.LayerNorm(shape.hidden)
            self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
            self.positions = nn.Embedding(shape.context, shape.hidden)
            # Small tables would leave the first layers' gates and experts blind for hundreds of steps.
            for table in (*self.embeddings, self.positions):
                nn.init.normal_(table.weight, std=0.3)
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, inputs: Tensor) -> Output:
        if inputs.shape[-1] > self.shape.context:
            raise TrimtabError(f"at most {self.shape.context} tokens; given {inputs.shape[-1]}")
        hidden = self.positions.weight[: inputs.shape[-1]] + self.embeddings[0](inputs)
        for back, table in enumerate(self.embeddings[1:], 1):
            hidden = hidden + table(functional.pad(inputs, (back, 0))[:, :-back])
        routings = []
        for layer in self.layers:
            hidden, routing = layer(hidden)
            if routing is not None:
                routings.append(routing)
        return Output(self.head(self.norm(hidden)), routings)

    def gates(self) -> list[TopKGate]:
        """The gates, from the first layer to the last."""
        return [module for module in self.modules() if isinstance(module, TopKGate)]

    def biases(self) -> Tensor:
        """A copy of the biases of all gates (layers, experts), float64."""
        return torch.stack([gate.e_score_correction_bias for gate in self.gates()]).double()

    def set_biases(self, biases: Any) -> None:
        """Copy biases (layers, experts) into the gates."""
        gates = self.gates()
        if len(biases) != len(gates):
            raise TrimtabError(f"biases for {len(gates)} gates are due; given {len(biases)} rows")
        for gate, bias in zip(gates, biases, strict=True):
            gate.set_bias(bias)


def loads_of(routings: list[Routing]) -> Tensor:
    """Tokens per expert of each gate, (layers, experts) float64."""
    return torch.stack([routing.load() for routing in routings])


def scores_of(routings: list[Routing]) -> Tensor:
    """Scores of each gate, (layers, tokens, experts); no gradient."""
    return torch.stack([routing.scores.detach() for routing in routings])


def next_byte_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per byte, of logits (..., vocabulary) and targets (...)."""
    return functional.cross_entropy(logits.flatten(0, -2).float(), targets.reshape(-1))
