"""How long requests are: (prompt, output) token pairs, and the cap on their sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab import scenario
from trimtab.errors import TrimtabError
from trimtab.workload.mix import load_mix
from trimtab.workload.trace import Trace

Pair = tuple[NDArray[np.int64], NDArray[np.int64]]

MOST_TOKENS = 2**31 - 1  # of one request; the table has 32 bits
SCRAMBLE_SEED = 0  # which lengths are popular does not depend on the run's seed


def draw(
    workload: scenario.Workload,
    trace: Trace | None,
    count: int,
    rng: np.random.Generator,
    base_dir: Path | None,
) -> Pair:
    """``count`` prompts and outputs in tokens, uncapped, each at least 1."""
    law = workload.lengths
    if isinstance(law, scenario.FixedLengths):
        return np.full(count, law.prefill), np.full(count, law.decode)
    if isinstance(law, scenario.UniformLengths):
        _check_range(law)
        total = law.min_tokens + (law.max_tokens - law.min_tokens) * rng.random(count)
        return split_total(total, law.prefill_to_decode)
    if isinstance(law, scenario.ZipfLengths):
        _check_range(law)
        return split_total(zipf_totals(law, rng.random(count)), law.prefill_to_decode)
    if isinstance(law, scenario.FittedLengths):
        return load_mix(law.name, base_dir).sample(rng, count)
    assert trace is not None
    rows = trace_rows(law, trace, count, rng)
    return _scaled(trace.prefill[rows], law.prefill_scale), _scaled(trace.decode[rows], law.decode_scale)


def trace_rows(
    law: scenario.TraceLengths | scenario.EmpiricalLengths,
    trace: Trace,
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """(count,) rows of the trace whose lengths are taken."""
    present = len(trace.prefill)
    if isinstance(law, scenario.EmpiricalLengths):
        return (rng.random(count) * present).astype(np.int64)
    if count > present:
        raise TrimtabError(
            f"{count} requests but {trace.name} has {present} rows; "
            "use lengths of kind 'empirical' to draw with replacement"
        )
    return rng.permutation(present)[:count] if law.shuffle else np.arange(count)


def split_total(total: NDArray[Any], prefill_to_decode: float) -> Pair:
    """Prompt and output of a total as Vidur splits it: decode = ceil(total / (1 + ratio)), rest prompt."""
    decode = np.ceil(total / (1 + prefill_to_decode))
    prefill = np.floor(total - decode)
    return np.maximum(prefill, 1).astype(np.int64), np.maximum(decode, 1).astype(np.int64)


def zipf_totals(law: scenario.ZipfLengths, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Totals in [min_tokens, max_tokens], the k-th with probability proportional to k**-theta.

    Exact inverse of the cumulative sums. The k-th total is ``min_tokens + k - 1``; ``scramble``
    spreads the popular ones over the range by a fixed permutation.
    """
    items = law.max_tokens - law.min_tokens + 1
    cumulative = np.cumsum(np.arange(1, items + 1, dtype=np.float64) ** -law.theta)
    rank = np.minimum(np.searchsorted(cumulative / cumulative[-1], uniforms, side="right"), items - 1)
    if law.scramble:
        rank = np.random.default_rng(SCRAMBLE_SEED).permutation(items)[rank]
    return law.min_tokens + rank


def cap(
    prefill: NDArray[Any],
    decode: NDArray[Any],
    workload: scenario.Workload,
    taken: int | NDArray[np.int64] = 0,
) -> Pair:
    """Hold prompt + output at ``max_tokens``, each at least 1, where ``taken`` tokens are spoken for.

    ``prefill`` shortens the prompt (Vidur's trace replay), and the output only where no prompt is
    left; ``proportional`` takes ceil(excess * share) from both (Vidur's trace length generator).
    """
    limit = MOST_TOKENS if workload.max_tokens is None else workload.max_tokens
    prefill, decode = np.maximum(prefill, 1), np.maximum(decode, 1)
    if limit < 2:
        raise TrimtabError(
            f"max_tokens={limit}; it must be at least 2, one token of prompt and one of output"
        )
    room = limit - taken
    total = prefill.astype(np.int64) + decode
    excess = np.maximum(total - room, 0)
    if workload.cap == "proportional":
        decode = np.maximum(decode - np.ceil(excess * (decode / total)).astype(np.int64), 1)
        prefill = np.maximum(prefill - np.ceil(excess * (prefill / total)).astype(np.int64), 1)
    else:
        prefill = np.maximum(prefill - excess, 1)
    prefill = np.minimum(prefill, room - 1)
    return prefill, np.minimum(decode, room - prefill)


def _scaled(tokens: NDArray[Any], scale: float) -> NDArray[np.int64]:
    return np.maximum((tokens * scale).astype(np.int64), 1)


def _check_range(law: scenario.UniformLengths | scenario.ZipfLengths) -> None:
    if law.max_tokens < law.min_tokens:
        raise TrimtabError(
            f"{law.kind} lengths: max_tokens={law.max_tokens} is below min_tokens={law.min_tokens}"
        )
