"""The gate: how much each modality counts for each sample, kept at a target on average.

    gate = ModalityGate(["text", "vision", "audio"], network)   # network(...) -> logits (batch, 3)
    weights = gate(features)                                    # for softmax(network(features))

Weights multiply features, so gradients reach the logits, and a gate that is free to move them learns to
cancel any bias (docs/background/modality-balance.md has the experiment). Therefore the logits are bounded
or normalised: the gate keeps its say about each sample and loses it about the average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.balance import BiasLaw, Limits, law
from trimtab.balance.arrays import positive
from trimtab.balance.counts import Reduce, reduced
from trimtab.errors import TrimtabError, unknown

Logits = Literal["bounded", "normalised", "free"]
HISTORY = 0.99  # decay of the load history per batch
OFF_TARGET = 0.05  # of the weight: what a bias at its bound may not leave without an alarm
PATIENCE = 50  # batches at the bound before the alarm
LEAD = 0.1  # of the weight above an even share: what makes a modality the dominant one


class ModalityGate(nn.Module):
    """Weights (batch, modalities), each row summing to 1, whose mean follows a target.

    ``network`` maps whatever the gate is called with to logits (batch, modalities); its softmax is what
    the model had before. With ``enable_load_balancing`` a bias, moved by the sign law of
    `trimtab.balance` by ``load_balance_update_rate`` after each training batch, is added to the logits
    outside the gradient. Every modality but the dominant one is to get ``target_balance_ratio`` of the
    weight, the dominant one the rest. ``dominant`` names it; left out, it is the first whose moving average
    of mean weights is 0.1 above an even share after ``detect_after`` training batches or more. It stays the
    dominant one for good; nothing is balanced before there is one.

    Loads are of samples that have every modality: what others lack says nothing about the gate.

    Bounded logits are within ``logit_bound`` of 0: with 1, the gate may favour one modality over another by
    e^2 = 7.4 times more in one sample than on average. A larger bound leaves more to the sample and makes the
    mean harder to hold. A load is used for the batch after it. ``reduce`` sums loads over processes (as
    `trimtab.balance.reduce_counts` takes it). All state is in ``state_dict()`` as one tensor.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        network: nn.Module,
        *,
        enable_load_balancing: bool = True,
        load_balance_update_rate: float = 0.01,
        target_balance_ratio: float = 0.15,
        dominant: str | None = None,
        logits: Logits = "bounded",
        logit_bound: float = 1.0,
        detect_after: int = 50,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.modalities = checked_names(modalities)
        self.network = network
        self.enable_load_balancing = enable_load_balancing
        self.target_balance_ratio = checked_ratio(target_balance_ratio, len(self.modalities))
        if logits not in get_args(Logits):
            raise unknown("kind of logits", logits, get_args(Logits))
        if detect_after < 1:
            raise TrimtabError(f"detect_after is a number of batches, at least 1; given {detect_after!r}")
        self.logits = logits
        self.logit_bound = positive(logit_bound, "logit_bound")
        self.detect_after = detect_after
        self.reduce = reduce
        self.normalise = (
            nn.BatchNorm1d(len(self.modalities), affine=False) if logits == "normalised" else None
        )
        count = len(self.modalities)
        self.law: BiasLaw = law(
            "sign",
            positive(load_balance_update_rate, "load_balance_update_rate"),
            limits=Limits(bound=bias_bound(self.logit_bound, self.target_balance_ratio, count)),
            start=np.zeros(count),
        )
        self.history: NDArray[np.float64] = np.zeros(count)  # decayed sum of mean weights
        self.num_batches = 0
        self.dominant = dominant
        if dominant is not None and dominant not in self.modalities:
            raise unknown("modality", dominant, self.modalities)
        self._stuck = 0
        self._pending: Tensor | None = None
        self._bias = torch.zeros(count)

    def forward(self, *inputs: Any, present: Tensor | None = None) -> Tensor:
        """Weights (batch, modalities) of ``network(*inputs)``.

        ``present`` (batch, modalities) bool: False where a sample lacks a modality, whose weight is then 0;
        the others share the whole. A sample that lacks all has weights of 0.
        """
        self.settle()
        logits = self.network(*inputs)
        if logits.shape[-1:] != (len(self.modalities),):
            raise TrimtabError(
                f"the gate's network gave logits of shape {tuple(logits.shape)}; "
                f"the last size must be {len(self.modalities)}, one per modality"
            )
        logits = self.held(logits)
        if self.enable_load_balancing:
            logits = logits + self._bias.to(logits)
        if present is None:
            weights = torch.softmax(logits, -1)
        else:
            weights = torch.softmax(logits.masked_fill(~present, torch.finfo(logits.dtype).min), -1)
            weights = weights * present
        if self.training and torch.is_grad_enabled():
            self._pending = self._load_of(weights.detach(), present)
        return weights

    def held(self, logits: Tensor) -> Tensor:
        """Logits without the freedom to move their average at will."""
        if self.logits == "bounded":
            return self.logit_bound * torch.tanh(logits / self.logit_bound)
        return logits if self.normalise is None else self.normalise(logits)

    def target(self) -> NDArray[np.float64]:
        """Wanted mean weights (modalities,); NaN while the dominant modality is being detected."""
        if self.dominant is None:
            return np.full(len(self.modalities), math.nan)
        wanted = np.full(len(self.modalities), self.target_balance_ratio)
        wanted[self.modalities.index(self.dominant)] = 1 - wanted[1:].sum()
        return wanted

    @property
    def bias(self) -> NDArray[np.float64]:
        """(modalities,) what is added to the logits."""
        self.settle()
        return np.array(self.law.bias)

    @property
    def load_history(self) -> NDArray[np.float64]:
        """(modalities,) moving average of the mean weights of training batches; NaN before the first."""
        self.settle()
        if not self.num_batches:
            return np.full(len(self.modalities), math.nan)
        return np.asarray(self.history / self.history.sum())

    @property
    def alarm(self) -> str:
        """What is wrong, in words; empty in health."""
        self.settle()
        if self._stuck < PATIENCE:
            return ""
        load, wanted = self.load_history, self.target()
        worst = int(np.argmax(np.abs(load - wanted)))
        return (
            f"the bias has been at its bound for {self._stuck} batches, and {self.modalities[worst]} has "
            f"{load[worst]:.2f} of the weight (target {wanted[worst]:.2f}): the gate cancels the bias"
        )

    # --- the load, one batch late -----------------------------------------------------------------

    def _load_of(self, weights: Tensor, present: Tensor | None) -> Tensor:
        """(modalities,) weights of the complete samples, summed; kept on the device."""
        weights = weights.reshape(-1, weights.shape[-1])
        if present is None:
            return weights.sum(0)
        complete = present.reshape(weights.shape).all(-1, keepdim=True)
        return (weights * complete).sum(0)

    def settle(self) -> None:
        """Take in the load of the last batch. Done by the next forward, so that no device is waited for."""
        if self._pending is None:
            return
        load = self._pending.to("cpu", torch.float64).numpy()
        self._pending = None
        load = reduced(load, self.reduce)
        total = load.sum()
        if total == 0:
            return  # no complete sample in this batch
        if not np.isfinite(total):
            raise TrimtabError("the gate's weights are not finite: the training has diverged")
        self.history = HISTORY * self.history + load / total
        self.num_batches += 1
        if not self.enable_load_balancing:
            return
        if self.dominant is not None:
            self._bias = torch.tensor(self.law.update(load, self.target()).tolist())
            self._watch()
        elif self.num_batches >= self.detect_after:
            leader = int(np.argmax(self.history))
            if self.history[leader] / self.history.sum() > 1 / len(self.modalities) + LEAD:
                self.dominant = self.modalities[leader]

    def _watch(self) -> None:
        bound = self.law.limits.bound
        assert bound is not None
        if max(map(abs, np.asarray(self.law.bias).tolist())) < 0.99 * bound:
            if self._stuck:
                self._stuck = 0
        elif np.abs(self.history / self.history.sum() - self.target()).max() > OFF_TARGET:
            self._stuck += 1

    # --- state ------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Batches, batches at the bound, dominant modality (-1: not known), bias, history; float64."""
        self.settle()
        dominant = -1 if self.dominant is None else self.modalities.index(self.dominant)
        head = [self.num_batches, self._stuck, dominant]
        return torch.from_numpy(np.concatenate([head, np.asarray(self.law.bias), self.history]))

    def set_extra_state(self, state: Tensor) -> None:
        count = len(self.modalities)
        if state.shape != (3 + 2 * count,):
            raise TrimtabError(f"the gate's state is not one of {count} modalities")
        values = state.detach().cpu().double().numpy()
        self._pending = None
        self.num_batches, self._stuck = int(values[0]), int(values[1])
        self.dominant = None if values[2] < 0 else self.modalities[int(values[2])]
        self.law.bias = values[3 : 3 + count].copy()
        self.history = values[3 + count :].copy()
        self._bias = torch.from_numpy(self.law.bias).float()


class GateNetwork(nn.Module):
    """Logits (batch, modalities) from encodings, each (batch, size): one hidden layer over all of them."""

    def __init__(self, sizes: Sequence[int], hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(sum(sizes), hidden), nn.ReLU(), nn.Linear(hidden, len(sizes)))

    def forward(self, encodings: Sequence[Tensor]) -> Tensor:
        return self.layers(torch.cat(tuple(encodings), -1))


def checked_names(modalities: Sequence[str]) -> list[str]:
    """At least two different names."""
    names = [str(name) for name in modalities]
    if isinstance(modalities, str) or len(names) < 2 or len(set(names)) < len(names):
        raise TrimtabError(f"a gate needs two or more modalities of different names; given {modalities!r}")
    return names


def checked_ratio(ratio: float, count: int) -> float:
    """A share that leaves the dominant of ``count`` modalities at least as much."""
    if not 0 < positive(ratio, "target_balance_ratio") <= 1 / count + 1e-9:
        raise TrimtabError(
            f"target_balance_ratio is the share of each modality but the dominant one, above 0 and at most "
            f"1/{count} = {1 / count:.3g} for {count} modalities; given {ratio!r}"
        )
    return float(ratio)


def bias_bound(logit_bound: float, ratio: float, count: int) -> float:
    """What the bias of bounded logits can need: their whole range, and the target's log odds."""
    return 2 * logit_bound + math.log((1 - ratio * (count - 1)) / ratio)
