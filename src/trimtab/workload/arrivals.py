"""When requests arrive: fixed gaps, renewal processes, traces, and Poisson with a rate that moves.

Time-varying rates are exact: unit-rate Poisson times are sent through the inverse of the integrated
rate, so that no time step and no rejection is involved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trimtab import scenario
from trimtab.errors import TrimtabError
from trimtab.workload.trace import Trace

Floats = NDArray[np.float64]
Gaps = Callable[[int], Floats]


def arrival_times(
    workload: scenario.Workload, trace: Trace | None, count: int, rng: np.random.Generator
) -> Floats:
    """Sorted arrival times in seconds: all in [0, duration_s) when that is set, else ``count`` of them."""
    arrivals, duration = workload.arrivals, workload.duration_s
    if isinstance(arrivals, scenario.TraceArrivals):
        assert trace is not None
        return _replayed(arrivals, trace, count, duration)
    if isinstance(arrivals, scenario.StaticArrivals):
        return _static(arrivals, workload.num_requests, count, duration)
    if isinstance(arrivals, scenario.PoissonArrivals):
        limit = np.inf if arrivals.cap is None else arrivals.cap
        return _renewal(
            lambda n: np.minimum(rng.standard_exponential(n), limit) / arrivals.qps, count, duration
        )
    if isinstance(arrivals, scenario.GammaArrivals):
        shape = arrivals.cv**-2
        return _renewal(lambda n: rng.standard_gamma(shape, n) / (shape * arrivals.qps), count, duration)
    integrated, inverse = _rate(arrivals)
    expected = None if duration is None else float(integrated(np.array([duration]))[0])
    times = inverse(_renewal(rng.standard_exponential, count, expected))
    return times if duration is None else times[times < duration]


def _renewal(gaps: Gaps, count: int, until: float | None) -> Floats:
    """Cumulated gaps: ``count`` of them, or as many as stay below ``until``.

    ``gaps(n)`` are the next n gaps; they are drawn in pieces because their number is not known.
    """
    if until is None:
        return np.cumsum(gaps(count))
    pieces = [gaps(1024)]
    total, drawn = float(pieces[0].sum()), 1024
    while total < until:
        mean = max(total / drawn, 1e-12)
        pieces.append(gaps(int(min((until - total) / mean * 1.02, 1e7)) + 1024))
        total += float(pieces[-1].sum())
        drawn += len(pieces[-1])
    times = np.cumsum(np.concatenate(pieces))
    return times[times < until]


def _static(
    arrivals: scenario.StaticArrivals, asked: int | None, count: int, duration: float | None
) -> Floats:
    if arrivals.qps is None:
        if duration is not None and asked is None:
            raise TrimtabError(
                "static arrivals without qps all come at time zero, so duration_s says nothing; "
                "give num_requests or qps"
            )
        return np.zeros(count)
    if duration is not None:
        count = int(np.ceil(duration * arrivals.qps))
    return np.arange(count) / arrivals.qps


def _replayed(arrivals: scenario.TraceArrivals, trace: Trace, count: int, duration: float | None) -> Floats:
    if trace.arrival is None:
        raise TrimtabError(
            f"{trace.name} has no arrival times; use arrivals of another kind (poisson, gamma, ...)"
        )
    times = trace.arrival * arrivals.time_scale
    if duration is not None:
        return times[times < duration]
    if count > len(times):
        raise TrimtabError(
            f"num_requests={count} but {trace.name} has {len(times)} arrivals; ask for at most that many"
        )
    return times[:count].copy()


# --- rates that move ----------------------------------------------------------------------------


def _rate(
    arrivals: scenario.DiurnalArrivals | scenario.StepArrivals | scenario.BurstArrivals,
) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    """The integrated rate (time in s -> expected requests so far) and its inverse."""
    if isinstance(arrivals, scenario.DiurnalArrivals):
        return _diurnal(arrivals)
    if isinstance(arrivals, scenario.StepArrivals):
        return _steps(arrivals)
    return _bursts(arrivals)


def _steps(arrivals: scenario.StepArrivals) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    starts: Floats = np.array([start for start, _ in arrivals.steps], np.float64)
    rates: Floats = np.array([rate for _, rate in arrivals.steps], np.float64)
    if starts[0] != 0 or np.any(np.diff(starts) <= 0) or not np.all(np.isfinite([*starts, *rates])):
        raise TrimtabError(f"steps {arrivals.steps}: starts must be finite, increasing and begin at 0")
    expected: Floats = np.concatenate([[0.0], np.cumsum(rates[:-1] * np.diff(starts))])

    def integrated(times: Floats) -> Floats:
        step = np.searchsorted(starts, times, side="right") - 1
        return np.asarray(expected[step] + (times - starts[step]) * rates[step])

    def inverse(levels: Floats) -> Floats:
        # side="left" - 1 never picks a step of rate zero but the last: its level is that of its successor
        step = np.maximum(np.searchsorted(expected, levels, side="left") - 1, 0)
        if len(levels) and rates[step[-1]] == 0:
            reached = int(np.searchsorted(levels, expected[-1]))
            raise TrimtabError(
                f"the rate is 0 from {starts[-1]:g} s on: only {reached} of {len(levels)} requests "
                "can arrive; give duration_s or a last step above 0"
            )
        return np.asarray(starts[step] + (levels - expected[step]) / rates[step])

    return integrated, inverse


def _bursts(
    arrivals: scenario.BurstArrivals,
) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    period, quiet = arrivals.every_s, arrivals.every_s - arrivals.burst_s
    if quiet < 0:
        raise TrimtabError(
            f"burst_s={arrivals.burst_s:g} is longer than every_s={period:g}; it must fit inside"
        )
    knots = np.array([0.0, quiet, period])
    levels_at = np.cumsum([0.0, arrivals.qps * quiet, arrivals.qps * arrivals.factor * arrivals.burst_s])
    return _periodic(
        period,
        levels_at[-1],
        lambda x: np.interp(x, knots, levels_at),
        lambda y: np.interp(y, levels_at, knots),
    )


def _diurnal(
    arrivals: scenario.DiurnalArrivals,
) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    turn, depth = 2 * np.pi, arrivals.amplitude
    per_period = arrivals.qps * arrivals.period_s

    def share(x: Floats) -> Floats:
        return x + depth / turn * (1 - np.cos(turn * x))

    grid = np.linspace(0.0, 1.0, 2**15 + 1)
    level = share(grid)

    def inverse_share(y: Floats) -> Floats:
        cell = np.clip(np.searchsorted(level, y, side="right") - 1, 0, len(grid) - 2)
        x = np.interp(y, level, grid)
        for _ in range(3):  # Newton inside the cell: quadratic, so three steps reach rounding
            slope = np.maximum(1 + depth * np.sin(turn * x), 1e-9)
            x = np.clip(x - (share(x) - y) / slope, grid[cell], grid[cell + 1])
        return x

    scale = arrivals.period_s
    return _periodic(
        scale,
        per_period,
        lambda t: per_period * share(t / scale),
        lambda v: scale * inverse_share(v / per_period),
    )


def _periodic(
    period: float, per_period: float, within: Callable[[Floats], Floats], inverse: Callable[[Floats], Floats]
) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    """Repeat an integrated rate given on [0, period] and its inverse on [0, per_period]."""

    def integrated(times: Floats) -> Floats:
        turns = np.floor(times / period)
        return turns * per_period + within(times - turns * period)

    def inverted(levels: Floats) -> Floats:
        turns = np.floor(levels / per_period)
        return turns * period + inverse(levels - turns * per_period)

    return integrated, inverted
