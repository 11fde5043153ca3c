"""How often each point runs, and how long a whole profile takes."""

from __future__ import annotations

from trimtab.exectime.profile.points import Point

WARM_UPS = 3
SAMPLE_MS = 0.3  # a sample is about so long: hundreds of ticks of the event clock
MOST_RUNS = 24  # in a sample
POINT_MS = 60.0  # slower operators get fewer samples
FEWEST = 5  # samples

# For the estimate: shares of the peaks that kernels reach, and what a point costs beside them.
REACHED = 0.5
SHORTEST_MS = 0.003
POINT_OVERHEAD_MS = 5.0  # operands, capture
OVERWRITE_MS = 0.1  # of the device's cache, before each sample


def runs_and_samples(kernel_ms: float, repeats: int) -> tuple[int, int]:
    """(runs in a sample, samples) of an operator that takes about ``kernel_ms``.

    >>> runs_and_samples(0.01, 20)
    (24, 20)
    >>> runs_and_samples(6.0, 20)
    (1, 10)
    """
    kernel_ms = max(kernel_ms, 1e-4)
    runs = max(1, min(MOST_RUNS, round(SAMPLE_MS / kernel_ms)))
    return runs, max(min(FEWEST, repeats), min(repeats, round(POINT_MS / (runs * kernel_ms))))


def estimate_seconds(found: list[Point], repeats: int, flops: float, bandwidth: float) -> float:
    """Seconds that these points take on a device of these peaks (FLOP/s, bytes/s): a guess for planning."""
    total = 0.0
    for point in found:
        least_ms = 1000 * max(point.flops / flops, point.bytes / bandwidth)
        kernel_ms = max(SHORTEST_MS, least_ms / REACHED)
        runs, samples = runs_and_samples(kernel_ms, repeats)
        kernels = WARM_UPS + 1 + runs * (samples + 1)
        total += kernels * kernel_ms + OVERWRITE_MS * (samples + 2) + POINT_OVERHEAD_MS
    return total / 1000
