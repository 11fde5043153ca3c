"""A run over time, in equal bins: what comes, what goes, what waits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import Status
from trimtab.report.load import binned_mean
from trimtab.report.metrics import paid_over_time, span
from trimtab.result import Result

Floats = NDArray[np.float64]


def time_series(result: Result, bins: int = 120) -> dict[str, Floats]:
    """Columns over ``bins`` equal spans of the run.

    ``time`` (bins,) s since the first arrival, middle of each bin; ``arrivals``, ``completions``
    (requests/s), ``prefill_completions`` (requests/s that got their first token), ``prefill_tokens``
    and ``decode_tokens`` (tokens/s, each request's spread evenly over its prefill or decoding) (bins,);
    ``waiting``, ``running`` requests and ``kv_used`` share (bins, R).
    """
    start, end = span(result)
    edges = np.linspace(start, max(end, start + 1e-9), bins + 1)
    table = result.requests
    done = table[table["status"] == Status.FINISHED]
    width = edges[1] - edges[0]

    def rate(times: NDArray[Any]) -> Floats:
        return np.asarray(np.histogram(times[np.isfinite(times)], edges)[0] / width)

    samples = result.samples
    return {
        "time": 0.5 * (edges[1:] + edges[:-1]) - start,
        "arrivals": rate(table["arrival"]),
        "completions": rate(done["finished"]),
        "prefill_completions": rate(done["first_token"]),
        "prefill_tokens": _spread(done["scheduled"], done["first_token"], done["prefill_tokens"], edges)
        / width,
        "decode_tokens": _spread(done["first_token"], done["finished"], done["decode_tokens"] - 1, edges)
        / width,
        "waiting": binned_mean(result.sample_times, samples["waiting"], edges),
        "running": binned_mean(result.sample_times, samples["running"], edges),
        "kv_used": binned_mean(result.sample_times, samples["kv_used"], edges),
    }


def replicas_over_time(result: Result, bins: int = 120) -> Floats:
    """(bins,) replicas that are paid for, mean over each of ``bins`` equal spans of the run."""
    start, end = span(result)
    edges = np.linspace(start, max(end, start + 1e-9), bins + 1)
    times, counts = paid_over_time(result)
    ends = np.append(times[1:], np.inf)
    spans = np.minimum(ends[:, None], edges[None, 1:]) - np.maximum(times[:, None], edges[None, :-1])
    return np.asarray((np.maximum(spans, 0.0) * counts[:, None]).sum(axis=0) / (edges[1] - edges[0]))


def _spread(start: Floats, end: Floats, amount: NDArray[Any], edges: Floats) -> Floats:
    """How much of each ``amount``, laid evenly over [start, end], falls into each bin: (B,)."""
    slope = np.where(end > start, amount / np.maximum(end - start, 1e-12), 0.0)

    def integral(begin: Floats) -> Floats:
        """Sum over rows of slope * (t - begin) for t > begin, at each edge."""
        order = np.argsort(begin)
        at = np.searchsorted(begin[order], edges, side="right")
        slopes = np.concatenate([[0.0], np.cumsum(slope[order])])[at]
        offsets = np.concatenate([[0.0], np.cumsum((slope * begin)[order])])[at]
        return np.asarray(slopes * edges - offsets)

    return np.maximum(np.diff(integral(start) - integral(end)), 0.0)
