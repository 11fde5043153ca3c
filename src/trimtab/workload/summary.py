"""A few numbers that say what a trace or a mix is like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.workload.fit import arrival_facts, spearman
from trimtab.workload.mix import ArrivalFacts, load_mix
from trimtab.workload.trace import read_trace

QUANTILES = (1, 10, 25, 50, 75, 90, 99, 100)
DRAWS = 200_000  # from a mix, whose percentiles are those of its draws


@dataclass(frozen=True)
class Summary:
    """``prefill``, ``decode`` and ``total`` hold the mean and then the ``QUANTILES``, in tokens."""

    name: str
    kind: str  # "trace" or "fitted mix"
    source: str
    requests: int
    dropped: int  # failed requests that are not counted above
    sessions: int
    prefix_hashes: int  # hash ids in all prompts, with repeats
    arrivals: ArrivalFacts | None
    prefill: NDArray[np.float64]
    decode: NDArray[np.float64]
    total: NDArray[np.float64]
    spearman: float  # rank correlation of prompt and output


def summarise(source: str, trace_format: str = "auto", columns: dict[str, str] | None = None) -> Summary:
    """Summary of a bundled mix (by name), a mix file (.json) or a trace file.

    Raises
    ------
    TrimtabError
        for what is none of these.
    """
    suffix = Path(source).suffix
    if suffix in ("", ".json"):
        mix = load_mix(source)
        prefill, decode = mix.sample(np.random.default_rng(0), DRAWS)
        lengths = _lengths(prefill, decode)
        return Summary(mix.name, "fitted mix", mix.source, mix.requests, 0, 0, 0, mix.arrivals, *lengths)
    trace = read_trace(source, trace_format, columns)
    return Summary(
        trace.name,
        "trace",
        str(source),
        len(trace.prefill),
        trace.dropped,
        0 if trace.session is None else int(trace.session.max()) + 1,
        0 if trace.hash_values is None else len(trace.hash_values),
        arrival_facts(trace),
        *_lengths(trace.prefill.astype(np.int64), trace.decode.astype(np.int64)),
    )


def _lengths(
    prefill: NDArray[np.int64], decode: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    rows = [
        np.array([tokens.mean(), *np.percentile(tokens, QUANTILES)])
        for tokens in (prefill, decode, prefill + decode)
    ]
    return rows[0], rows[1], rows[2], spearman(prefill, decode)
