"""How a replica forms its next batch. The catalogue is data; the functions compile on first use."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.engine.dtypes import Scheduler
from trimtab.errors import unknown


@dataclass(frozen=True)
class SchedulerInfo:
    """Defaults of one scheduler. ``token_budget`` None: as long as the longest request needs."""

    name: str
    kind: Scheduler
    summary: str
    max_num_seqs: int
    token_budget: int | None
    block_size: int = 16
    watermark: float = 0.01
    pipeline: bool = True
    reserves: bool = False
    aliases: tuple[str, ...] = ()


SCHEDULERS: dict[str, SchedulerInfo] = {
    info.name: info
    for info in (
        SchedulerInfo(
            "vllm_v1",
            Scheduler.VLLM_V1,
            "vLLM v1: one token budget, prompts chunked and mixed with decodes, KV as computed",
            max_num_seqs=256,
            token_budget=2048,
            watermark=0.0,
            aliases=("vllm-v1",),
        ),
        SchedulerInfo(
            "vllm",
            Scheduler.VLLM,
            "vLLM v0 (Vidur's): whole prompts first, never mixed with decodes",
            max_num_seqs=128,
            token_budget=None,
            aliases=("vllm_v0",),
        ),
        SchedulerInfo(
            "sarathi",
            Scheduler.SARATHI,
            "Sarathi-Serve: decodes first, prompt chunks fill the token budget",
            max_num_seqs=128,
            token_budget=512,
        ),
        SchedulerInfo(
            "orca",
            Scheduler.ORCA,
            "Orca: iteration-level batching, KV reserved for the longest sequence",
            max_num_seqs=128,
            token_budget=None,
            watermark=0.0,
            reserves=True,
        ),
        SchedulerInfo(
            "faster_transformer",
            Scheduler.FASTER_TRANSFORMER,
            "FasterTransformer: static batches run until all their requests are done",
            max_num_seqs=128,
            token_budget=None,
            watermark=0.0,
            reserves=True,
            aliases=("faster-transformer",),
        ),
        SchedulerInfo(
            "lightllm",
            Scheduler.LIGHTLLM,
            "LightLLM: token-level KV, admission by the peak of the future",
            max_num_seqs=128,
            token_budget=None,
            block_size=1,
            watermark=0.0,
            pipeline=False,
        ),
    )
}


def get_scheduler(name: str) -> SchedulerInfo:
    """Look a scheduler up by name or alias."""
    for info in SCHEDULERS.values():
        if name == info.name or name in info.aliases:
            return info
    raise unknown("scheduler", name, SCHEDULERS)
