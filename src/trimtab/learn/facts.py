"""What the routed traffic looked like: how even, and what the terms of the reward measured.

Beside the measurements of PPO itself, which ``learn.ppo`` takes from its batches.
"""

from __future__ import annotations

import numpy as np

from trimtab.engine.dtypes import Status
from trimtab.learn.rewards import (
    RUNNING,
    WAITING,
    RewardConfig,
    delay_to_others,
    lateness,
    missed_slo,
    unevenness,
)
from trimtab.learn.rollout import Episode
from trimtab.routers.features import MANY, NUM_CONTEXT, NUM_FEATURES


def watch(groups: list[list[Episode]], config: RewardConfig) -> dict[str, float]:
    """Means over the first play of each group; the other plays have the same arrivals.

    ``route/share_max_equal``: the busiest replica's share times the number of replicas, over fleets whose
    replicas are equal and never down; 1 is even, nan where there was no such fleet. ``queue/variance``: of
    requests outstanding over replicas, as decisions found them. ``reward/...``: what the terms of the
    reward measure, before their weights; nan for those that the form of the reward does not use.
    """
    found = [_of_episode(group[0], config) for group in groups]
    return {name: _mean([one[name] for one in found]) for name in found[0]}


def busiest_share(episode: Episode) -> float:
    """See ``route/share_max_equal``."""
    state, faults = episode.state, episode.scenario.faults
    speeds = state.replicas["speed"]
    if np.ptp(speeds) > 0 or faults.events or faults.mtbf_s or len(state.pools) > 1:
        return float("nan")
    chosen = episode.rows[episode.decided, 0].astype(np.int64)
    return float(np.bincount(chosen).max() / max(len(chosen), 1) * len(speeds))


def _of_episode(episode: Episode, config: RewardConfig) -> dict[str, float]:
    nothing = float("nan")
    credit = config.form == "credit"
    facts = {
        "route/share_max_equal": busiest_share(episode),
        "queue/variance": queue_variance(episode),
        "reward/late_s": float(lateness(episode).mean()),
        "reward/delay_to_others_s": float(delay_to_others(episode).mean()) if credit else nothing,
        "reward/missed": float(missed_slo(episode).mean()) if credit else nothing,
        "reward/lost": float((episode.state.requests["status"] != Status.FINISHED).mean()),
        "reward/spread": nothing,
        "reward/variation": nothing,
    }
    if config.balance_penalty_weight or config.load_balance_penalty:
        spread, variation = unevenness(episode)
        facts |= {"reward/spread": float(spread.mean()), "reward/variation": float(variation.mean())}
    return facts


def queue_variance(episode: Episode) -> float:
    """requests^2, mean over decisions."""
    rows = episode.rows[episode.decided]
    width = (rows.shape[1] - 2 - NUM_CONTEXT) // (2 + NUM_FEATURES)
    each = rows[:, 2 + NUM_CONTEXT :].reshape(len(rows), width, 2 + NUM_FEATURES)[:, :, 2:].astype(np.float64)
    present = np.arange(width)[None, :] < rows[:, 1:2]
    queued = MANY * (np.expm1(4 * each[:, :, WAITING]) + np.expm1(4 * each[:, :, RUNNING]))
    count = present.sum(axis=1)
    mean = (queued * present).sum(axis=1) / count
    variance = (((queued - mean[:, None]) ** 2) * present).sum(axis=1) / count
    return float(variance.mean()) if len(rows) else float("nan")


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
