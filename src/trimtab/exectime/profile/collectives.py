"""All-reduce, all-to-all and send, between as many processes as devices take part."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.multiprocessing as processes
from torch import Tensor, distributed

from trimtab.errors import TrimtabError
from trimtab.exectime.profile.points import Point
from trimtab.exectime.profile.timing import Sample, summarise

RUNS = 10  # in a sample
WARM_UPS = 5
WAIT_S = 120.0  # for the next point


def measure_collectives(
    points: list[Point], backend: str, repeats: int, record: Callable[[Point, Sample], None]
) -> None:
    """Record points as they come, one group of processes per number of devices.

    ``backend``: nccl on GPUs; gloo between processes on a CPU.

    Raises
    ------
    TrimtabError
        where the processes do not find each other, or one ends early.
    """
    for size in sorted({point.batch or 0 for point in points}):
        _one_group([point for point in points if point.batch == size], size, backend, repeats, record)


def _one_group(
    points: list[Point], size: int, backend: str, repeats: int, record: Callable[[Point, Sample], None]
) -> None:
    context = processes.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        meeting = (Path(folder) / "meeting").as_uri()
        members = [
            context.Process(
                target=_member, args=(rank, size, meeting, backend, points, repeats, results), daemon=True
            )
            for rank in range(size)
        ]
        for member in members:
            member.start()
        try:
            for point in points:
                record(point, _next(results, members))
        finally:
            for member in members:
                member.terminate()
                member.join()


def _next(results: Any, members: list[Any]) -> Sample:
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends:
        try:
            found = results.get(timeout=0.5)
        except Empty:
            if any(member.exitcode not in (None, 0) for member in members):
                break
            continue
        assert isinstance(found, Sample)
        return found
    raise TrimtabError(
        "collectives could not be measured: a process ended early or none answered; leave them out with "
        "--operators"
    )


def _member(
    rank: int, size: int, meeting: str, backend: str, points: list[Point], repeats: int, results: Any
) -> None:
    """One device's process; the first one reports."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=size)
    with torch.inference_mode():
        for point in points:
            sample = _measure(_operation(point, rank, device), device, repeats)
            if rank == 0:
                results.put(sample)
    results.close()
    results.join_thread()


def _operation(point: Point, rank: int, device: torch.device) -> Callable[[], object]:
    assert point.m is not None
    assert point.n is not None
    message: Tensor = torch.randn(point.m, point.n, device=device, dtype=torch.bfloat16)
    if point.operator == "all_reduce":
        # Summed again and again, values would overflow: zeros travel as slowly.
        message.zero_()
        return lambda: distributed.all_reduce(message)
    if point.operator == "all_to_all":
        received = torch.empty_like(message)
        return lambda: distributed.all_to_all_single(received, message)
    if rank == 0:
        return lambda: distributed.send(message, 1)
    return lambda: distributed.recv(message, 0)


def _measure(operation: Callable[[], object], device: torch.device, repeats: int) -> Sample:
    for _ in range(WARM_UPS):
        operation()
    found = []
    for _ in range(repeats):
        distributed.barrier()
        _settle(device)
        started = time.perf_counter()
        for _ in range(RUNS):
            operation()
        _settle(device)
        found.append((time.perf_counter() - started) * 1000 / RUNS)
    return summarise(found)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
