"""Adapt the biases of a trained model to the traffic that it serves, one batch behind, and keep the record.

A `Adapter` gives the biases for a batch from earlier batches (and, where it detects a domain, from the
batch's own text, never its loads), and then sees what the batch did. `serve` runs a stream of batches
through a model with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from trimtab.balance import (
    AdaptiveLoadBalancer,
    AdaptiveThreshold,
    BiasLaw,
    DomainAdaptiveBias,
    DomainDetector,
    Guard,
    HybridBias,
    LoadPredictor,
)
from trimtab.moe.language_model import MoELanguageModel, loads_of, next_byte_loss, scores_of

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


class Seen(NamedTuple):
    """What a batch showed: its text (sequences, bytes + 1), loads (layers, experts), scores (layers, tokens,
    experts)."""

    text: Bytes
    load: Floats
    scores: Floats


class Adapter(Protocol):
    """Decides the biases (layers, experts) of every batch."""

    def biases(self, text: Bytes) -> Floats:
        """To serve this text with."""

    def record(self, seen: Seen) -> None:
        """What serving it showed."""


class Fixed:
    """The trained biases, whatever comes."""

    def __init__(self, base: Floats) -> None:
        self.base = base

    def biases(self, text: Bytes) -> Floats:
        return self.base

    def record(self, seen: Seen) -> None:
        """Nothing is learned."""


class ByLaw:
    """One law for all traffic. ``strength``: how far from the trained biases towards the law's, 0 to 1."""

    def __init__(self, law: BiasLaw, base: Floats, strength: float = 1.0) -> None:
        self.law, self.base, self.strength = law, base, strength

    def biases(self, text: Bytes) -> Floats:
        found = self.base if self.law.bias is None else self.law.bias
        return self.base + self.strength * (found - self.base)

    def record(self, seen: Seen) -> None:
        self.law.update(observed(self.law, seen))


class ByDomain:
    """A law per domain of a bank; the batch's own text says which."""

    def __init__(self, bank: DomainAdaptiveBias, detector: DomainDetector) -> None:
        self.bank, self.detector = bank, detector
        self.domain = ""

    def biases(self, text: Bytes) -> Floats:
        self.domain = self.detector.detect(text)
        found: Floats = self.bank.get_bias(self.domain)
        return found

    def record(self, seen: Seen) -> None:
        self.bank.update(observed(self.bank.law_of(self.domain), seen), domain=self.domain)


class ByHybrid:
    """The trained, a dynamic and a domain's bias in one."""

    def __init__(self, hybrid: HybridBias, detector: DomainDetector) -> None:
        self.hybrid, self.detector = hybrid, detector
        self.domain = ""

    def biases(self, text: Bytes) -> Floats:
        self.domain = self.detector.detect(text)
        found: Floats = self.hybrid.get_bias(self.domain)
        return found

    def record(self, seen: Seen) -> None:
        self.hybrid.update(seen.load, domain=self.domain)


class ByPrediction:
    """base - scale log(predicted share x experts): from the text alone, before any load of it was seen.

    For scores with extreme-value noise of that scale it is the bias that evens the predicted load exactly.
    """

    def __init__(self, predictor: LoadPredictor, base: Floats, scale: Floats) -> None:
        self.predictor, self.base, self.scale = predictor, base, scale

    def biases(self, text: Bytes) -> Floats:
        shares = self.predictor.predict_load(text)
        found: Floats = self.base - self.scale * np.log(np.maximum(shares * shares.shape[-1], 1e-2))
        return found

    def record(self, seen: Seen) -> None:
        """Loads under a moved bias do not teach what the trained one gives."""


class WhenUneven:
    """Another adapter, which learns only from batches that a threshold calls uneven."""

    def __init__(self, inner: Adapter, threshold: AdaptiveThreshold) -> None:
        self.inner, self.threshold = inner, threshold

    def biases(self, text: Bytes) -> Floats:
        found: Floats = self.inner.biases(text)
        return found

    def record(self, seen: Seen) -> None:
        if self.threshold.should_adjust_bias(seen.load):
            self.inner.record(seen)


class Guarded:
    """Another adapter behind a `Guard`, which takes small steps and probes them on the batch just served.

    The quality probe is the relative increase in loss on ``probed`` of its sequences.
    """

    def __init__(self, inner: Adapter, model: MoELanguageModel, base: Floats, probed: int = 8) -> None:
        self.inner, self.model, self.base, self.probed = inner, model, base, probed
        self.guard = Guard(base, quality=self.loss_increase)
        self.last: Bytes | None = None
        self.usual = 0.0

    def loss_increase(self, biases: Floats) -> float:
        """Of the probed sequences, relative to the trained biases."""
        if self.last is None:
            return 0.0
        changed: float = loss_under(self.model, self.last, biases) / self.usual - 1.0
        return changed

    def biases(self, text: Bytes) -> Floats:
        found: Floats = self.guard.step(self.inner.biases(text))
        return found

    def record(self, seen: Seen) -> None:
        self.last = seen.text[: self.probed]
        self.usual = loss_under(self.model, self.last, self.base)
        self.inner.record(seen)


class Whole:
    """`AdaptiveLoadBalancer`: detector, hybrid bias, threshold, monitor and guard together."""

    def __init__(self, balancer: AdaptiveLoadBalancer) -> None:
        self.balancer = balancer

    def biases(self, text: Bytes) -> Floats:
        found: Floats = self.balancer.get_correction_bias(text)
        return found

    def record(self, seen: Seen) -> None:
        self.balancer.record(seen.load)


def observed(law: BiasLaw, seen: Seen) -> Floats:
    """What a law wants to see of a batch."""
    return seen.scores if law.observes == "scores" else seen.load


class Record(NamedTuple):
    """Of every batch: loads (batches, layers, experts), loss in nats per byte, and KL divergence in nats of
    the next byte's distribution from that of the trained biases (NaN where it was not asked for)."""

    loads: Floats
    losses: Floats
    divergence: Floats


@torch.no_grad()
def serve(
    model: MoELanguageModel,
    adapter: Adapter,
    stream: Sequence[Bytes],
    compared: Callable[[int], torch.Tensor | None] = lambda batch: None,
) -> Record:
    """Run a stream of texts (sequences, bytes + 1) through the model; its biases are as before afterwards.

    ``compared(batch)``: log-probabilities under the trained biases (`log_probabilities`), or None.
    """
    base = model.biases()
    loads, losses, divergence = [], [], []
    try:
        for index, text in enumerate(stream):
            model.set_biases(adapter.biases(text))
            batch = torch.from_numpy(text.astype(np.int64))
            output = model(batch[:, :-1])
            load = loads_of(output.routings).numpy()
            loads.append(load)
            losses.append(float(next_byte_loss(output.logits, batch[:, 1:])))
            before = compared(index)
            divergence.append(np.nan if before is None else kl(before, output.logits))
            adapter.record(Seen(text, load, scores_of(output.routings).numpy().astype(np.float64)))
    finally:
        model.set_biases(base)
    return Record(np.array(loads), np.array(losses), np.array(divergence))


def kl(before: torch.Tensor, logits: torch.Tensor) -> float:
    """Mean KL divergence per byte of the distributions of ``logits`` from log-probabilities ``before``."""
    after = logits.log_softmax(dim=-1)
    total = functional.kl_div(after, before, log_target=True, reduction="sum")
    positions: int = before[..., 0].numel()
    return float(total) / positions


@torch.no_grad()
def log_probabilities(model: MoELanguageModel, text: Bytes) -> torch.Tensor:
    """(sequences, bytes, vocabulary) with the biases that the model has."""
    logits: torch.Tensor = model(torch.from_numpy(text[:, :-1].astype(np.int64))).logits
    return logits.log_softmax(dim=-1)


@torch.no_grad()
def loss_under(model: MoELanguageModel, text: Bytes, biases: Floats) -> float:
    """Loss of a text (sequences, bytes + 1) with these biases; the model's own come back."""
    own = model.biases()
    model.set_biases(biases)
    batch = torch.from_numpy(text.astype(np.int64))
    loss = float(next_byte_loss(model(batch[:, :-1]).logits, batch[:, 1:]))
    model.set_biases(own)
    return loss


@torch.no_grad()
def gate_scores(model: MoELanguageModel, text: Bytes) -> Floats:
    """Scores (layers, tokens, experts) that the gates give for a text (sequences, bytes + 1)."""
    output = model(torch.from_numpy(text[:, :-1].astype(np.int64)))
    scores: Floats = scores_of(output.routings).numpy().astype(np.float64)
    return scores
