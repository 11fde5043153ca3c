"""A model to fuse with: an encoder per modality, the gate, one head; and what it does without a modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.errors import TrimtabError
from trimtab.fusion.gate import ModalityGate

HIDDEN = 64


class VectorEncoder(nn.Module):
    """(batch, size) -> (batch, hidden): two layers."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values)


class SequenceEncoder(nn.Module):
    """(batch, time, size) -> (batch, hidden): a convolution over 5 steps, its mean and maximum over time.

    Steps of zeros only are padding and count for nothing.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(size, hidden, 5, padding=2)
        self.out = nn.Linear(2 * hidden, hidden)

    def forward(self, values: Tensor) -> Tensor:
        found = functional.relu(self.convolution(values.transpose(1, 2)))
        there = (values != 0).any(-1)[:, None, :]
        found = found * there
        mean = found.sum(-1) / there.sum(-1).clamp(min=1)
        return functional.relu(self.out(torch.cat([mean, found.amax(-1)], 1)))


class FusionModel(nn.Module):
    """sum_m w_m z_m of encodings z (batch, hidden) and the gate's weights w, and a linear head.

    One head for the sum, so that encodings are in one space and the head can read what is left when a
    modality is missing. ``shapes``: modality -> (size,) or (time, size) of one sample.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], outputs: int, gate: ModalityGate, hidden: int = HIDDEN
    ) -> None:
        super().__init__()
        # A list, since a modality may have a name that is an attribute of a module.
        self.encoders = nn.ModuleList(encoder_for(name, shape, hidden) for name, shape in shapes.items())
        self.gate = gate
        self.head = nn.Linear(hidden, outputs)
        self.weights: Tensor = torch.empty(0)  # (batch, modalities) of the last forward, with gradient
        self.encodings: list[Tensor] = []

    def forward(self, views: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Logits or values (batch, outputs).

        ``views``: one tensor per modality, in the gate's order. ``present`` (batch, modalities): what is
        missing is not encoded: zeros take its place before the gate sees it.
        """
        encodings = [encoder(view) for encoder, view in zip(self.encoders, views, strict=True)]
        if present is not None:
            encodings = [each * present[:, [i]] for i, each in enumerate(encodings)]
        self.encodings = encodings
        self.weights = self.gate(encodings, present=present)
        return self.head(self.fused(self.weights))

    def fused(self, weights: Tensor) -> Tensor:
        """(batch, hidden) the weighted sum of the last forward's encodings."""
        return sum((weights[:, [i]] * each for i, each in enumerate(self.encodings)), torch.zeros(()))


def encoder_for(name: str, shape: Sequence[int], hidden: int) -> nn.Module:
    """By the number of dimensions of one sample."""
    if len(shape) == 1:
        return VectorEncoder(shape[0], hidden)
    if len(shape) == 2:
        return SequenceEncoder(shape[1], hidden)
    raise TrimtabError(
        f"modality {name!r} has samples of shape {tuple(shape)}; (size,) or (time, size) is needed"
    )
