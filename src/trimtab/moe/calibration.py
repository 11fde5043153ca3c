"""Which bias balances a checkpoint on a domain, and what that costs: found on text, checked on other text.

Calibration sequences run through the model with a bias law attached; the bias is the mean of the last pass.
Held-out sequences then run with the trained bias and with part of the way to the new one, in steps: each
strength has its imbalance, its loss and its distance from the unadapted model (KL divergence per token). The
strength taken is the most even one within the limits of loss and KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.balance import BiasLaw, ProportionalLaw, QuantileLaw, SignLaw, annealed
from trimtab.balance.measures import max_violation_batch, max_violation_global, noise_floor
from trimtab.errors import TrimtabError, unknown
from trimtab.moe.attachment import Attachment, attach
from trimtab.moe.notebook import Notebook

STRENGTHS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
BATCH_TOKENS = 4096
LOGIT_BYTES = 256e6  # of the largest tensor of logits that a forward may make
Report = Callable[[int, int, str], None]  # done, of, what
LAWS = ("quantile", "proportional", "sign")


@dataclass(frozen=True)
class Limit:
    """How much a bias may cost on held-out text."""

    loss_increase: float = 0.005  # relative
    kl: float = 0.02  # nats per token, from the unadapted model

    def holds(self, point: Point) -> bool:
        """Whether a strength stays within; NaN does not."""
        return point.loss_increase <= self.loss_increase and point.kl <= self.kl


@dataclass(frozen=True)
class Point:
    """One strength on held-out text; loads are summed over it, (layers, experts)."""

    strength: float
    maxvio_batch: float  # mean over layers and batches of BATCH_TOKENS tokens
    maxvio_global: float
    loss: float  # nats per token
    loss_increase: float  # relative to strength 0
    loss_increase_error: float  # standard error over sequences, relative
    kl: float  # mean over tokens, nats
    loads: np.ndarray

    def figures(self) -> dict[str, float]:
        """All but the loads."""
        return {name: value for name, value in asdict(self).items() if name != "loads"}


@dataclass
class Calibrated:
    """What was found; ``chosen`` is None where no strength helps within the limit."""

    bias: np.ndarray  # (layers, experts), of the chosen strength, as the checkpoint will hold it
    curve: list[Point]
    chosen: Point | None
    floor_batch: float  # MaxVio of a perfectly balanced gate at this sample size
    floor_global: float


def law_in_time(name: str, market: dict[str, Any], updates: int, cap: float | None) -> BiasLaw:
    """A law that has arrived after so many ``updates``. ``market``: `Attachment.market`."""
    if name not in LAWS:
        raise unknown("law", name, LAWS)
    if name == "quantile":
        return QuantileLaw(**market, memory=0.5, cap=cap)
    if cap is not None:
        raise TrimtabError(f"a cap is for the law 'quantile', which reads scores; given with {name!r}")
    half = updates // 2
    if name == "sign":
        return SignLaw(annealed(0.05, half, half, 0.002))
    return ProportionalLaw(annealed(0.1, half, half, 0.01))


def find_bias(
    model: nn.Module,
    ids: Tensor,
    law: str,
    cap: float | None,
    passes: int,
    only: str | None,
    report: Report,
    notes: Notebook,
) -> np.ndarray:
    """The bias (layers, experts) that the law arrives at on sequences ``ids`` (n, length)."""
    batches = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))
    updates = passes * len(batches)
    with attach(model, only=only) as probe:
        market, total = probe.market, np.zeros_like(probe.trained)
    with attach(model, law_in_time(law, market, updates, cap), only=only) as attached, torch.no_grad():
        begin = 0
        if (known := notes.read("finding")) is not None:
            attached.load_state_dict(known["attached"])
            begin, total = known["done"], known["total"]
        for done in range(begin, updates):
            report(done, updates, "finding the bias")
            model(input_ids=batches[done % len(batches)].to(model_device(model)), use_cache=False)
            if done >= updates - len(batches):
                total = total + attached.bias
            state = {"attached": attached.state_dict(), "done": done + 1, "total": total}
            notes.note("finding", state, now=done + 1 == updates)
    return total / len(batches)


@dataclass
class Tally:
    """Figures of one bias, part by part of the held-out text."""

    losses: list[Any]  # (rows,) per part, nats per predicted token
    distances: list[Any]  # (rows,) per part, KL from the first bias, nats per token
    loads: list[Any]  # (layers, experts) per part

    def point(self, strength: float, grouped: int, reference: Tally) -> Point:
        """The `Point`; MaxVio per batch is over ``grouped`` parts together."""
        batches = np.stack(
            [np.sum(self.loads[i : i + grouped], axis=0) for i in range(0, len(self.loads), grouped)]
        )
        loss, base = np.concatenate(self.losses), np.concatenate(reference.losses)
        difference = (loss - base) / base.mean()
        error = float(difference.std(ddof=1)) / len(loss) ** 0.5 if len(loss) > 1 else float("nan")
        return Point(
            strength=float(strength),
            maxvio_batch=max_violation_batch(batches),
            maxvio_global=max_violation_global(batches),
            loss=float(loss.mean()),
            loss_increase=float(difference.mean()),
            loss_increase_error=error,
            kl=float(np.concatenate(self.distances).mean()),
            loads=batches.sum(axis=0),
        )


def measure(
    model: nn.Module,
    ids: Tensor,
    biases: Sequence[np.ndarray],
    strengths: Sequence[float],
    only: str | None,
    report: Report,
    notes: Notebook,
) -> list[Point]:
    """A `Point` for each bias on held-out sequences ``ids`` (n, length), compared with the first bias."""
    vocabulary = int(getattr(model, "config").get_text_config().vocab_size)  # noqa: B009
    rows = max(1, min(BATCH_TOKENS, int(LOGIT_BYTES / (4 * vocabulary))) // ids.shape[1])
    parts = ids.split(rows)
    known = notes.read("measuring")
    tallies = [Tally(**each) for each in known["tallies"]] if known else [Tally([], [], []) for _ in biases]
    with attach(model, only=only) as observed, torch.no_grad():
        for done in range(len(tallies[0].losses), len(parts)):
            base: Tensor | None = None
            for number, (bias, tally) in enumerate(zip(biases, tallies, strict=True)):
                report(done * len(biases) + number, len(parts) * len(biases), "measuring on held-out text")
                logs = log_probabilities(model, observed, parts[done], bias)
                base = logs if base is None else base
                tally.losses.append(sequence_loss(logs, parts[done].to(logs.device)).cpu().numpy())
                distance = (base.exp() * (base - logs)).sum(-1).double().mean(-1)
                tally.distances.append(distance.cpu().numpy())
                tally.loads.append(observed.load)
            notes.note("measuring", {"tallies": [vars(tally) for tally in tallies]})
    grouped = max(1, BATCH_TOKENS // (rows * ids.shape[1]))
    return [
        tally.point(strength, grouped, tallies[0]) for strength, tally in zip(strengths, tallies, strict=True)
    ]


def log_probabilities(model: nn.Module, observed: Attachment, ids: Tensor, bias: np.ndarray) -> Tensor:
    """(rows, length, vocabulary), float32, with this bias in force."""
    observed.set_bias(bias)
    logits = model(input_ids=ids.to(model_device(model)), use_cache=False).logits
    return torch.log_softmax(logits.float(), dim=-1)


def sequence_loss(logs: Tensor, ids: Tensor) -> Tensor:
    """Mean loss of each sequence, (rows,), nats per predicted token."""
    taken = logs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return -taken.double().mean(-1)


def calibrate(
    model: nn.Module,
    calibration: Tensor,
    held_out: Tensor,
    *,
    law: str = "quantile",
    cap: float | None = None,
    passes: int = 2,
    limit: Limit | None = None,
    as_stored: Callable[[np.ndarray], np.ndarray] = lambda bias: bias,
    only: str | None = None,
    report: Report = lambda *_: None,
    notes: Notebook | None = None,
) -> Calibrated:
    """The bias for ``calibration`` sequences (n, length) that stays within ``limit`` on ``held_out`` ones.

    ``cap`` (law "quantile" only): a multiple of its share that an expert may have; None evens all.
    ``as_stored`` rounds a bias to what the checkpoint can hold, so that what is measured is what is served.
    ``notes`` of an interrupted calibration are gone on from. The model is left as it was.
    """
    if passes < 1:
        raise TrimtabError(f"passes must be at least 1; given {passes}")
    limit = limit if limit is not None else Limit()
    notes = notes if notes is not None else Notebook()
    found = find_bias(model, calibration, law, cap, passes, only, report, notes)
    with attach(model, only=only) as attached:
        trained, top_k = attached.trained, attached.top_k
    biases = [
        trained if strength == 0 else as_stored(trained + strength * (found - trained))
        for strength in STRENGTHS
    ]
    curve = measure(model, held_out, biases, STRENGTHS, only, report, notes)
    good = [point for point in curve[1:] if limit.holds(point)]
    chosen = min(good, key=lambda point: point.maxvio_batch, default=None)
    if chosen is not None and chosen.maxvio_batch >= curve[0].maxvio_batch:
        chosen = None
    bias = trained if chosen is None else biases[curve.index(chosen)]
    draws = held_out.numel() * top_k
    return Calibrated(
        bias=bias,
        curve=curve,
        chosen=chosen,
        floor_batch=noise_floor(trained.shape[1], min(draws, BATCH_TOKENS * top_k)),
        floor_global=noise_floor(trained.shape[1], draws),
    )


def model_device(model: nn.Module) -> torch.device:
    """Where the model's inputs go."""
    return next(model.parameters()).device
