"""What a perfect system could carry: never idle, every batch the best one, lengths known, load spread evenly.

In the long run each request spends D iterations decoding and has its P prompt tokens prefilled, so that a
replica that decodes B sequences in every batch finishes B / D requests per iteration and prefills B P / D
tokens in it. Iterations have a fixed part and larger batches share it, so the even batch is the best one
(Jensen), and the largest that memory, ``max_num_seqs`` and the bound on the time per token allow carries the
most. Nobody waits, no batch is uneven, no replica is ever without work: real clusters carry less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.cluster import Fleet
from trimtab.plan.bounds import Bound
from trimtab.scenario import Scenario

BATCHES = 48  # sizes that are looked at, evenly in their logarithm
STRICT = 0.9  # a bound on this share of the requests, or on the mean, binds the common iteration


def ideal_rate(
    scenario: Scenario, fleets: Sequence[Fleet], requests: NDArray[np.void], bounds: Sequence[Bound]
) -> float:
    """Requests per second that no schedule and no router on these replicas can exceed, in the long run.

    ``requests`` (N,) REQUEST give the mean prompt and output; what prefix caches may save is taken to be all
    that is shared, so that only the last token of a prompt is certain to be computed with them.
    """
    prompt, output = float(requests["prefill_tokens"].mean()), float(requests["decode_tokens"].mean())
    tokens = requests["decode_tokens"].astype(np.float64)
    # What is held at a moment: requests with long outputs stay longer.
    mean_kv = float((tokens * (requests["prefill_tokens"] + tokens / 2)).sum() / tokens.sum())
    limits = [
        bound.limit_s
        for bound in bounds
        if bound.metric in ("tpot", "itl") and (bound.share is None or bound.share >= STRICT)
    ]
    slowest = min(limits, default=np.inf)
    prefilling = decoding = 0.0
    for fleet in fleets:
        computed = prompt
        if fleet.prefix_caching and _shares(scenario):
            computed = 1.0
        if fleet.role == "prefill":
            prefilling += fleet.count * prefill_rate(fleet, computed)
        elif fleet.role == "decode":
            decoding += fleet.count * batch_rate(fleet, 0.0, mean_kv, output, slowest)
        else:
            decoding += fleet.count * batch_rate(fleet, computed, mean_kv, output, slowest)
    return decoding if not prefilling else min(prefilling, decoding)


def _shares(scenario: Scenario) -> bool:
    workload = scenario.workload
    return workload.sessions is not None or workload.prefixes is not None or workload.trace is not None


def prefill_rate(fleet: Fleet, prompt: float) -> float:
    """Requests per second of one replica that only prefills ``prompt`` tokens each, at its best batch.

    What grows with the tokens is shared as well as any batch can share it; attention is that of prompts of
    the mean length, which long and short ones exceed (it is convex), less what a batch has of it once.
    """
    tables = fleet.tables
    tokens = np.arange(1, max(2, min(fleet.token_budget, len(tables.kv_write_s) - 1) + 1))
    rounded = np.minimum(-(-tokens // tables.token_round) * tables.token_round, len(tables.token_s) - 1)
    batch = tables.token_s[rounded] + tables.kv_write_s[tokens] + tables.cpu_s[min(1, len(tables.cpu_s) - 1)]
    alone = (tables.stage_seconds([], [(0, size)], True) for size in (max(1, int(prompt)), 1))
    parts = (_linear(fleet, max(1, int(prompt))), _linear(fleet, 1))
    attention = [whole - part for whole, part in zip(alone, parts, strict=True)]
    seconds = prompt * float((batch / tokens).min()) + max(0.0, attention[0] - attention[1])
    return 1.0 / max(seconds, 1e-12)


def _linear(fleet: Fleet, tokens: int) -> float:
    """Seconds of a batch of one prompt without its attention."""
    tables = fleet.tables
    rounded = -(-tokens // tables.token_round) * tables.token_round
    rows = ((tables.token_s, rounded), (tables.kv_write_s, tokens), (tables.cpu_s, 1))
    return sum(
        float(row[-1]) * at / max(len(row) - 1, 1) if at >= len(row) else float(row[at]) for row, at in rows
    )


def batch_rate(fleet: Fleet, computed: float, mean_kv: float, output: float, slowest_s: float) -> float:
    """Requests per second of one replica that decodes, and prefills ``computed`` tokens of each request;
    a request under way holds the KV of ``mean_kv`` tokens.

    An iteration passes through all stages; with p of them p batches are under way, one in each.
    """
    drafts, each = 0, 1.0
    if fleet.speculation:
        drafts, each = fleet.speculation.tokens, fleet.speculation.tokens_per_step
    steps = (output - 1.0) / each  # iterations that a request decodes in; its first token ends its prefill
    if steps <= 0:
        return prefill_rate(fleet, computed)
    room = fleet.num_blocks * fleet.block_size / max(mean_kv, 1.0) / fleet.stages
    most = min(float(fleet.max_seqs) / fleet.stages, max(room, 1.0), fleet.token_budget * steps)
    best = 0.0
    for batch in np.unique(np.geomspace(1, max(1, int(most)), BATCHES).astype(int)):
        chunk = float(batch) * computed / steps
        if chunk + batch > fleet.token_budget:
            # Such a batch does not exist: the prompts set the pace.
            seconds = max(chunk / _prefill_speed(fleet), _stage(fleet, int(batch), mean_kv, 0.0, drafts))
        else:
            seconds = _stage(fleet, int(batch), mean_kv, chunk, drafts)
        if seconds * fleet.stages / each > slowest_s and best > 0:
            break
        best = max(best, float(batch) / (steps * seconds))
    return best


def _stage(fleet: Fleet, batch: int, mean_kv: float, chunk: float, drafts: int) -> float:
    """Seconds of a stage that decodes ``batch`` and prefills ``chunk`` tokens, a prompt of its own."""
    prefills = [(0, round(chunk))] if chunk >= 0.5 else []
    return fleet.tables.stage_seconds([int(mean_kv)] * batch, prefills, fleet.stages == 1, drafts)


def _prefill_speed(fleet: Fleet) -> float:
    """Tokens per second."""
    return prefill_rate(fleet, 1.0)
