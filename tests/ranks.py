"""Real processes that are the ranks of one gloo group."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

Work = Callable[[int, Path], None]  # of a rank, with a folder to leave its results in
PATIENCE_S = 120.0


def run_ranks(work: Work, folder: Path, ranks: int = 2) -> None:
    """``work`` on every rank, each in a process of its own with one thread; all have to end well."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=one_rank, args=(work, rank, ranks, folder)) for rank in range(ranks)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=PATIENCE_S)
        assert process.exitcode == 0


def one_rank(work: Work, rank: int, ranks: int, folder: Path) -> None:
    """The body of one process."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=ranks)
    work(rank, folder)
    dist.destroy_process_group()
