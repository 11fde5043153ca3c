"""What a step costs the host beyond its operators: inputs to the device, the launch, the tokens back.

Measured without an engine's own work: no scheduler, no tokeniser, no Python between the layers. With a
graph it is the launch of one graph of as many kernels as a step of the model has; eagerly the launches
are in the operators' own times, and only the copies, one launch and the wait remain.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from trimtab.exectime.profile.points import Point
from trimtab.exectime.profile.timing import CudaTimer, Sample, Timer, summarise

INPUTS = 4  # token, position, cell and length of every sequence
WARM_UPS = 5
LEAST_MS = 1e-4  # the clock's own grain


def measure_overhead(timer: Timer, point: Point, repeats: int) -> Sample:
    """Milliseconds per step of ``point.batch`` sequences and ``point.n`` kernels."""
    assert point.batch is not None
    assert point.n is not None
    if isinstance(timer, CudaTimer):
        with torch.cuda.stream(timer.stream):
            return _on_device(timer, point.batch, point.n if point.graph else 1, point.graph, repeats)
    source = torch.arange(INPUTS * point.batch)
    target = torch.empty_like(source)
    tokens = torch.empty(point.batch, dtype=source.dtype)

    def step() -> None:
        target.copy_(source)
        tokens.copy_(target[: len(tokens)])

    return summarise([_wall(step) for _ in range(repeats)])


def _on_device(timer: CudaTimer, batch: int, kernels: int, graph: bool, repeats: int) -> Sample:
    fresh = torch.arange(INPUTS * batch)
    pinned = torch.empty_like(fresh).pin_memory()
    inputs = torch.empty_like(fresh, device=timer.device)
    answer = torch.empty(batch, dtype=fresh.dtype).pin_memory()
    number = torch.zeros(1, device=timer.device)

    def kernels_in_a_row() -> None:
        for _ in range(kernels):
            number.add_(1.0)

    kernels_in_a_row()
    work: Callable[[], object] = timer.capture(kernels_in_a_row).replay if graph else kernels_in_a_row

    def step() -> None:
        pinned.copy_(fresh)
        inputs.copy_(pinned, non_blocking=True)
        work()
        answer.copy_(inputs[:batch], non_blocking=True)
        torch.cuda.current_stream().synchronize()

    for _ in range(WARM_UPS):
        step()
    device_ms = sorted(_device(timer, work) for _ in range(repeats))[repeats // 2]
    return summarise([max(_wall(step) - device_ms, LEAST_MS) for _ in range(repeats)])


def _wall(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return (time.perf_counter() - started) * 1000


def _device(timer: CudaTimer, work: Callable[[], object]) -> float:
    """The kernels' own milliseconds, with the launch hidden behind other work."""
    timer.overwrite.zero_()
    timer.first.record()
    work()
    timer.last.record()
    torch.cuda.synchronize()
    return float(timer.first.elapsed_time(timer.last))
