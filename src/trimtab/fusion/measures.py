"""What a trained model does: weights, accuracy, and what each modality is worth to it.

Balanced weights are not balanced use: an encoding of zeros may carry a weight of 0.15. So beside the weights
stand the accuracy without each modality, and each modality's Shapley share of the accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trimtab.fusion.model import FusionModel
from trimtab.fusion.rivals import shapley_of
from trimtab.fusion.views import Part, Task
from trimtab.report.bootstrap import Interval, interval

BATCH = 2048  # samples at once, so that long sequences fit into memory
MOST_MODALITIES = 6  # of exact Shapley shares: 64 subsets


def loss_of(outputs: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Cross entropy of classes, mean absolute error of values."""
    if task == "classes":
        return functional.cross_entropy(outputs, labels)
    return functional.l1_loss(outputs[:, 0], labels)


def accuracy_of(outputs: Tensor, labels: Tensor, task: Task) -> float:
    """Share of right classes; of values: of right signs where the label is not 0 (Non0-acc2 of MOSEI)."""
    if task == "classes":
        return float((outputs.argmax(1) == labels).double().mean())
    told = labels != 0
    return float(((outputs[told, 0] > 0) == (labels[told] > 0)).double().mean())


@torch.no_grad()
def outputs_with(model: FusionModel, part: Part, kept: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """(outputs, weights) in evaluation; with ``kept`` only those modalities are there."""
    was_training = model.training
    model.eval()
    outputs, weights = [], []
    for rows in torch.arange(len(part.labels)).split(BATCH):
        some = part.rows(rows)
        present = some.present
        if kept is not None:
            mask = torch.zeros(len(rows), len(part.views), dtype=torch.bool)
            mask[:, list(kept)] = True
            present = mask if present is None else mask & present
        outputs.append(model(some.views, present))
        weights.append(model.weights)
    model.train(was_training)
    return torch.cat(outputs), torch.cat(weights)


def evaluate(model: FusionModel, part: Part, task: Task, deep: bool = True) -> dict[str, Any]:
    """Figures on ``part``: accuracy, loss, mean weights and their standard deviation over samples (near zero:
    the gate says the same of every sample), dominant counts (samples whose largest weight it is).

    ``deep`` adds accuracy without each modality, with each alone, and Shapley shares of the accuracy over
    that of no modality (sum 1; NaN beyond six modalities).
    """
    outputs, weights = outputs_with(model, part)
    count = len(part.views)
    figures: dict[str, Any] = {
        "accuracy": accuracy_of(outputs, part.labels, task),
        "loss": float(loss_of(outputs, part.labels, task)),
        "weights": weights.double().mean(0).tolist(),
        "weight_spread": weights.double().std(0, unbiased=False).tolist(),
        "dominant_counts": torch.bincount(weights.argmax(1), minlength=count).tolist(),
    }
    if not deep:
        return figures
    everything = frozenset(range(count))

    def accuracy(kept: frozenset[int]) -> float:
        return accuracy_of(outputs_with(model, part, sorted(kept))[0], part.labels, task)

    sizes = range(count + 1) if count <= MOST_MODALITIES else (0, 1, count - 1)
    value = {
        frozenset(kept): accuracy(frozenset(kept))
        for size in sizes
        for kept in combinations(everything, size)
    }
    figures["without"] = [value[everything - {index}] for index in range(count)]
    figures["alone"] = [value[frozenset({index})] for index in range(count)]
    figures["shapley_shares"] = [math.nan] * count
    if count <= MOST_MODALITIES:
        tensors = {kept: torch.tensor(each, dtype=torch.float64) for kept, each in value.items()}
        worth = [float(shapley_of(index, count, tensors)) for index in range(count)]
        figures["shapley_shares"] = [each / sum(worth) if sum(worth) else math.nan for each in worth]
    return figures


def gradient_norms(model: FusionModel) -> list[float]:
    """Norm of the gradients that each encoder has now."""
    return [
        math.sqrt(sum(float((p.grad**2).sum()) for p in encoder.parameters() if p.grad is not None))
        for encoder in model.encoders
    ]


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean difference over seeds with its 95 % interval (Student's t); the same seeds in the same order."""
    difference: NDArray[np.float64] = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return interval(difference, None)


def mean_of(values: Sequence[float]) -> Interval:
    """Mean over seeds with its 95 % interval."""
    return interval(np.asarray(values, np.float64), None)
