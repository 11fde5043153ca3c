"""The way back from a collapse: one modality has 99.4 % of the weight, and balancing is switched on.

The model is trained with the plain gate from such a start, so that its encoders and its head are those of a
collapsed model; then `ModalityGate` takes over the same gating network, as a user would whose log said so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtab.fusion.gate import ModalityGate
from trimtab.fusion.measures import evaluate
from trimtab.fusion.methods import STANDARD
from trimtab.fusion.train import Recipe, Training, begin, fit, step
from trimtab.fusion.views import Views

COLLAPSED = 0.994  # of the dominant modality, as in the sketch's log; the others share the rest 4 to 3
TOLERANCE = 0.03
EVERY = 10  # steps between looks
IN_A_ROW = 10  # looks within the tolerance that make a recovery


@dataclass(frozen=True)
class Recovery:
    """``steps``: training steps after which every mean test weight is within 0.03 of its target, and is at
    the next ten looks (100 steps); None where that did not happen. ``weights``: (step, mean test weights)
    at each look."""

    start: list[float]
    weights: list[tuple[int, list[float]]]
    steps: int | None
    accuracy_before: float
    accuracy_after: float
    spread: float  # of the dominant's weight over test samples at the end


def recover(data: Views, dominant: str, recipe: Recipe, most_steps: int = 500) -> Recovery:
    """Collapse for ``recipe.epochs`` epochs, then balance for ``most_steps`` training steps."""
    training = begin(data, recipe)
    network = training.model.gate.network
    force(training, data.modalities.index(dominant))
    network.requires_grad_(False)  # left free it would go on to 100 %
    fit(training)
    network.requires_grad_(True)
    before = evaluate(training.model, training.test, data.task, deep=False)
    gate = ModalityGate(data.modalities, network, dominant=dominant, **STANDARD)
    training.model.gate = gate
    target = gate.target()
    generator = torch.Generator().manual_seed(recipe.seed)
    looks: list[tuple[int, list[float]]] = []
    done, last = 0, before
    training.model.train()
    while done < most_steps:
        for rows in torch.randperm(len(training.train.labels), generator=generator).split(recipe.batch_size):
            step(training, training.train.rows(rows), generator)
            done += 1
            if done % EVERY == 0:
                last = evaluate(training.model, training.test, data.task, deep=False)
                looks.append((done, last["weights"]))
            if done == most_steps:
                break
    return Recovery(
        before["weights"],
        looks,
        settled(looks, target),
        before["accuracy"],
        last["accuracy"],
        last["weight_spread"][data.modalities.index(dominant)],
    )


def settled(looks: list[tuple[int, list[float]]], target: Any) -> int | None:
    """The first look from which on ten in a row are within the tolerance."""
    inside = [
        max(abs(weight - wanted) for weight, wanted in zip(weights, target, strict=True)) <= TOLERANCE
        for _, weights in looks
    ]
    for at, (number, _) in enumerate(looks):
        if len(inside) >= at + IN_A_ROW and all(inside[at : at + IN_A_ROW]):
            return number
    return None


def force(training: Training, dominant: int) -> None:
    """Start the gate collapsed: its last layer says 99.4 % and the rest 4 to 3, whatever the sample.

    A hundredth of the layer's own weights is left, so that it can learn.
    """
    last = [layer for layer in training.model.gate.network.modules() if isinstance(layer, nn.Linear)][-1]
    count = last.out_features
    shares = torch.linspace(4, 3, count - 1)
    shares = (1 - COLLAPSED) * shares / shares.sum()
    wanted = torch.cat([shares[:dominant], torch.tensor([COLLAPSED]), shares[dominant:]])
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.copy_(wanted.log())
