"""What a decision was worth, worked out when its episode is over: one number per request.

``credit`` is the default: what the request itself got, and what it took from others. ``instant``, ``delta``
and ``hybrid`` are the forms of the documents that started this project: levels of throughput and latency
over the recent past, their changes, or both, minus penalties for an uneven fleet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import Status
from trimtab.learn.rollout import Episode
from trimtab.routers.features import FEATURES, MANY, NUM_CONTEXT, NUM_FEATURES

Floats = NDArray[np.float64]
RECENT = 5.0  # s: over which throughput and latency are measured
WAITING, RUNNING, SPEED = (list(FEATURES).index(name) for name in ("waiting", "running", "speed"))


@dataclass(frozen=True)
class RewardConfig:
    """``alpha`` weighs throughput against latency and balance, ``balance_penalty_weight`` the spread of
    load over replicas, ``load_balance_penalty`` its CV e^CV. Of ``credit``: ``power`` of lateness,
    ``dwelling`` per second in the system, ``others`` for delay caused, ``missed`` for a missed SLO.
    """

    form: Literal["credit", "instant", "delta", "hybrid"] = "credit"
    alpha: float = 0.2
    balance_penalty_weight: float = 0.0
    load_balance_penalty: float = 0.0
    power: float = 1.0
    dwelling: float = 0.05
    others: float = 1.0
    missed: float = 1.0
    lost: float = 20.0


def rewards(episode: Episode, config: RewardConfig, scale: float) -> Floats:
    """(N,) reward of each request's routing; ``scale`` (s) makes scenarios comparable."""
    earned = _credit(episode, config, scale) if config.form == "credit" else _levels(episode, config, scale)
    if config.balance_penalty_weight or config.load_balance_penalty:
        spread, variation = unevenness(episode)
        earned = earned - config.balance_penalty_weight * spread
        earned = earned - config.load_balance_penalty * variation * np.exp(np.minimum(variation, 3.0))
    return earned


def lateness(episode: Episode) -> Floats:
    """(N,) seconds to the first token; of those that never got one, to the end of the run."""
    requests = episode.state.requests
    end = float(episode.state.control["now"][0])
    first = requests["first_token"]
    waited = np.where(np.isnan(first), end, first) - requests["arrival"]
    return np.where(np.isfinite(waited), np.maximum(waited, 0.0), 0.0)


def _credit(episode: Episode, config: RewardConfig, scale: float) -> Floats:
    requests = episode.state.requests
    done = requests["status"] == Status.FINISHED
    late = lateness(episode)
    stay = np.where(done, requests["finished"] - requests["arrival"], late)
    cost = (late / scale) ** config.power + config.dwelling * stay / scale
    cost += config.others * delay_to_others(episode) / scale
    cost += config.missed * missed_slo(episode) + config.lost * ~done
    return -np.asarray(cost)


def delay_to_others(episode: Episode) -> Floats:
    """(N,) request-seconds: the prompt's own time of computing, times the requests on its replica then."""
    state = episode.state
    requests, replicas = state.requests, state.replicas
    caused = np.zeros(len(requests))
    served = np.isfinite(requests["first_token"])
    for replica in range(len(replicas)):
        mine = np.flatnonzero(served & (requests["replica"] == replica))
        if not len(mine):
            continue
        rows = requests[mine]
        begun = np.sort(rows["arrival"])
        ended = np.sort(np.where(np.isnan(rows["finished"]), np.inf, rows["finished"]))
        there = np.searchsorted(begun, rows["first_token"]) - np.searchsorted(ended, rows["scheduled"])
        computed = rows["prefill_tokens"] - rows["hit_tokens"]
        seconds = computed * state.groups["prefill_s"][replicas["group"][replica]]
        caused[mine] = seconds * np.maximum(there - 1, 0)
    return caused


def missed_slo(episode: Episode) -> NDArray[np.bool_]:
    """(N,) True where a bound of the scenario's SLO was not met."""
    requests, slo = episode.state.requests, episode.scenario.slo
    tokens = np.maximum(requests["decode_tokens"] - 1, 1)
    per_token = (requests["finished"] - requests["first_token"]) / tokens
    missed = np.zeros(len(requests), np.bool_)
    if slo.ttft_ms is not None:
        missed |= lateness(episode) > slo.ttft_ms / 1000
    if slo.tpot_ms is not None:
        missed |= per_token > slo.tpot_ms / 1000
    return missed


def _levels(episode: Episode, config: RewardConfig, scale: float) -> Floats:
    """Throughput and mean latency of what finished in the ``RECENT`` past of the next decision."""
    requests = episode.state.requests
    done = requests["status"] == Status.FINISHED
    order = np.argsort(requests["finished"][done])
    ends = requests["finished"][done][order]
    sums = np.concatenate([[0.0], np.cumsum((requests["finished"] - requests["arrival"])[done][order])])
    after = _next_decision(requests)
    high, low = np.searchsorted(ends, after), np.searchsorted(ends, after - RECENT)
    count = np.maximum(high - low, 1)
    throughput = (high - low) / RECENT
    latency = (sums[high] - sums[low]) / count
    level = config.alpha * throughput / max(throughput.mean(), 1e-9)
    level = level - (1 - config.alpha) * latency / max(latency.mean(), 1e-9)
    by_time = np.argsort(after, kind="stable")
    change = np.zeros(len(level))
    change[by_time] = np.diff(level[by_time], prepend=level[by_time[:1]])
    if config.form == "instant":
        return np.asarray(level)
    return change if config.form == "delta" else 0.5 * (level + change)


def _next_decision(requests: NDArray[Any]) -> Floats:
    """(N,) arrival of the request after each one; of the last, its own."""
    arrival = np.where(np.isfinite(requests["arrival"]), requests["arrival"], 0.0)
    ordered = np.sort(arrival)
    at = np.minimum(np.searchsorted(ordered, arrival, side="right"), len(ordered) - 1)
    return np.asarray(ordered[at])


def unevenness(episode: Episode) -> tuple[Floats, Floats]:
    """(N,) each: spread (max - min over max) and CV over replicas of outstanding requests per speed, as
    every decision found them."""
    rows = episode.rows
    width = (rows.shape[1] - 2 - NUM_CONTEXT) // (2 + NUM_FEATURES)
    each = rows[:, 2 + NUM_CONTEXT :].reshape(len(rows), width, 2 + NUM_FEATURES)[:, :, 2:].astype(np.float64)
    present = np.arange(width)[None, :] < rows[:, 1:2]
    load = MANY * (np.expm1(4 * each[:, :, WAITING]) + np.expm1(4 * each[:, :, RUNNING]))
    load = load / np.maximum(each[:, :, SPEED], 1e-6)
    count = np.maximum(present.sum(axis=1), 1)
    mean = (load * present).sum(axis=1) / count
    variance = (((load - mean[:, None]) ** 2) * present).sum(axis=1) / count
    most = np.where(present, load, 0.0).max(axis=1)
    least = np.where(present, load, np.inf).min(axis=1)
    least = np.where(np.isfinite(least), least, 0.0)
    return (most - least) / np.maximum(most, 1.0), np.sqrt(variance) / np.maximum(mean, 1e-6)
