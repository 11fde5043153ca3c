"""Fit a mix to a trace, and say how well it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.workload.mix import UNIT, ArrivalFacts, Line, Mix
from trimtab.workload.trace import Trace

Pair = tuple[NDArray[Any], NDArray[Any]]

PROMPT_ERROR = 0.002  # largest distance between the prompt's line and its counts
OUTPUT_ERROR = 0.016  # the same within one range of prompts; the ranges' errors cancel in the whole
RANGES = 64  # of prompts with equal mass, before tails and spikes get their own
TAIL_SHARES = (0.001, 0.0025, 0.005, 0.01, 0.02)


@dataclass(frozen=True)
class FitError:
    """Real lengths against others, mostly drawn from a mix."""

    ks_prefill: float  # two-sample Kolmogorov-Smirnov distance
    ks_decode: float
    ks_total: float  # of prompt + output, which only the joint law gets right
    spearman: tuple[float, float]  # real, fitted
    pearson_log: tuple[float, float]  # of log lengths: real, fitted
    mean_prefill: tuple[float, float]  # tokens: real, fitted
    mean_decode: tuple[float, float]


def fit_mix(trace: Trace, name: str, source: str = "") -> Mix:
    """The joint law of the trace's lengths as broken lines; deterministic.

    Prompts are cut into ranges of about equal mass, finer in both tails, and a prompt length that
    alone has half the mass of a range becomes one.
    """
    prefill, decode = np.maximum(trace.prefill, 1), np.maximum(trace.decode, 1)
    up_to = _ranges(prefill)
    range_of = np.searchsorted(up_to[:-1], prefill)
    order = np.argsort(range_of, kind="stable")
    parts = np.split(decode[order], np.cumsum(np.bincount(range_of, minlength=len(up_to)))[:-1])
    return Mix(
        name=name,
        source=source,
        requests=len(prefill),
        prefill=_line(prefill, PROMPT_ERROR),
        up_to=up_to,
        output=tuple(_line(part, OUTPUT_ERROR) for part in parts),
        arrivals=arrival_facts(trace),
    )


def fit_error(mix: Mix, trace: Trace, seed: int = 0, draws: int = 200_000) -> FitError:
    """Compare ``draws`` requests of the mix with the trace."""
    drawn = mix.sample(np.random.default_rng(seed), draws)
    return compare((np.maximum(trace.prefill, 1), np.maximum(trace.decode, 1)), drawn)


def compare(real: Pair, other: Pair) -> FitError:
    """Distances between two samples of (prompt, output) tokens."""
    (prefill, decode), (other_prefill, other_decode) = real, other
    return FitError(
        ks_prefill=ks_distance(prefill, other_prefill),
        ks_decode=ks_distance(decode, other_decode),
        ks_total=ks_distance(prefill + decode, other_prefill + other_decode),
        spearman=(spearman(*real), spearman(*other)),
        pearson_log=(
            _pearson(np.log(prefill), np.log(decode)),
            _pearson(np.log(other_prefill), np.log(other_decode)),
        ),
        mean_prefill=(float(prefill.mean()), float(other_prefill.mean())),
        mean_decode=(float(decode.mean()), float(other_decode.mean())),
    )


def halves(trace: Trace, seed: int = 0) -> tuple[Trace, Trace]:
    """The trace's rows in two random halves, in order: fit one, hold the other out."""
    first = np.zeros(len(trace.prefill), bool)
    first[np.random.default_rng(seed).permutation(len(first))[: len(first) // 2]] = True
    return (
        Trace(trace.name, None, trace.prefill[first], trace.decode[first]),
        Trace(trace.name, None, trace.prefill[~first], trace.decode[~first]),
    )


def ks_distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Two-sample Kolmogorov-Smirnov distance: the largest gap between the cumulative shares."""
    one, other = np.sort(one), np.sort(other)
    values = np.union1d(one, other)
    below_one = np.searchsorted(one, values, side="right") / len(one)
    below_other = np.searchsorted(other, values, side="right") / len(other)
    return float(np.max(np.abs(below_one - below_other)))


def spearman(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Rank correlation, ties sharing their mean rank."""
    return _pearson(_ranks(one), _ranks(other))


def _ranks(values: NDArray[np.int64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _pearson(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """0 where one of them does not vary."""
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / scale) if scale > 0 else 0.0


def _ranges(prefill: NDArray[np.int64]) -> NDArray[np.int64]:
    """Largest prompt of each range, increasing."""
    values, counts = np.unique(prefill, return_counts=True)
    share = np.cumsum(counts) / len(prefill)
    wanted = np.union1d(np.arange(1, RANGES) / RANGES, [*TAIL_SHARES, *(1 - np.array(TAIL_SHARES))])
    edges = values[np.minimum(np.searchsorted(share, wanted), len(values) - 1)]
    spikes = np.flatnonzero(counts > 0.5 / RANGES * len(prefill))
    before = values[spikes[spikes > 0] - 1]
    return np.unique(np.concatenate([edges, values[spikes], before, values[-1:]])).astype(np.int64)


def _line(values: NDArray[np.int64], error: float) -> Line:
    """The cumulative shares of ``values`` with as few points as ``error`` allows, tighter in the tails."""
    distinct, counts = np.unique(values, return_counts=True)
    above = np.cumsum(counts) / len(values)
    below = np.concatenate([[0.0], above[:-1]])
    at = np.stack([distinct - 1, distinct], axis=1).ravel()  # v starts at (v - 1) + 1/2
    share = np.stack([below, above], axis=1).ravel()
    first = np.concatenate([[True], np.diff(at) > 0])  # v and v + 1 share a point
    at, share = at[first], share[first]
    kept = _simplify(at.astype(np.float64), share, error * np.maximum(4 * share * (1 - share), 0.05))
    return Line(at[kept].astype(np.int64), np.rint(share[kept] * UNIT).astype(np.int64))


def _simplify(
    x: NDArray[np.float64], y: NDArray[np.float64], allowed: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indices of points whose broken line stays within ``allowed`` of every point, vertically.

    Douglas and Peucker's halving: keep the worst point and look at both sides, until none is bad.
    """
    kept, todo = {0, len(x) - 1}, [(0, len(x) - 1)]
    while todo:
        start, stop = todo.pop()
        if stop - start < 2:
            continue
        inside = slice(start + 1, stop)
        chord = y[start] + (y[stop] - y[start]) * (x[inside] - x[start]) / (x[stop] - x[start])
        excess = np.abs(y[inside] - chord) / allowed[inside]
        worst = int(np.argmax(excess))
        if excess[worst] > 1:
            middle = start + 1 + worst
            kept.add(middle)
            todo += [(start, middle), (middle, stop)]
    return np.array(sorted(kept))


def arrival_facts(trace: Trace) -> ArrivalFacts | None:
    """Rate, variation of gaps and dispersion; None without times or with less than two gaps."""
    if trace.arrival is None or len(trace.arrival) < 3 or trace.arrival[-1] <= trace.arrival[0]:
        return None
    span = float(trace.arrival[-1] - trace.arrival[0])
    gaps = np.diff(trace.arrival)
    per_minute = np.bincount(((trace.arrival - trace.arrival[0]) // 60).astype(np.int64))
    whole = per_minute[:-1] if len(per_minute) > 2 else per_minute  # the last minute is cut short
    return ArrivalFacts(
        duration_s=round(span, 3),
        rate_per_s=round(len(gaps) / span, 4),
        gap_cv=round(float(gaps.std() / gaps.mean()), 3),
        dispersion_60s=round(float(whole.var() / max(whole.mean(), 1e-12)), 2),
    )
