"""The rollout: all samples at time zero on the engines, by the project's cluster engine, or estimated.

``estimate`` is quick: a batch that shrinks along the quantiles of the lengths. ``rollout`` simulates every
iteration of every engine, so that the long tail, KV shortage and the way of distributing are what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import unknown
from trimtab.exectime.kernels import kernels_for
from trimtab.exectime.roofline import build_roofline
from trimtab.exectime.tables import ExecTables
from trimtab.hardware import Device, Model, default_node
from trimtab.rlhf.job import Job
from trimtab.rlhf.memory import engine_kv_tokens

BLOCK = 16  # tokens of a KV block
MAX_SEQUENCES = 256  # vLLM's limit on a running batch
BUDGET = 8192  # tokens of a batch with prompts
HOST = 1.5e-3  # s of an engine's host per iteration where no calibration measures it
Array = NDArray[np.float64]

DISTRIBUTIONS = ("openrlhf", "chunks", "scattered", "longest-first", "least-work")


@lru_cache(maxsize=64)
def tables_of(model: Model, device: Device, tp: int, longest: int, eager: bool = False) -> ExecTables:
    """Iteration times of an engine."""
    kernels = kernels_for(device, default_node(device), model.dtype_bytes)
    host = np.full(MAX_SEQUENCES + 1, HOST if kernels.lattice("cpu_overhead") is None else 0.0)
    host[0] = 0.0
    return build_roofline(kernels, model, tp, 1, MAX_SEQUENCES, BUDGET, longest, host, eager=eager)


def kv_capacity(job: Job, tp: int, utilization: float) -> int:
    """Tokens in the KV cache of an engine; at most 0 where nothing is left beside the weights."""
    return int(engine_kv_tokens(job.actor, job.cluster.device.memory_bytes, utilization, tp))


def estimate(
    job: Job,
    engines: int,
    tp: int,
    utilization: float,
    eager: bool,
    prefix: bool = True,
    partial: bool = False,
) -> float:
    """Seconds of a rollout: as many sequences at once as fit, then a batch that shrinks to the longest.

    ``partial``: unfinished samples go on in the next step, so that the batch never drains.
    """
    tables = tables_of(job.actor, job.cluster.device, tp, job.max_tokens, eager)
    capacity = kv_capacity(job, tp, utilization)
    count = -(-job.total_samples // engines)
    lengths = job.response.quantiles
    prompt = float(job.prompt.quantiles.mean())
    # Long sequences stay long: what runs at a moment has come half of E[L^2] / E[L] on average.
    held = prompt + job.response.second_moment / lengths.mean() / 2
    slots = float(max(1, min(MAX_SEQUENCES, count, capacity / held)))
    # The queue keeps the batch full until its last request starts ...
    queued = float(count) if partial else max(0.0, count - slots)
    full = queued * lengths.mean() / slots
    seconds: float = full * float(_step(tables, np.array([slots]), np.array([held]))[0])
    prompts = count / (job.samples if prefix else 1) * prompt
    seconds += prompts / BUDGET * tables.stage_seconds([], [(0, BUDGET)])
    if partial:
        return seconds
    # ... and then it drains: in equilibrium what is left of a sequence is shorter than a whole one.
    edges = np.concatenate([[0.0], lengths])
    alive = 1 - np.arange(len(lengths)) / len(lengths)
    if queued > slots:
        tail = np.cumsum((alive * np.diff(edges))[::-1])[::-1] / lengths.mean()
        alive = tail
    batch = np.maximum(1.0, slots * alive)
    middle = prompt + (edges[:-1] + edges[1:]) / 2
    return seconds + float((np.diff(edges) * _step(tables, batch, middle)).sum())


def _step(tables: ExecTables, size: Array, kv: Array) -> Array:
    """Seconds of iterations of ``size`` decodes over ``kv`` tokens each."""
    rows, columns = tables.decode_s.shape
    at = np.minimum(kv / tables.kv_step, columns - 1.0)
    low = np.minimum(at.astype(np.int64), max(columns - 2, 0))
    high = np.minimum(low + 1, columns - 1)
    count = np.clip(np.rint(size), 1, rows - 1).astype(np.int64)
    begin, end = tables.decode_s[count, low], tables.decode_s[count, high]
    decode = begin + (at - low) * (end - begin)
    return np.asarray(decode + tables.token_s[count] + tables.kv_write_s[count] + tables.cpu_s[count])


@dataclass(frozen=True)
class Rollout:
    """A simulated generation phase. Seconds; ``finished`` (samples,) and ``engine_s`` (engines,)."""

    seconds: float
    engine_s: Array
    finished: Array
    engine_of: NDArray[np.int64]
    tokens: NDArray[np.int64]
    preemptions: int
    carried: int = 0  # samples left for the next step by partial rollout or over-sampling
    iterations: NDArray[Any] | None = field(default=None, repr=False)

    @property
    def idle_share(self) -> float:
        """Of the engines' time until the last sample is done."""
        return float(1 - self.engine_s.mean() / self.seconds)

    @property
    def tail_share(self) -> float:
        """Of the time that passes after 90 % of the samples are done."""
        return float(1 - np.sort(self.finished)[int(0.9 * len(self.finished)) - 1] / self.seconds)


def rollout(
    job: Job,
    engines: int,
    tp: int,
    utilization: float,
    *,
    eager: bool = False,
    prefix_caching: bool = False,
    distribute: str = "openrlhf",
    seed: int = 0,
    partial: float = 0.0,
    oversample: float = 1.0,
) -> Rollout:
    """Simulate the generation of one step.

    ``distribute``: openrlhf (a prompt's samples together, engines in turn), chunks (contiguous, as up to
    0.9.0), scattered (a prompt's samples apart), longest-first (lengths known, spread out), least-work.
    ``partial`` is the share of samples that may be unfinished when the phase ends: they go on in the next
    step, which begins with as many from the last, half done on average. ``oversample`` x prompts are
    started and the phase ends when as many as wanted are done.

    Raises
    ------
    TrimtabError
        for an unknown way of distributing, and where the model leaves no room for one sequence.
    """
    from trimtab.cluster import Fleet, prepare, run
    from trimtab.engine.dtypes import Scheduler
    from trimtab.errors import TrimtabError
    from trimtab.routers import Router

    capacity = kv_capacity(job, tp, utilization)
    if capacity < job.max_tokens:
        raise TrimtabError(
            f"the KV cache of an engine holds {max(0, capacity):,} tokens, a sequence up to "
            f"{job.max_tokens:,}: "
            f"raise the tensor parallelism ({tp}) or the utilization ({utilization:g}), or shorten "
            "the lengths"
        )
    generator = np.random.default_rng(seed)
    wanted = job.total_samples
    count = round(job.prompts * oversample) * job.samples
    requests, traffic = _requests(job, count, generator, prefix_caching)
    requests["replica"] = _assign(distribute, requests, job.samples, engines)
    fleet = Fleet(
        name="engine",
        scheduler=Scheduler.VLLM_V1,
        tables=tables_of(job.actor, job.cluster.device, tp, job.max_tokens, eager),
        count=engines,
        num_blocks=capacity // BLOCK,
        max_seqs=MAX_SEQUENCES,
        token_budget=BUDGET,
        block_size=BLOCK,
        prefix_caching=prefix_caching,
    )
    state = prepare(requests, [fleet], Router.REPLAY, 2, False, 0, traffic, seed=seed)
    run(state, None, np.inf, None)
    table = state.requests
    finished = np.asarray(table["finished"], np.float64)
    carried = max(count - wanted, int(partial * wanted)) if partial or oversample > 1 else 0
    end = float(np.sort(finished)[len(finished) - carried - 1])
    busy = np.zeros(engines)
    np.maximum.at(busy, table["replica"], np.minimum(finished, end))
    return Rollout(
        seconds=end,
        engine_s=busy,
        finished=np.minimum(finished, end),
        engine_of=table["replica"].astype(np.int64),
        tokens=table["decode_tokens"].astype(np.int64),
        preemptions=int(table["preemptions"].sum()),
        carried=carried,
    )


def _requests(
    job: Job, count: int, generator: np.random.Generator, prefix_caching: bool
) -> tuple[NDArray[Any], Any]:
    """The samples as requests, all at time zero; a prompt's samples share it under prefix caching."""
    from trimtab.engine.dtypes import NONE, REQUEST
    from trimtab.workload.content import begun, private
    from trimtab.workload.prefixes import Prefixed

    table = np.zeros(count, REQUEST)
    for column in ("session", "next_turn", "replica", "next_waiting"):
        table[column] = NONE
    for column in ("scheduled", "first_token", "finished"):
        table[column] = np.nan
    prompts = -(-count // job.samples)
    prompt = np.repeat(job.prompt.sample(prompts, generator), job.samples)[:count]
    table["prefill_tokens"] = table["target"] = prompt
    table["decode_tokens"] = job.response.sample(count, generator)
    table["expected_decode"] = table["decode_tokens"].mean()
    if not prefix_caching or job.samples == 1:
        return table, private(table)
    groups = np.arange(count) // job.samples
    return table, begun(table, Prefixed(groups, prompt.astype(np.int64), prompts))


def _assign(distribute: str, requests: NDArray[Any], samples: int, engines: int) -> NDArray[np.int64]:
    """(N,) engine of each sample."""
    count = len(requests)
    order = np.arange(count)
    if distribute == "openrlhf":
        return order // samples % engines
    if distribute == "chunks":
        return order // -(-count // engines)
    if distribute == "scattered":
        return order % engines
    longest = np.argsort(-requests["decode_tokens"].astype(np.int64), kind="stable")
    if distribute == "longest-first":
        turn = order % (2 * engines)
        found = np.empty(count, np.int64)
        found[longest] = np.where(turn < engines, turn, 2 * engines - 1 - turn)
        return found
    if distribute == "least-work":
        load, found = np.zeros(engines), np.empty(count, np.int64)
        for sample in longest:
            found[sample] = engine = int(load.argmin())
            load[engine] += requests["decode_tokens"][sample]
        return found
    raise unknown("way of distributing", distribute, DISTRIBUTIONS)
