"""Stage 2: behaviour cloning. The scorer learns to answer as the teachers did.

Cross-entropy towards the choice of a teacher that only chooses; where every replica's cost is known, the
expected regret, which forgives what does not matter and not what does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.learn.demonstrations import Demonstrations
from trimtab.learn.policy import Decisions, Scorer, unpack
from trimtab.learn.presets import TrainConfig
from trimtab.learn.scenarios import FIRST_SEED

HELD_OUT = 0.1  # share of the scenarios
MOST_REGRET = 20.0  # mean regrets of a router that tosses a coin; more says nothing new
Floats = NDArray[np.float64]


@dataclass
class Lessons:
    """``regret`` (N, R) over the mean regret of a coin, 0 where unknown; ``known`` (N,) bool."""

    decisions: Decisions
    regret: Tensor
    known: Tensor

    def select(self, rows: Any) -> Lessons:
        return Lessons(self.decisions.select(rows), self.regret[rows], self.known[rows])


@dataclass(frozen=True)
class Agreement:
    """A clone against one teacher, on scenarios that it did not learn from. ``accuracy``: the
    same choice, or a replica that looks the same in every feature, among which teachers toss a coin;
    ``chance``: that of a coin. Where costs are known: Kendall's tau-b and Spearman's rho of the scores
    with minus the costs, and ``regret`` of the clone's choice over that of a coin."""

    teacher: str
    decisions: int
    accuracy: float
    chance: float
    kendall: float | None = None
    spearman: float | None = None
    regret: float | None = None

    def line(self) -> str:
        text = f"{self.teacher}: same choice {self.accuracy:.1%} (a coin: {self.chance:.1%})"
        if self.kendall is not None:
            text += f", Kendall {self.kendall:.2f}, Spearman {self.spearman:.2f}"
            text += f", regret {self.regret:.1%} of a coin's"
        return f"{text}, {self.decisions:,} held-out decisions"


def clone(
    found: Demonstrations, config: TrainConfig, report: Callable[..., None]
) -> tuple[Scorer, list[Agreement]]:
    """The cloned policy, and how well it agrees with each teacher where it has not learnt from it.

    Same demonstrations and configuration, same policy, bit for bit.

    Raises
    ------
    TrimtabError
        where there are too few demonstrations to hold any out.
    """
    held_out = hold_out(found, config.seed)
    lessons, order = _lessons(found), np.flatnonzero(~held_out)
    if not len(order) or not held_out.any():
        raise TrimtabError(
            f"{len(found)} demonstrations of {len(np.unique(found.scenario))} scenarios are too few "
            "to clone; raise clone.steps_per_policy"
        )
    scorer = beginner(config)
    settings = config.clone
    optimizer = torch.optim.Adam(scorer.parameters(), lr=settings.learning_rate)
    fading = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 - epoch / settings.epochs)
    generator = torch.Generator().manual_seed(FIRST_SEED + config.seed)
    rows = torch.from_numpy(order)
    for epoch in range(settings.epochs):
        shuffled, total = rows[torch.randperm(len(rows), generator=generator)], 0.0
        for batch in shuffled.split(settings.batch_size):
            loss = _loss(scorer, lessons.select(batch), config.ppo.temperature)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        fading.step()
        report(epoch + 1, settings.epochs, f"loss {total / len(rows):.3f}")
    return scorer, agreement(scorer, found, held_out)


def beginner(config: TrainConfig) -> Scorer:
    """What learning begins with: a heuristic of sharpness ``residual``, or chance."""
    scorer = Scorer(config.hidden, config.seed)
    if config.residual:
        scorer.lean_on_heuristic(config.residual)
    return scorer


def hold_out(found: Demonstrations, seed: int) -> NDArray[np.bool_]:
    """(N,) True for a tenth of every teacher's scenarios, at least one each: whole scenarios, because
    decisions of one are alike."""
    chosen = np.zeros(len(found), np.bool_)
    rng = np.random.default_rng([FIRST_SEED, seed])
    for teacher in range(len(found.teachers)):
        mine = np.unique(found.scenario[found.teacher == teacher])
        if len(mine) > 1:
            count = max(1, round(HELD_OUT * len(mine)))
            chosen |= np.isin(found.scenario, rng.choice(mine, count, replace=False))
    return chosen


def _lessons(found: Demonstrations) -> Lessons:
    decisions = unpack(found.rows)
    known = ~np.isnan(found.costs[:, 0])
    regret = _regret(found.costs)
    coin = np.array([row[np.isfinite(row)].mean() for row in regret[known]])
    scale = max(float(coin.mean()), 1e-9) if len(coin) else 1.0
    usable = np.minimum(np.where(np.isfinite(regret), regret / scale, 0.0), MOST_REGRET)
    return Lessons(decisions, torch.from_numpy(usable.astype(np.float32)), torch.from_numpy(known))


def _regret(costs: NDArray[np.float32]) -> Floats:
    """(N, R) cost above the least; not finite where there is no cost."""
    finite = np.where(np.isfinite(costs), costs, np.inf).astype(np.float64)
    least = finite.min(axis=1, keepdims=True)
    return finite - np.where(np.isfinite(least), least, 0.0)


def _loss(scorer: Scorer, lessons: Lessons, temperature: float) -> Tensor:
    decisions = lessons.decisions
    log_probs = torch.log_softmax(scorer(decisions) / temperature, dim=1)
    chosen = -log_probs.gather(1, decisions.chosen[:, None])[:, 0]
    expected = (log_probs.exp() * lessons.regret).sum(dim=1)
    return torch.where(lessons.known, expected, chosen).mean()


# --- how well -----------------------------------------------------------------------------------


def agreement(scorer: Scorer, found: Demonstrations, rows: NDArray[np.bool_]) -> list[Agreement]:
    """Per teacher, over the decisions at ``rows`` (N,)."""
    decisions = unpack(found.rows[rows])
    with torch.no_grad():
        scores = scorer(decisions).double().numpy()
    looks = decisions.features.numpy()
    chosen = found.rows[rows, 0].astype(np.int64)
    costs, teacher = found.costs[rows], found.teacher[rows]
    result = []
    for index, name in enumerate(found.teachers):
        mine = teacher == index
        if mine.any():
            result.append(_agreement(name, scores[mine], chosen[mine], looks[mine], costs[mine]))
    return result


def _agreement(
    name: str,
    scores: Floats,
    chosen: NDArray[np.int64],
    looks: NDArray[np.float32],
    costs: NDArray[np.float32],
) -> Agreement:
    each, usable = np.arange(len(scores)), np.isfinite(scores)
    picked = scores.argmax(axis=1)
    alike = (looks == looks[each, chosen][:, None, :]).all(axis=2) & usable
    accuracy = float(alike[each, picked].mean())
    chance = float((alike.sum(axis=1) / usable.sum(axis=1)).mean())
    if np.isnan(costs[:, 0]).any():
        return Agreement(name, len(chosen), accuracy, chance)
    regret = _regret(costs)
    mine = regret[each, picked].mean()
    coin = np.mean([row[np.isfinite(row)].mean() for row in regret])
    tau, rho = rank_agreement(scores, -costs.astype(np.float64))
    return Agreement(name, len(chosen), accuracy, chance, tau, rho, float(mine / max(coin, 1e-9)))


def rank_agreement(first: Floats, second: Floats) -> tuple[float, float]:
    """Kendall's tau-b and Spearman's rho between rows of (N, R), means over the rows in which both rank at
    all; entries that are not finite in either take no part."""
    usable = np.isfinite(first) & np.isfinite(second)
    pairs = usable[:, :, None] & usable[:, None, :]
    one, other = _order(first, pairs), _order(second, pairs)
    tau = _cosine(one.reshape(len(one), -1), other.reshape(len(other), -1))
    rho = _cosine(one.sum(axis=2), other.sum(axis=2))  # ranks around their mean, ties averaged
    return tau, rho


def _order(values: Floats, pairs: NDArray[np.bool_]) -> Floats:
    """(N, R, R) 1 where the first is greater, -1 where it is less."""
    known = np.where(np.isfinite(values), values, 0.0)
    return np.where(pairs, np.sign(known[:, :, None] - known[:, None, :]), 0.0)


def _cosine(one: Floats, other: Floats) -> float:
    size = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    ranked = size > 0
    return float(((one * other).sum(axis=1)[ranked] / size[ranked]).mean()) if ranked.any() else float("nan")
