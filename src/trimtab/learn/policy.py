"""The scorer of ``routers.learned`` in torch, and its way into the engine and back.

A batch of decisions is padded to the widest: ``features`` (B, R, F), ``accepting`` (B, R) bool,
``present`` (B, R) bool (False for padding), ``bias`` (B, R), ``pooled`` (B, POOLED).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.learn.sealed import write_whole
from trimtab.routers.features import CONTEXT, FEATURES, NUM_CONTEXT, NUM_FEATURES
from trimtab.routers.learned import POOLED, parts
from trimtab.routers.policy_file import FORMAT, Policy

HIDDEN = 6


@dataclass
class Decisions:
    """A batch of B decisions over at most R replicas; see the module."""

    features: Tensor
    accepting: Tensor
    present: Tensor
    bias: Tensor
    pooled: Tensor  # (B, POOLED): mean and minimum of every feature over the pool, then the context
    chosen: Tensor  # (B,) index within the pool

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, rows: Any) -> Decisions:
        return Decisions(**{name: value[rows] for name, value in vars(self).items()})


def unpack(rows: NDArray[np.float32]) -> Decisions:
    """Rows that the engine kept (see ``routers.learned.record``)."""
    width = (rows.shape[1] - 2 - NUM_CONTEXT) // (2 + NUM_FEATURES)
    table = torch.from_numpy(np.ascontiguousarray(rows))
    each = table[:, 2 + NUM_CONTEXT :].reshape(len(rows), width, 2 + NUM_FEATURES)
    present = torch.arange(width)[None, :] < table[:, 1:2]
    features = each[:, :, 2:].contiguous()
    pooled = [
        torch.cat([_pool(features[part], present[part]), table[part, 2 : 2 + NUM_CONTEXT]], dim=1)
        for part in parts_of(len(rows))
    ]
    return Decisions(
        features=features,
        accepting=(each[:, :, 0] > 0) & present,
        present=present,
        bias=each[:, :, 1].contiguous(),
        pooled=torch.cat(pooled),
        chosen=table[:, 0].long(),
    )


def parts_of(count: int, size: int = 4096) -> list[slice]:
    """Pieces that stay in the processor's cache: several times faster than all at once."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _pool(features: Tensor, present: Tensor) -> Tensor:
    mask = present[:, :, None]
    mean = (features * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.cat([mean, features.masked_fill(~mask, float("inf")).amin(dim=1)], dim=1)


class Scorer(nn.Module):
    """Scores (B, R), -inf where a replica does not accept."""

    def __init__(self, hidden: int = HIDDEN, seed: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        generator = torch.Generator().manual_seed(seed)
        for name, (rows, columns) in parts(hidden).items():
            scale = {"last": 0.1, "skip": 0.0, "bias": 0.0, "inner_bias": 0.0}.get(name, (2 / rows) ** 0.5)
            values = scale * torch.randn(rows, columns, generator=generator)
            self.register_parameter(name, nn.Parameter(values))

    def forward(self, decisions: Decisions) -> Tensor:
        row, column = decisions.present.nonzero(as_tuple=True)  # padding is not computed
        features = decisions.features[row, column]
        shared = decisions.pooled @ self.pooled + self.bias
        first = torch.relu(features @ self.own + shared[row])
        second = torch.relu(first @ self.inner + self.inner_bias)
        score = second @ self.last[0] + features @ self.skip[0]
        scores = torch.zeros(decisions.present.shape).index_put((row, column), score) + decisions.bias
        return scores.masked_fill(~decisions.accepting, float("-inf"))

    def lean_on_heuristic(self, sharpness: float) -> None:
        """Start as a heuristic, of which the rest learns the residual: the wait for the first token, and a
        tenth as much the decoding that a replica has before it. Both are logarithms of seconds, so that their
        sum is that of a product."""
        names = list(FEATURES)
        with torch.no_grad():
            self.skip.zero_()
            self.skip[0, names.index("first_token")] = -sharpness
            self.skip[0, names.index("decoding")] = -0.1 * sharpness
            self.last.zero_()

    def flat(self) -> NDArray[np.float64]:
        """(policy_size(hidden),) as the engine wants it."""
        values = [getattr(self, name).detach().double().numpy().ravel() for name in parts(self.hidden)]
        return np.concatenate(values)

    def load_flat(self, values: NDArray[np.float64]) -> None:
        at = 0
        with torch.no_grad():
            for name, (rows, columns) in parts(self.hidden).items():
                piece = values[at : at + rows * columns].reshape(rows, columns)
                getattr(self, name).copy_(torch.from_numpy(piece))
                at += rows * columns


class Critic(nn.Module):
    """Value (B,) of a moment, from pooled features."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(POOLED, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, decisions: Decisions) -> Tensor:
        values: Tensor = self.layers(decisions.pooled)[:, 0]
        return values


def save_policy(policy: Policy, path: str | Path) -> None:
    """Write NAME.safetensors and NAME.json, each atomically; ``about`` gains format, features and hidden."""
    from safetensors.numpy import save

    tensors, at = {}, 0
    for name, (rows, columns) in parts(policy.hidden).items():
        tensors[name] = policy.values[at : at + rows * columns].reshape(rows, columns).astype(np.float32)
        at += rows * columns
    about = {**policy.about, "format": FORMAT, "features": [*FEATURES, *CONTEXT], "hidden": policy.hidden}
    chosen = Path(path)
    write_whole(chosen, save(tensors))
    write_whole(chosen.with_suffix(".json"), json.dumps(about, indent=1).encode() + b"\n")
