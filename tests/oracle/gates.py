"""A top-k gate and an expert layer, a token at a time, in plain Python numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence


def scores_of(logits: Sequence[float], name: str) -> list[float]:
    """Scores of one token."""
    if name == "sigmoid":
        return [1.0 / (1.0 + math.exp(-x)) for x in logits]
    if name == "softmax":
        total = sum(math.exp(x) for x in logits)
        return [math.exp(x) / total for x in logits]
    return [math.sqrt(math.log1p(math.exp(x))) for x in logits]


def route(
    logits: Sequence[float],
    bias: Sequence[float],
    top_k: int,
    name: str,
    groups: int,
    top_groups: int,
    normalise: bool,
    scale: float,
) -> dict[int, float]:
    """Expert -> weight of one token."""
    scores = scores_of(logits, name)
    biased = [score + shift for score, shift in zip(scores, bias, strict=True)]
    size = len(scores) // groups
    members = [list(range(group * size, (group + 1) * size)) for group in range(groups)]
    worth = [sum(sorted((biased[j] for j in group), reverse=True)[:2]) for group in members]
    best = sorted(range(groups), key=lambda group: -worth[group])[:top_groups]
    reachable = [j for group in best for j in members[group]]
    chosen = sorted(reachable, key=lambda j: -biased[j])[:top_k]
    total = sum(scores[j] for j in chosen) if normalise else 1.0
    return {j: scale * scores[j] / total for j in chosen}
