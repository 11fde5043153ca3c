"""Train the small language model on real text, its gates balanced by a bias law or by a loss term.

One function, `train`, and what it needs to be told. A bias law sees the batch after the optimiser's step
and moves the bias for the next batch; a loss term acts through the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.balance import BiasLaw, annealed, law
from trimtab.balance.measures import max_violation, noise_floor, summed_batches
from trimtab.errors import unknown
from trimtab.moe.language_model import MoELanguageModel, Shape, loads_of, next_byte_loss, scores_of
from trimtab.moe.losses import global_batch_loss, sequence_loss
from trimtab.moe.text import Corpus, mixture_batch

Floats = NDArray[np.float64]
# Code and C together are a twentieth: what traffic of code only is a shift from.
MIXTURE = {"prose": 0.50, "mathematics": 0.45, "code": 0.03, "c": 0.02}
METHODS = ("none", "auxiliary", "global-batch", "sign", "proportional", "quantile")
BALANCED = 0.10  # excess MaxVio of a window of batches together
WINDOW = 20  # batches
JITTER = 0.03  # of the biases in training: half of what a shift to code asks for
HELD_OUT_SEED = 1_000_003  # of the batches that are measured on: the same for every method and seed


@dataclass(frozen=True)
class Recipe:
    """How to train. ``method`` is one of METHODS; ``strength`` its coefficient, rate or (quantile) memory;
    None: the usual one.

    ``jitter``: standard deviation of noise on the biases, drawn anew for every batch. A gate that has met
    moved biases in training loses less when they are moved in service; the trained biases have no noise.
    """

    method: str = "quantile"
    strength: float | None = None
    seed: int = 0
    steps: int = 1000
    jitter: float = 0.0
    sequences: int = 16  # per batch, of `Shape.context` bytes each
    learning_rate: float = 4e-3
    shape: Shape = field(default_factory=Shape)
    mixture: dict[str, float] = field(default_factory=lambda: dict(MIXTURE))

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for hashing and JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """A model; of every step the loss (steps,) in nats per byte, and the loads (steps, layers, experts)."""

    model: MoELanguageModel
    losses: Floats
    loads: Floats


def train(recipe: Recipe, corpus: Corpus, told: Callable[[int, float], None] | None = None) -> Trained:
    """Train from scratch; the same recipe and text give the same model to the bit on the same machine.

    ``told`` is called with every step's number and loss. Raises `TrimtabError` for an unknown method.
    """
    if recipe.method not in METHODS:
        raise unknown("balancing method", recipe.method, METHODS)
    model = MoELanguageModel(recipe.shape, recipe.seed)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, recipe.steps))
    bias_law = law_for(recipe)
    generator = np.random.default_rng(recipe.seed)
    noise, biases = np.random.default_rng([recipe.seed, 79]), model.biases().numpy()
    losses, loads = [], []
    for step in range(recipe.steps):
        text, _ = mixture_batch(
            corpus.train, recipe.mixture, recipe.sequences, recipe.shape.context + 1, generator
        )
        batch = torch.from_numpy(text.astype(np.int64))
        if recipe.jitter:
            model.set_biases(biases + recipe.jitter * noise.standard_normal(biases.shape))
        output = model(batch[:, :-1])
        loss = next_byte_loss(output.logits, batch[:, 1:])
        optimiser.zero_grad()
        (loss + penalty(recipe, output.routings)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        loads.append(loads_of(output.routings).numpy())
        if bias_law is not None:
            seen = scores_of(output.routings) if bias_law.observes == "scores" else loads_of(output.routings)
            biases = np.asarray(bias_law.update(seen))
        model.set_biases(biases)
        if told is not None:
            told(step, losses[-1])
    return Trained(model.eval(), np.array(losses), np.array(loads))


def penalty(recipe: Recipe, routings: Any) -> torch.Tensor | float:
    """The loss term of the methods that have one."""
    if recipe.method == "auxiliary":
        return strength_of(recipe) * sequence_loss(routings, recipe.sequences)
    if recipe.method == "global-batch":
        return strength_of(recipe) * global_batch_loss(routings)
    return 0.0


def strength_of(recipe: Recipe) -> float:
    """The coefficient or rate in force. Laws: ten times the published rates, which are for training that
    is a thousand times as long, annealed to a hundredth of themselves."""
    usual = {"auxiliary": 0.01, "global-batch": 0.01, "sign": 0.01, "proportional": 0.01}
    return recipe.strength if recipe.strength is not None else usual.get(recipe.method, 0.0)


def law_for(recipe: Recipe) -> BiasLaw | None:
    """The bias law of a recipe, or None."""
    if recipe.method in ("sign", "proportional"):
        rate = strength_of(recipe)
        half = recipe.steps // 2
        return law(recipe.method, annealed(rate, half, recipe.steps - half, rate / 100))
    if recipe.method == "quantile":
        memory = recipe.strength if recipe.strength is not None else 0.9
        return law("quantile", recipe.shape.top_k, memory=memory)
    return None


def warm_cosine(step: int, steps: int) -> float:
    """Fraction of the learning rate: up over the first twentieth, then a cosine down to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def steps_until_balanced(loads: Floats) -> int:
    """The step after which the last WINDOW batches together stay within BALANCED of chance for one window;
    -1 if never. ``loads`` (steps, layers, experts)."""
    steps, _, experts = loads.shape
    if steps < WINDOW:
        return -1
    summed = np.cumsum(np.concatenate([np.zeros_like(loads[:1]), loads]), axis=0)
    together = summed[WINDOW:] - summed[:-WINDOW]
    floor = noise_floor(experts, round(together[0, 0].sum()))
    good = max_violation(together).mean(axis=-1) - floor <= BALANCED
    lasting = np.convolve(good, np.ones(WINDOW), mode="valid") >= WINDOW
    return int(np.argmax(lasting)) + WINDOW if lasting.any() else -1


@torch.no_grad()
def held_out_figures(
    model: MoELanguageModel, corpus: Corpus, recipe: Recipe, batches: int = 64
) -> dict[str, float]:
    """Loss, perplexity per byte and MaxVio over the noise floor on held-out files of the mixture."""
    generator = np.random.default_rng(HELD_OUT_SEED)
    losses, loads = [], []
    for _ in range(batches):
        text, _ = mixture_batch(
            corpus.held_out, recipe.mixture, recipe.sequences, recipe.shape.context + 1, generator
        )
        batch = torch.from_numpy(text.astype(np.int64))
        output = model(batch[:, :-1])
        losses.append(float(next_byte_loss(output.logits, batch[:, 1:])))
        loads.append(loads_of(output.routings).numpy())
    loss = float(np.mean(losses))
    return {"loss": loss, "perplexity": math.exp(loss), **excess(np.array(loads))}


def excess(loads: Floats) -> dict[str, float]:
    """MaxVio over chance of loads (batches, layers, experts): of all batches together, and of each."""
    batches, _, experts = loads.shape
    draws = round(loads[0, 0].sum())
    together = max_violation(summed_batches(loads)).mean()
    return {
        "excess_global": float(together) - noise_floor(experts, draws * batches),
        "excess_batch": float(max_violation(loads).mean()) - noise_floor(experts, draws),
    }


def unigram_loss(corpus: Corpus, mixture: dict[str, float]) -> float:
    """Nats per byte of held-out text under the training text's byte frequencies: what counting reaches."""
    weights = {name: weight / sum(mixture.values()) for name, weight in mixture.items()}
    known = sum(weight * shares(corpus.train[name].text, 0.5) for name, weight in weights.items())
    held_out = sum(weight * shares(corpus.held_out[name].text, 0.0) for name, weight in weights.items())
    return float(-(held_out * np.log(known)).sum())


def shares(text: NDArray[np.uint8], smoothing: float) -> Floats:
    """Share (256,) of each byte value."""
    counts = np.bincount(text, minlength=256) + smoothing
    found: Floats = counts / counts.sum()
    return found
