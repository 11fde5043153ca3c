"""How one operator is timed, on a CUDA device or on a CPU.

A sample runs the operator several times in a row, each time on another stretch of weights or cache, as
layers do, and takes the mean; a point's time is the median of its samples. Before each sample the
device's cache is overwritten, so that weights come from memory. Samples on a GPU are taken between two
events on its own clock:

- graph: the runs are captured once and replayed; the overwrite keeps the device busy until the
  launch has arrived, so what is timed is the device's work and the gaps between kernels;
- eager: the device is idle at first, so operators that are shorter than their launch take as long as
  it does, as they do in an engine without graphs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

from trimtab.exectime.profile.plan import WARM_UPS, runs_and_samples

Run = Callable[[int], object]  # how-many-th run: picks the stretch of weights
WARM_SECONDS = 0.5  # of matrix products, until the clock is up


@dataclass(frozen=True)
class Sample:
    """Milliseconds of one operator."""

    median_ms: float
    min_ms: float
    repeats: int


def summarise(milliseconds: list[float]) -> Sample:
    return Sample(statistics.median(milliseconds), min(milliseconds), len(milliseconds))


class CpuTimer:
    """By the wall clock; for trying out."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def measure(self, run: Run, graph: bool, repeats: int) -> Sample:
        assert not graph, "a CPU has no graphs"
        run(0)
        found = []
        for i in range(repeats):
            started = time.perf_counter()
            run(i)
            found.append((time.perf_counter() - started) * 1000)
        return summarise(found)


class CudaTimer:
    """By CUDA events on the current device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.device)
        cache_bytes = int(getattr(properties, "L2_cache_size", 0)) or 64 << 20
        self.overwrite = torch.empty(2 * cache_bytes, dtype=torch.int8, device=self.device)
        self.stream = torch.cuda.Stream()
        self.first = torch.cuda.Event(enable_timing=True)
        self.last = torch.cuda.Event(enable_timing=True)
        self.memory = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self.stream):
            # The allocator forgets a pool of graphs when its last graph goes, and then refuses its handle.
            self.keeper = self.capture(lambda: torch.zeros(1, device=self.device))

    def warm_up(self) -> None:
        """Bring the clock up from idle."""
        square = torch.randn(4096, 4096, device=self.device, dtype=torch.bfloat16)
        ends = time.perf_counter() + WARM_SECONDS
        while time.perf_counter() < ends:
            square = torch.mm(square, square).clamp_(-1, 1)
            torch.cuda.synchronize()

    def measure(self, run: Run, graph: bool, repeats: int) -> Sample:
        """Milliseconds of one ``run``. Captured, it must not wait for the device."""
        torch.cuda.synchronize()  # operands were made on another stream
        with torch.cuda.stream(self.stream):
            for i in range(WARM_UPS):
                run(i)
            pilot = self._between(lambda: run(0), idle=False)
            runs, repeats = runs_and_samples(pilot, repeats)

            def in_a_row() -> None:
                for i in range(runs):
                    run(i)

            if not graph:
                return summarise([self._between(in_a_row, idle=True) / runs for _ in range(repeats)])
            captured = self.capture(in_a_row)
            self._between(captured.replay, idle=False)
            found = [self._between(captured.replay, idle=False) / runs for _ in range(repeats)]
            captured.reset()
            return summarise(found)

    def capture(self, run: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """On the current stream, which is not the default one.

        torch.cuda.graph() would collect garbage and empty the allocator's cache for every graph,
        which is most of the time of a profile.
        """
        captured = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        captured.capture_begin(pool=self.memory)
        try:
            run()
        except (RuntimeError, KeyboardInterrupt):
            with suppress(RuntimeError):  # a broken capture ends with an error of its own
                captured.capture_end()
            raise
        captured.capture_end()
        return captured

    def _between(self, work: Callable[[], object], idle: bool) -> float:
        """Milliseconds of ``work`` on the device with a cold cache; ``idle``: it has nothing else to do."""
        self.overwrite.zero_()
        if idle:
            torch.cuda.synchronize()
        self.first.record()
        work()
        self.last.record()
        torch.cuda.synchronize()
        return float(self.first.elapsed_time(self.last))


Timer = CpuTimer | CudaTimer
