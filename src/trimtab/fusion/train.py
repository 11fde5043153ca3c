"""Training, epoch by epoch: batches, the method's part, the guidance analysis; on disk to go on from.

What is drawn at random in an epoch is a function of (seed, epoch), so a checkpoint needs no state of it, and
a training that was interrupted ends as one that was not, bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.fusion.gate import GateNetwork
from trimtab.fusion.measures import evaluate, gradient_norms, loss_of
from trimtab.fusion.methods import Method, gate_for, get_method
from trimtab.fusion.model import HIDDEN, FusionModel
from trimtab.fusion.rivals import AGM, auxiliary_loss, hidden_at_random, ogm_ge
from trimtab.fusion.views import Part, Views, parts
from trimtab.learn.sealed import seal, unseal, write_whole

FORMAT = 1
CHECKPOINT = "checkpoint.safetensors"
SAVE_EVERY_S = 2.0  # the last epochs may be lost; writing after each would be most of their time
Epoch = dict[str, Any]  # one row of the guidance analysis
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Recipe:
    """What a training is. ``update_rate`` and ``ratio`` None: the method's."""

    method: str = "balanced-hide"
    epochs: int = 40
    batch_size: int = 50
    learning_rate: float = 1e-3
    seed: int = 0
    dominant: str | None = None
    update_rate: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        get_method(self.method)
        if min(self.epochs, self.batch_size) < 1 or not 0 < self.learning_rate < math.inf:
            raise TrimtabError(
                "epochs and batch size must be 1 or more and the learning rate above 0; "
                f"given {self.epochs}, {self.batch_size}, {self.learning_rate}"
            )


@dataclass
class Training:
    """A model on its way. ``history`` has one row per epoch done."""

    recipe: Recipe
    data: Views
    train: Part
    test: Part
    model: FusionModel
    optimizer: torch.optim.Optimizer
    agm: AGM
    history: list[Epoch] = field(default_factory=list)

    @property
    def method(self) -> Method:
        return get_method(self.recipe.method)


def begin(data: Views, recipe: Recipe) -> Training:
    """A fresh model, the same for every method of one seed."""
    method = get_method(recipe.method)
    if data.task == "value" and (method.ogm_alpha or method.agm_alpha):
        raise TrimtabError(f"{recipe.method} is defined for classes; {data.name} has values")
    train, test = parts(data, recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = GateNetwork([HIDDEN] * len(data.views))
        gate = gate_for(
            method, data.modalities, network, recipe.dominant,
            load_balance_update_rate=recipe.update_rate, target_balance_ratio=recipe.ratio,
        )  # fmt: skip
        model = FusionModel(data.shapes, data.outputs, gate)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    return Training(recipe, data, train, test, model, optimizer, AGM(len(data.views), method.agm_alpha))


def run_epoch(training: Training) -> Epoch:
    """One pass over the training samples; the row that says what the gate did in it joins the history."""
    recipe, model = training.recipe, training.model
    number = len(training.history) + 1
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([recipe.seed, number]).generate_state(1)[0])
    )
    order = torch.randperm(len(training.train.labels), generator=generator)
    count = len(training.data.views)
    losses, weights, dominant = 0.0, torch.zeros(count), torch.zeros(count, dtype=torch.long)
    model.train()
    for rows in order.split(recipe.batch_size):
        if len(rows) < 2:
            continue  # normalised logits need two
        batch = training.train.rows(rows)
        losses += step(training, batch, generator) * len(rows)
        told = model.weights.detach()
        weights += told.sum(0)
        dominant += torch.bincount(told.argmax(1), minlength=count)
    norms = gradient_norms(model)
    gate, shown = model.gate, evaluate(model, training.test, training.data.task, deep=False)
    row: Epoch = {
        "epoch": number,
        "loss": losses / len(order),
        "accuracy": shown["accuracy"],
        "mean_weights": (weights / weights.sum()).tolist(),
        "test_weights": shown["weights"],
        "dominant_counts": dominant.tolist(),
        "bias": gate.bias.tolist(),
        "load_history": gate.load_history.tolist(),
        "target": gate.target().tolist() if balances(training) else [],
        "gradient_norms": norms,
        "alarm": gate.alarm,
    }
    training.history.append(row)
    return row


def balances(training: Training) -> bool:
    """Whether the method has a target for the mean weights."""
    return bool(training.method.gate.get("enable_load_balancing", True))


def step(training: Training, batch: Part, generator: torch.Generator) -> float:
    """One optimizer step; the task's loss."""
    method, model = training.method, training.model
    present = batch.present
    if method.hide:
        kept = hidden_at_random(len(batch.labels), len(batch.views), method.hide, generator)
        present = kept if present is None else kept & present
    outputs = model(batch.views, present)
    task_loss = loss_of(outputs, batch.labels, training.data.task)
    loss = task_loss
    if method.auxiliary:
        loss = loss + method.auxiliary * auxiliary_loss(model.weights, model.gate.target())
    training.optimizer.zero_grad()
    loss.backward()
    if method.ogm_alpha:
        ogm_ge(model, batch.labels, method.ogm_alpha, generator)
    if method.agm_alpha:
        training.agm.modulate(model, model.weights, batch.labels)
    training.optimizer.step()
    return float(task_loss.detach())


def fit(
    training: Training, report: Report = lambda *_: None, each: Callable[[Epoch], None] = lambda _: None
) -> None:
    """The epochs that are left; ``each`` gets every row as it is made."""
    while len(training.history) < training.recipe.epochs:
        row = run_epoch(training)
        report(row["epoch"], training.recipe.epochs, f"accuracy {row['accuracy']:.3f}")
        each(row)


# --- on disk ------------------------------------------------------------------------------------------


def fit_in(training: Training, folder: Path, report: Report, each: Callable[[Epoch], None]) -> None:
    """`fit`, saved in ``folder`` every few seconds and at the end."""
    saved = time.monotonic()

    def keep(row: Epoch) -> None:
        nonlocal saved
        each(row)
        if row["epoch"] == training.recipe.epochs or time.monotonic() - saved > SAVE_EVERY_S:
            save(training, folder)
            saved = time.monotonic()

    fit(training, report, keep)


def save(training: Training, folder: Path) -> None:
    """All that `resume` needs, in one file that is whole or as it was."""
    tensors = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    about = {
        "format": FORMAT,
        "recipe": asdict(training.recipe),
        "data": training.data.about(),
        "history": training.history,
        "agm": [training.agm.steps, training.agm.running],
    }
    plain = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    write_whole(folder / CHECKPOINT, seal(plain, about))


def resume(data: Views, recipe: Recipe, folder: Path) -> Training:
    """The training as it was saved; only ``epochs`` may have changed.

    Raises
    ------
    TrimtabError
        for a checkpoint that is damaged, or of another recipe or other data.
    """
    path = folder / CHECKPOINT
    tensors, about = unseal(path) or ({}, {})
    if about.get("format") != FORMAT:
        raise TrimtabError(f"{path} is damaged or no checkpoint of this version; --fresh begins again")
    if about["data"] != json.loads(json.dumps(data.about())):
        raise TrimtabError(
            f"{path} is of {about['data']['name']!r}, other data; give another --out, or --fresh"
        )
    for name, value in asdict(recipe).items():
        if name != "epochs" and about["recipe"][name] != value:
            raise TrimtabError(
                f"{path} was trained with {name} = {about['recipe'][name]!r}, not {value!r}; "
                "give it as then, or another --out, or --fresh"
            )
    training = begin(data, recipe)
    training.model.load_state_dict(of(tensors, "model"))
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in of(tensors, "optimizer").items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = value
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": states, "param_groups": groups})
    training.history = about["history"]
    training.agm.steps, training.agm.running = about["agm"]
    return training


def of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins with ``prefix.``, without it."""
    return {
        name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")
    }
