"""A result that looks like a run without being one: a small queueing model fills the tables."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.engine import dtypes
from trimtab.engine.dtypes import Status
from trimtab.result import Group, Result
from trimtab.scenario import Scenario

SHARED = Path(os.environ.get("TRIMTAB_SHARED", Path(__file__).parents[2].parent / "shared"))
CASES = sorted((SHARED / "data" / "vidur" / "cases").glob("*/requests.csv"))

GROUP = Group(
    name="llama-3-8b on a100-80",
    model="llama-3-8b",
    device="a100-80",
    tp=1,
    pp=1,
    scheduler="vllm_v1",
    params_per_device=6.98e9,
    attention_flops_per_pair=4 * 32 * 32 * 128,
    peak_flops=312e12,
    kv_block_size=16,
    kv_blocks=29696,
    cost_per_hour=2.5,
)


def fill_itl(gaps_s: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """(ITL_BINS,) histogram of ``gaps_s``, each counted ``repeats`` times."""
    bins = np.log(np.maximum(gaps_s, dtypes.ITL_LOWEST) / dtypes.ITL_LOWEST) / np.log(dtypes.ITL_GAMMA)
    at = np.clip(bins.astype(np.int64), 0, dtypes.ITL_BINS - 1)
    return np.bincount(at, weights=repeats, minlength=dtypes.ITL_BINS).astype(np.int64)


def sample_counts(times: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How many of the intervals [start, end) hold each of ``times``."""
    return np.searchsorted(np.sort(start), times, "right") - np.searchsorted(np.sort(end), times, "right")


def make_result(
    num_requests: int = 2000,
    num_replicas: int = 4,
    qps: float = 24.0,
    router: str = "round-robin",
    seed: int = 0,
    slots: int = 48,
    slo: dict[str, float] | None = None,
    scenario: Scenario | None = None,
) -> Result:
    """Each replica a FIFO queue before ``slots`` servers; lengths log-normal, arrivals Poisson."""
    rng = np.random.default_rng(seed)
    requests = np.zeros(num_requests, dtypes.REQUEST)
    requests["arrival"] = np.cumsum(rng.exponential(1 / qps, num_requests))
    requests["prefill_tokens"] = np.clip(rng.lognormal(6.6, 1.0, num_requests), 4, 8000)
    requests["decode_tokens"] = np.clip(rng.lognormal(4.9, 0.9, num_requests), 1, 1500)
    requests["session"] = dtypes.NONE
    requests["status"] = Status.FINISHED
    toss = np.random.default_rng([seed, 1])
    tpot = 0.028 * toss.lognormal(0, 0.25, num_requests)
    free = np.zeros((num_replicas, slots))
    for index, request in enumerate(requests):
        if router == "round-robin":
            replica = index % num_replicas
        elif router == "random":
            replica = int(toss.integers(num_replicas))
        else:  # least work: the replica whose next server is free first
            late = (free > request["arrival"]).sum(axis=1) + 1e-3 * toss.random(num_replicas)
            replica = int(np.argmin(late))
        server = int(np.argmin(free[replica]))
        scheduled = max(request["arrival"], free[replica, server])
        request["replica"] = replica
        request["scheduled"] = scheduled
        request["first_token"] = scheduled + 0.02 + 9e-5 * request["prefill_tokens"]
        request["finished"] = request["first_token"] + tpot[index] * (request["decode_tokens"] - 1)
        request["execution"] = 0.99 * (request["finished"] - scheduled)
        free[replica, server] = request["finished"]
    return finish_result(requests, num_replicas, scenario or _scenario(num_replicas, qps, router, seed, slo))


def _scenario(replicas: int, qps: float, router: str, seed: int, slo: dict[str, float] | None) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "synthetic",
            "description": "A queueing model with log-normal lengths.",
            "seed": seed,
            "workload": {"arrivals": {"kind": "poisson", "qps": qps}},
            "replicas": [{"count": replicas}],
            "router": router,
            "slo": slo or {},
        }
    )


def finish_result(requests: np.ndarray, num_replicas: int, scenario: Scenario) -> Result:
    """Replica, iteration and sample tables that agree with a finished request table."""
    end = float(requests["finished"].max(initial=0.0))
    times = np.linspace(0, end, 600)
    samples = np.zeros((len(times), num_replicas), dtypes.SAMPLE)
    replicas = np.zeros(num_replicas, dtypes.REPLICA)
    replicas["speed"] = 1.0
    replicas["kv_total"] = GROUP.kv_blocks
    replicas["last_change"] = end
    parts = []
    for index in range(num_replicas):
        mine = requests[requests["replica"] == index]
        samples["waiting"][:, index] = sample_counts(times, mine["arrival"], mine["scheduled"])
        samples["running"][:, index] = sample_counts(times, mine["scheduled"], mine["finished"])
        blocks = samples["running"][:, index] * 60
        samples["kv_used"][:, index] = blocks / GROUP.kv_blocks
        parts.append(_iterations(times, samples[:, index], blocks, index))
        row = replicas[index : index + 1]
        row["routed"] = row["finished"] = len(mine)
        row["waiting_area"] = (mine["scheduled"] - mine["arrival"]).sum()
        row["running_area"] = (mine["finished"] - mine["scheduled"]).sum()
        row["kv_area"] = row["running_area"] * 60
        row["kv_peak"] = blocks.max(initial=0)
        row["busy"] = 0.97 * end
        row["iterations"] = len(parts[-1])
        row["prefill_done"] = mine["prefill_tokens"].sum(dtype=np.int64)
        row["decode_done"] = (mine["decode_tokens"] - 1).sum(dtype=np.int64)
        row["preemptions"] = mine["preemptions"].sum()
        row["attention_pairs"] = (mine["prefill_tokens"].astype(float) ** 2).sum()
    gaps = np.maximum(requests["decode_tokens"] - 1, 0)
    mean_gap = (requests["finished"] - requests["first_token"]) / np.maximum(gaps, 1)
    return Result(
        scenario=scenario,
        provenance={"trimtab": "0.1.0", "digest": scenario.digest(), "seed": scenario.seed},
        groups=(GROUP,),
        requests=requests,
        replicas=replicas,
        iterations=np.concatenate(parts) if parts else np.zeros(0, dtypes.ITERATION),
        sample_times=times,
        samples=samples,
        itl_counts=fill_itl(mean_gap, gaps),
        cpu_seconds=0.01,
    )


def _iterations(times: np.ndarray, load: np.ndarray, blocks: np.ndarray, replica: int) -> np.ndarray:
    rows = np.zeros(len(times) - 1, dtypes.ITERATION)
    rows["start"], rows["end"] = times[:-1], times[:-1] + 0.6 * np.diff(times)
    rows["replica"] = replica
    rows["stage"] = rows["end"] - rows["start"]
    rows["decodes"] = load["running"][:-1]
    rows["prefills"] = load["waiting"][:-1] > 0
    rows["prefill_tokens"] = 512 * rows["prefills"]
    rows["waiting"], rows["running"], rows["kv_used"] = (
        load["waiting"][:-1],
        load["running"][:-1],
        blocks[:-1],
    )
    return rows[rows["decodes"] + rows["prefills"] > 0]


def read_case(path: Path) -> tuple[Result, dict[str, Any]]:
    """A reference run of Vidur as a Result, and its summary."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    table = np.zeros(len(rows), dtypes.REQUEST)
    for name, column in {
        "arrival": "arrived_at",
        "prefill_tokens": "num_prefill_tokens",
        "decode_tokens": "num_decode_tokens",
        "replica": "replica",
        "scheduled": "scheduled_at",
        "first_token": "prefill_completed_at",
        "finished": "completed_at",
        "preemptions": "num_restarts",
    }.items():
        table[name] = [float(row[column]) for row in rows]
    table["status"] = Status.FINISHED
    replicas = int(table["replica"].max()) + 1
    summary = json.loads((path.parent / "summary.json").read_text())
    return finish_result(table, replicas, _scenario(replicas, 1.0, "replay", 0, None)), summary


def make_table(num_requests: int, replicas: int = 64, seed: int = 0) -> np.ndarray:
    """A large request table with plausible times, made in one go."""
    rng = np.random.default_rng(seed)
    table = np.zeros(num_requests, dtypes.REQUEST)
    table["arrival"] = np.cumsum(rng.exponential(0.005, num_requests))
    table["prefill_tokens"] = rng.integers(1, 4000, num_requests)
    table["decode_tokens"] = rng.integers(1, 800, num_requests)
    table["scheduled"] = table["arrival"] + rng.exponential(0.05, num_requests)
    table["first_token"] = table["scheduled"] + 1e-4 * table["prefill_tokens"]
    table["finished"] = table["first_token"] + 0.02 * (table["decode_tokens"] - 1)
    table["execution"] = table["finished"] - table["scheduled"]
    table["status"] = Status.FINISHED
    table["replica"] = rng.integers(0, replicas, num_requests)
    return table


# Test modules cannot import this file (import mode importlib), so what they use are fixtures.
FACTORIES = {
    "make_result": make_result,
    "make_table": make_table,
    "finish_result": finish_result,
    "read_case": read_case,
}
for _name, _factory in FACTORIES.items():
    globals()[f"_{_name}_fixture"] = pytest.fixture(name=_name, scope="session")(
        lambda _factory=_factory: _factory
    )


@pytest.fixture(scope="session")
def result() -> Result:
    return make_result(slo={"ttft_ms": 500.0, "tpot_ms": 40.0})


@pytest.fixture(scope="session")
def comparison():
    """Two routers on two seeds of the queueing model."""
    import dataclasses

    from trimtab.comparison import conclude
    from trimtab.report.digest import digest_run

    digests = []
    for seed in (0, 1):
        for name in ("round-robin", "least-outstanding"):
            found = make_result(600, router=name, seed=seed, slots=20, slo={"ttft_ms": 500.0})
            digests.append(dataclasses.replace(digest_run(found, 40), router=name))
    return conclude(found.scenario, digests, "round-robin")


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    return _scenario(4, 20.0, "round-robin", 0, None)


@pytest.fixture(scope="session")
def vidur_cases() -> list[Path]:
    if not CASES:
        pytest.skip(f"no reference cases under {SHARED}: set TRIMTAB_SHARED")
    return CASES
