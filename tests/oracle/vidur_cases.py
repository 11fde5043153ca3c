"""Reads the reference runs of Vidur: a case folder and the operator tables that it ran with.

Layout: ``<case>/requests.csv`` (arrivals, lengths, the replica of each request, its times),
``<case>/summary.json``, ``<case>/config.json`` (Vidur's own), and
``<tables>/<name>__<operator>.csv.gz`` with milliseconds per layer.
"""

from __future__ import annotations

import csv
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracle.parts import OracleReplica, request_table
from trimtab.exectime.tables import ExecTables

PER_LAYER = (
    "attn_pre_proj",
    "attn_post_proj",
    "attn_rope",
    "mlp_up_proj",
    "mlp_down_proj",
    "mlp_act",
    "input_layernorm",
    "post_attention_layernorm",
    "add",
)
KV_STEP = 64
SHARED = Path(os.environ.get("TRIMTAB_SHARED", Path(__file__).parents[3] / "shared"))


@dataclass(frozen=True)
class VidurCase:
    """One reference run: what to simulate, and what Vidur said came out. Times in s, shape (N,)."""

    name: str
    requests: Any  # REQUEST (N,), with the assignment to replicas
    replicas: list[OracleReplica]
    router: str  # Vidur's name: round_robin, lor or random
    num_batches: int
    scheduled: NDArray[np.float64]
    first_token: NDArray[np.float64]
    finished: NDArray[np.float64]
    preemptions: NDArray[np.int64]


def case_folders() -> list[Path]:
    """The reference cases of the shared data; empty where it is absent."""
    return sorted(path.parent for path in SHARED.glob("data/vidur/cases/*/summary.json"))


def read_case(folder: Path, tables: Path | None = None) -> VidurCase:
    """The case in ``folder``; operator tables from ``tables`` (default ``../../predictor_tables``)."""
    summary = json.loads((folder / "summary.json").read_text())
    cluster = json.loads((folder / "config.json").read_text())["cluster_config"]
    with (folder / "requests.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    requests = request_table(
        [
            {
                "arrival": float(row["arrived_at"]),
                "prefill_tokens": int(row["num_prefill_tokens"]),
                "decode_tokens": int(row["num_decode_tokens"]),
                "replica": int(row["replica"]),
            }
            for row in rows
        ]
    )
    return VidurCase(
        name=summary["case"],
        requests=requests,
        replicas=[replica_of(folder, tables or folder.parents[1] / "predictor_tables")]
        * cluster["num_replicas"],
        router=cluster["global_scheduler_config"]["name"],
        num_batches=summary["num_batches"],
        scheduled=np.array([float(row["scheduled_at"]) for row in rows]),
        first_token=np.array([float(row["prefill_completed_at"]) for row in rows]),
        finished=np.array([float(row["completed_at"]) for row in rows]),
        preemptions=np.array([int(row["num_restarts"]) for row in rows]),
    )


def replica_of(folder: Path, tables: Path) -> OracleReplica:
    """Vidur's config.json in our words."""
    summary = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    replica = config["cluster_config"]["replica_config"]
    scheduler = config["cluster_config"]["replica_scheduler_config"]
    num_blocks = int(summary["num_blocks"])
    max_tokens = config["request_generator_config"]["max_tokens"]
    return OracleReplica(
        tables=compose_tables(
            tables / summary["predictor_tables"],
            num_layers=replica["model_config"]["num_layers"],
            num_stages=replica["num_pipeline_stages"],
            tensor_parallel=replica["tensor_parallel_size"],
            overhead=config["execution_time_predictor_config"]["attention_decode_batching_overhead_fraction"],
            launch_ms=config["execution_time_predictor_config"]["nccl_cpu_launch_overhead_ms"],
        ),
        scheduler=scheduler["name"],
        num_stages=replica["num_pipeline_stages"],
        max_num_seqs=scheduler["batch_size_cap"],
        token_budget=scheduler.get("chunk_size") or scheduler.get("max_tokens_in_batch") or 0,
        block_size=scheduler["block_size"],
        num_blocks=num_blocks,
        watermark_blocks=int(scheduler["watermark_blocks_fraction"] * num_blocks),
        max_blocks_per_sequence=max_tokens // scheduler["block_size"],
        max_waiting_iters=scheduler.get("max_waiting_iters", 0),
    )


@functools.cache
def compose_tables(
    prefix: Path, num_layers: int, num_stages: int, tensor_parallel: int, overhead: float, launch_ms: float
) -> ExecTables:
    """Vidur's sum over operators (milliseconds per layer) as seconds per pipeline stage."""
    seconds = num_layers / num_stages / 1000
    per_layer = np.sum([one_axis(prefix, operator) for operator in PER_LAYER], axis=0)
    if tensor_parallel > 1:
        per_layer = per_layer + 2 * (one_axis(prefix, "all_reduce") + launch_ms)
    send = one_axis(prefix, "send_recv") / 1000 if num_stages > 1 else np.zeros(2)
    decode = two_axes(prefix, "attn_decode", square=False) * seconds
    decode[2:] *= 1 + overhead
    token: NDArray[np.float64] = per_layer * seconds
    token[0] = send[0] = 0.0
    return ExecTables(
        token_s=token,
        kv_write_s=one_axis(prefix, "attn_kv_cache_save") * seconds,
        decode_s=decode,
        prefill_s=two_axes(prefix, "attn_prefill", square=True).T * seconds,
        send_s=send,
        cpu_s=np.zeros(2),
        kv_step=KV_STEP,
        many_prefills_factor=1 + overhead,
        vidur=True,
        source=prefix.name,
    )


def read_table(prefix: Path, operator: str) -> NDArray[np.float64]:
    return np.loadtxt(prefix.parent / f"{prefix.name}__{operator}.csv.gz", delimiter=",", skiprows=1)


def one_axis(prefix: Path, operator: str) -> NDArray[np.float64]:
    """(tokens + 1,) milliseconds; entry 0 is 0."""
    table = read_table(prefix, operator)
    line = np.zeros(int(table[-1, 0]) + 1)
    line[table[:, 0].astype(int)] = table[:, 1]
    return line


def two_axes(prefix: Path, operator: str, square: bool) -> NDArray[np.float64]:
    """Milliseconds by (batch size, KV step) for decodes; by (chunk, KV step) where ``square``."""
    table = read_table(prefix, operator)
    if square:
        rows, kv = np.rint(np.sqrt(table[:, 1])).astype(int), table[:, 0].astype(int) // KV_STEP
    else:
        rows, kv = table[:, 0].astype(int), table[:, 1].astype(int) // KV_STEP
    grid = np.zeros((rows.max() + 1, kv.max() + 1))
    grid[rows, kv] = table[:, 2]
    return grid
