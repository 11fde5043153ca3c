"""A short continuous-batching run on a real decoder, and the same requests through the simulation."""

from __future__ import annotations

import csv
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _decoder import GRAPH_SIZES, Decoder, Piece, graph_of

import trimtab as tt
from trimtab.engine.dtypes import Status

BLOCK = 16  # tokens of the simulation's KV blocks


@dataclass(frozen=True)
class Load:
    """Requests, and the limits of a batch."""

    arrivals: np.ndarray  # seconds
    prompts: np.ndarray  # tokens
    outputs: np.ndarray  # tokens
    max_num_seqs: int
    token_budget: int

    @property
    def slot_tokens(self) -> int:
        return int((self.prompts + self.outputs).max()) + 1


def make_load(requests: int, qps: float, prompt: int, output: int, seqs: int, budget: int, seed: int) -> Load:
    """Poisson arrivals; lognormal lengths about these medians, at most eight times as long."""
    random = np.random.default_rng(seed)
    arrivals = random.exponential(1 / qps, requests).cumsum()

    def lengths(median: int) -> np.ndarray:
        drawn = median * np.exp(0.7 * random.standard_normal(requests))
        return np.clip(drawn, 2, 8 * median).astype(int)

    return Load(arrivals - arrivals[0], lengths(prompt), lengths(output), seqs, budget)


@dataclass
class Live:
    """A request that has a slot."""

    request: int
    start: int
    done: int = 0  # tokens in the cache


def serve(decoder: Decoder, load: Load) -> dict[str, np.ndarray]:
    """Run the requests as they arrive, scheduled as vLLM v1 does: running ones first, then waiting ones
    while the token budget and the slots last. Seconds of each request: ttft, tpot, e2e.
    """
    prepare(decoder, load)
    count = len(load.arrivals)
    first, last = np.full(count, np.nan), np.full(count, np.nan)
    waiting, running = deque(range(count)), list[Live]()
    slots = deque(1 + i * load.slot_tokens for i in range(load.max_num_seqs))
    started = time.perf_counter()
    while waiting or running:
        now = time.perf_counter() - started
        if not running and load.arrivals[waiting[0]] > now:
            time.sleep(load.arrivals[waiting[0]] - now)
            now = time.perf_counter() - started
        decodes, prompts = form(load, waiting, running, slots, now)
        pieces = [
            [Piece(live.start, live.done, tokens) for live, tokens in group] for group in (decodes, prompts)
        ]
        decoder.step(*pieces)
        now = time.perf_counter() - started
        for live, tokens in [*decodes, *prompts]:
            live.done += tokens
            made = live.done - int(load.prompts[live.request]) + 1
            if made >= 1 and np.isnan(first[live.request]):
                first[live.request] = now
            if made >= load.outputs[live.request]:
                last[live.request] = now
                running.remove(live)
                slots.append(live.start)
    return figures(load, first, last)


def form(
    load: Load, waiting: deque[int], running: list[Live], slots: deque[int], now: float
) -> tuple[list[tuple[Live, int]], list[tuple[Live, int]]]:
    """(decodes, prompt chunks) of the next step, with their tokens."""
    budget = load.token_budget
    decodes, prompts = [], []
    for live in running:
        left = int(load.prompts[live.request]) - live.done
        tokens = min(max(left, 1), budget)
        if tokens > 0:
            (prompts if left > 0 else decodes).append((live, tokens))
            budget -= tokens
    while waiting and load.arrivals[waiting[0]] <= now and slots and budget > 0:
        live = Live(waiting.popleft(), slots.popleft())
        running.append(live)
        tokens = min(int(load.prompts[live.request]), budget)
        prompts.append((live, tokens))
        budget -= tokens
    return decodes, prompts


def prepare(decoder: Decoder, load: Load) -> None:
    """Warm up, and capture every graph that the run can ask for, so that none is made in it."""
    decoder.step([], [Piece(1, 0, min(load.token_budget, load.slot_tokens - 1))])
    if decoder.device.type != "cuda":
        return
    most, longest = graph_of(load.max_num_seqs, load.slot_tokens)
    bucket = graph_of(1, 1)[1]
    while bucket <= longest:
        for size in [size for size in GRAPH_SIZES if size <= most]:
            decoder.step([Piece(1, min(bucket, load.slot_tokens - 1) - 1, 1)] * size, [])
        bucket *= 2


def figures(load: Load, first: np.ndarray, last: np.ndarray) -> dict[str, np.ndarray]:
    gaps = np.maximum(load.outputs - 1, 1)
    return {
        "ttft": first - load.arrivals,
        "tpot": ((last - first) / gaps)[load.outputs > 1],
        "e2e": last - load.arrivals,
    }


def simulate(load: Load, group: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """The same requests through the simulation of one such replica."""
    trace = folder / "requests.csv"
    with trace.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arrived_at", "prefill", "decode"])
        writer.writerows(zip(load.arrivals, load.prompts, load.outputs, strict=True))
    blocks = load.max_num_seqs * -(-load.slot_tokens // BLOCK)
    scheduler = {
        "name": "vllm_v1",
        "max_num_seqs": load.max_num_seqs,
        "token_budget": load.token_budget,
        "block_size": BLOCK,
        "num_blocks": blocks,
    }
    scenario = {
        "workload": {
            "trace": {"path": str(trace)},
            "arrivals": {"kind": "trace"},
            "lengths": {"kind": "trace"},
            "num_requests": len(load.arrivals),
        },
        "replicas": [{**group, "count": 1, "scheduler": scheduler}],
        "router": "random",
    }
    requests = tt.simulate(scenario).requests
    assert (requests["status"] == int(Status.FINISHED)).all()
    return figures(load, requests["first_token"], requests["finished"])
