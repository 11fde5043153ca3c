"""The shift study: a stream that turns from the trained mixture to code and back, and what each way of
adapting made of it.

Every batch has 4,096 bytes of held-out files. The figures are of the *settled* part of the shifted traffic,
beside those of the trained biases on the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trimtab.balance import ABTest
from trimtab.balance.measures import balancedness, max_violation, noise_floor
from trimtab.exectime.experts import moe_layer_seconds
from trimtab.hardware.devices import get_device, get_node
from trimtab.hardware.models import get_model
from trimtab.moe.adaptation import Bytes, Floats, Record, log_probabilities, serve
from trimtab.moe.store import Parts
from trimtab.moe.strategies import Ground, adapter_of
from trimtab.moe.text import Corpus, mixture_batch
from trimtab.moe.training import Recipe, Trained, excess

SEQUENCES = 32  # per batch
CODE = {"code": 1.0}
REACHED = 0.9  # of the final balance: where the lag ends
SMOOTHED = 5  # batches
RANKS = 8
PREFILL, DECODE = 32768, 64  # tokens of the batches whose time is simulated


@dataclass(frozen=True)
class Stream:
    """Batches of each phase: the mixture, then code only, then the mixture again. The last ``settled`` of
    the code are measured."""

    before: int = 6
    shifted: int = 40
    after: int = 14
    settled: int = 20

    @property
    def window(self) -> slice:
        """The settled batches."""
        return slice(self.before + self.shifted - self.settled, self.before + self.shifted)

    @property
    def back(self) -> int:
        """The first batch of the mixture again."""
        return self.before + self.shifted

    def texts(self, corpus: Corpus, recipe: Recipe) -> list[Bytes]:
        """Held-out text (sequences, bytes + 1) of every batch; other seeds have other text."""
        generator = np.random.default_rng([recipe.seed, 77])
        phases = ((self.before, recipe.mixture), (self.shifted, CODE), (self.after, recipe.mixture))
        length = recipe.shape.context + 1
        return [
            mixture_batch(corpus.held_out, mixture, SEQUENCES, length, generator)[0]
            for count, mixture in phases
            for _ in range(count)
        ]


def ground_of(trained: Trained, corpus: Corpus, recipe: Recipe, batches: int = 8) -> Ground:
    """Calibration from training files: ``batches`` of the mixture and of code."""
    generator = np.random.default_rng([recipe.seed, 78])
    length = recipe.shape.context + 1
    kinds = {"mixture": recipe.mixture, "code": CODE}
    calibration = {
        kind: [mixture_batch(corpus.train, mixture, SEQUENCES, length, generator)[0] for _ in range(batches)]
        for kind, mixture in kinds.items()
    }
    return Ground(trained.model, calibration)


def run(
    names: list[str], ground: Ground, texts: list[Bytes], stream: Stream, parts: Parts
) -> dict[str, Record]:
    """A record per strategy: from ``parts`` where it is finished, else made and kept there."""
    compared: dict[int, Any] = {}

    def before(batch: int) -> Any:
        if not stream.window.start <= batch < stream.window.stop:
            return None
        if batch not in compared:  # only where a part is not in store
            compared[batch] = log_probabilities_of_base(ground, texts[batch])
        return compared[batch]

    found = {}
    for name in names:
        stored = parts.load(name)
        if stored is None:
            stored = serve(ground.model, adapter_of(name, ground), texts, before)._asdict()
            parts.save(name, stored)
        found[name] = Record(**stored)
    return found


def log_probabilities_of_base(ground: Ground, text: Bytes) -> Any:
    """Under the trained biases, whatever the model has now."""
    own = ground.model.biases()
    ground.model.set_biases(ground.base)
    found = log_probabilities(ground.model, text)
    ground.model.set_biases(own)
    return found


def figures(record: Record, fixed: Record, stream: Stream) -> dict[str, float]:
    """What a strategy did on the settled batches, beside the trained biases on the same ones."""
    window = stream.window
    here, there = excess(record.loads[window]), excess(fixed.loads[window])
    loss, usual = float(record.losses[window].mean()), float(fixed.losses[window].mean())
    return {
        **here,
        "removed_global": 1.0 - here["excess_global"] / there["excess_global"],
        "removed_batch": 1.0 - here["excess_batch"] / there["excess_batch"],
        "balancedness": float(balancedness(record.loads[window]).mean()),
        "perplexity": math.exp(loss),
        "loss_increase_percent": 100.0 * (loss / usual - 1.0),
        "kl": float(record.divergence[window].mean()),
        "lag_batches": lag(record, fixed, stream),
        **back(record, fixed, stream),
        "prefill_ms": 1e3 * layer_seconds(record.loads[window], PREFILL),
        "decode_ms": 1e3 * layer_seconds(record.loads[window], DECODE),
    }


def violations(loads: Floats) -> Floats:
    """MaxVio over chance of each batch (batches,), mean over layers."""
    draws = round(float(loads[0, 0].sum()))
    found: Floats = max_violation(loads).mean(axis=-1) - noise_floor(loads.shape[-1], draws)
    return found


def smoothed(values: Floats) -> Floats:
    """Means of SMOOTHED batches in a row."""
    return np.convolve(values, np.ones(SMOOTHED) / SMOOTHED, mode="valid")


def lag(record: Record, fixed: Record, stream: Stream) -> float:
    """Batches from the shift until REACHED of what is removed in the end is removed; infinite where nothing
    is (less than a tenth)."""
    phase = slice(stream.before, stream.back)
    removed = smoothed(violations(fixed.loads[phase]) - violations(record.loads[phase]))
    usual = violations(fixed.loads[stream.window]).mean()
    final = usual - violations(record.loads[stream.window]).mean()
    if final < 0.1 * usual:
        return math.inf
    reached = np.flatnonzero(removed >= REACHED * final)
    return float(reached[0]) if reached.size else math.inf


def back(record: Record, fixed: Record, stream: Stream) -> dict[str, float]:
    """After the mixture has come back: MaxVio over chance of the first batches above the trained biases',
    and batches until it is within 0.1 of theirs (infinite if never)."""
    phase = slice(stream.back, None)
    above = violations(record.loads[phase]) - violations(fixed.loads[phase])
    within = np.flatnonzero(smoothed(above) <= 0.1)
    return {
        "back_excess": float(above[:SMOOTHED].mean()),
        "back_batches": float(within[0]) if within.size else math.inf,
    }


def layer_seconds(loads: Floats, tokens: int, model: str = "mixtral-8x7b", device: str = "h100") -> float:
    """Seconds of one expert layer on an 8-way expert-parallel node, mean over the loads (..., experts).

    The matrices are those of ``model``, as many experts as the loads have, dealt to the ranks in order. A
    batch of ``tokens`` spreads as the loads do; an expert is touched with the chance that one of them
    takes it. Many tokens are bound by arithmetic, few by reading weights.
    """
    experts = loads.shape[-1]
    shares = loads / loads.sum(axis=-1, keepdims=True)
    shape = get_model(model)
    stood_in = replace(shape, experts=experts)
    taken = np.minimum(shares * shape.experts_per_token, 1.0)
    by_rank = (*loads.shape[:-1], RANKS, experts // RANKS)
    touched = (1.0 - (1.0 - taken) ** tokens).reshape(by_rank).sum(axis=-1)
    rows = (shares * tokens * shape.experts_per_token).reshape(by_rank).sum(axis=-1)
    node = get_node("h100_dgx")
    return float(moe_layer_seconds(stood_in, get_device(device), node, rows, touched).mean())


def verdicts(record: Record, fixed: Record, stream: Stream) -> dict[str, str]:
    """A/B tests on the shifted batches, two by two, one of each two served by each arm as a coin falls: A the
    trained biases, B the strategy."""
    balanced = ABTest(0.0, 1.0)
    loss = ABTest(0.0, 4.0, higher_is_better=False)
    for batch in range(stream.before, stream.back):
        first = balanced.assign(batch // 2)
        arm = first if batch % 2 == 0 else "AB"[first == "A"]
        served = fixed if arm == "A" else record
        balanced.observe(arm, float(balancedness(served.loads[batch]).mean()))
        loss.observe(arm, float(served.losses[batch]))
    return {"balancedness": balanced.verdict(), "loss": loss.verdict()}
