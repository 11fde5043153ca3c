"""The rivals of a bias: loss terms that push the scores themselves towards an even load.

For a set of tokens, f_j = experts / (k tokens) x (tokens that took j), P_j = mean over tokens of the
normalised score of j, and the term is sum_j f_j P_j: 1 where even, and its gradient goes through P. What
differs is the set over which f is counted. Small sets forbid a sequence of one kind to use few experts
(Fedus et al. 2021, 2101.03961; DeepSeek-V3 2412.19437 per sequence); the whole batch does not (Qiu et al.
2025, 2501.11873).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.moe.gate import Routing


def balancing_loss(routing: Routing, parts: int = 1) -> Tensor:
    """The term of one gate, a scalar: mean over ``parts`` equal runs of tokens, each with its own counts.

    ``parts``: sequences or micro-batches in the batch (tokens are flattened in their order); 1 counts over
    the whole batch.
    """
    tokens, experts = routing.scores.shape
    if parts < 1 or tokens % parts:
        raise TrimtabError(f"{tokens} tokens do not make {parts} equal parts")
    shares = routing.scores / routing.scores.sum(dim=-1, keepdim=True)
    wanted = shares.reshape(parts, -1, experts).mean(dim=1)
    return experts * (frequencies(routing, parts) * wanted).sum(dim=-1).mean()


def frequencies(routing: Routing, parts: int) -> Tensor:
    """Shares of the choices (parts, experts) in each run of tokens; no gradient."""
    taken = torch.zeros_like(routing.scores).scatter_(-1, routing.choices, 1.0)
    counts = taken.reshape(parts, -1, taken.shape[-1]).sum(dim=1)
    return counts / counts.sum(dim=-1, keepdim=True)


def sequence_loss(routings: Sequence[Routing], sequences: int) -> Tensor:
    """Auxiliary loss counted per sequence, summed over gates."""
    return torch.stack([balancing_loss(routing, sequences) for routing in routings]).sum()


def global_batch_loss(routings: Sequence[Routing]) -> Tensor:
    """Auxiliary loss counted over the whole batch, summed over gates."""
    return torch.stack([balancing_loss(routing) for routing in routings]).sum()
