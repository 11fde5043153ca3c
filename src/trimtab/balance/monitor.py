"""What operators look at: load variance, task mix and latency, as Prometheus text or in TensorBoard."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any, Protocol

from trimtab.balance.arrays import Array, as_load
from trimtab.balance.measures import noise_floor, summary
from trimtab.balance.state import Stateful
from trimtab.errors import TrimtabError

# Upper edges in seconds, from a decode step to a long prefill; the last is infinity by definition.
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HELP = {
    "max_violation": "Largest expert load over the mean, less 1, mean over layers",
    "max_violation_floor": "What max_violation would be by chance alone",
    "cv": "Coefficient of variation of expert loads, mean over layers",
    "jain": "Jain's fairness index of expert loads, mean over layers",
    "gini": "Gini coefficient of expert loads, mean over layers",
    "normalised_entropy": "Entropy of expert loads over its largest value, mean over layers",
    "dead_fraction": "Fraction of experts without load, mean over layers",
    "balancedness": "Mean over largest expert load, mean over layers",
    "share_variance": "Variance of the experts' shares of load, mean over layers",
}


class Writer(Protocol):
    """What TensorBoard's SummaryWriter, and many others, can do."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Record one value."""


class LoadMonitor(Stateful):
    """Keeps the loads, task types and latencies of the last ``window`` batches, and running totals."""

    state = ("loads", "mix", "latencies", "num_batches", "type_counts", "latency_counts", "latency_sum")

    def __init__(self, window: int = 100) -> None:
        if window < 1:
            raise TrimtabError(f"window is a number of batches, at least 1; given {window!r}")
        self.loads: deque[Array] = deque(maxlen=window)
        self.mix: deque[str] = deque(maxlen=window)
        self.latencies: deque[float] = deque(maxlen=window)
        self.num_batches = 0
        self.type_counts: Counter[str] = Counter()
        self.latency_counts = [0] * (len(LATENCY_BUCKETS) + 1)
        self.latency_sum = 0.0

    def record(self, load: Any, task_type: str | None = None, latency_s: float | None = None) -> None:
        """One batch: tokens per expert (..., experts), what kind it was, and how many seconds it took."""
        xp, counts = as_load(load, self.loads[-1] if self.loads else None)
        if latency_s is not None and not (math.isfinite(latency_s) and latency_s >= 0):
            raise TrimtabError(f"latency_s must be seconds of at least 0; given {latency_s!r}")
        self.loads.append(xp.asarray(counts, copy=True))
        self.num_batches += 1
        if task_type is not None:
            self.mix.append(task_type)
            self.type_counts[task_type] += 1
        if latency_s is not None:
            latency_s = float(latency_s)
            self.latencies.append(latency_s)
            self.latency_sum += latency_s
            self.latency_counts[sum(latency_s > edge for edge in LATENCY_BUCKETS)] += 1

    def get_current_loads(self) -> Array:
        """Tokens per expert (..., experts), summed over the window."""
        if not self.loads:
            raise TrimtabError("the monitor has no load yet; call record(load) after a batch")
        total = self.loads[0]
        for load in list(self.loads)[1:]:
            total = total + load
        return total

    def load_variance(self) -> float:
        """Variance of the experts' shares over the window, mean over layers."""
        return self.figures()["share_variance"]

    def task_mix(self) -> dict[str, float]:
        """Share of each task type among the labelled batches of the window."""
        counted = Counter(self.mix)
        return {name: count / len(self.mix) for name, count in sorted(counted.items())}

    def latency(self, quantile: float = 0.5) -> float:
        """Seconds within which this fraction of the window's batches were done (nearest rank)."""
        if not self.latencies or not 0 <= quantile <= 1:
            raise TrimtabError(
                f"a latency quantile needs recorded latencies and a fraction; given "
                f"{len(self.latencies)} latencies and {quantile!r}"
            )
        return sorted(self.latencies)[max(0, math.ceil(quantile * len(self.latencies)) - 1)]

    def figures(self) -> dict[str, float]:
        """Measures of the window's summed load by name, with the floor that chance sets."""
        loads = self.get_current_loads()
        draws = float(loads.sum(-1).mean())
        floor = noise_floor(loads.shape[-1], max(1, two_digits(draws)))
        return {**summary(loads), "max_violation_floor": floor}

    def prometheus(self, prefix: str = "trimtab_moe") -> str:
        """The state in Prometheus' text exposition format 0.0.4: serve it at /metrics."""
        lines: list[str] = []

        def family(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> None:
            lines.extend([f"# HELP {prefix}_{name} {text}", f"# TYPE {prefix}_{name} {kind}"])
            lines.extend(f"{prefix}_{name}{suffix} {value!r}" for suffix, value in samples)

        for name, value in self.figures().items():
            family(name, "gauge", HELP[name], [("", value)])
        family("batches_total", "counter", "Batches recorded", [("", self.num_batches)])
        types = [(f'{{type="{escaped(name)}"}}', count) for name, count in sorted(self.type_counts.items())]
        family("task_batches_total", "counter", "Batches recorded by task type", [*types])
        upto, samples = 0, []
        for edge, count in zip((*LATENCY_BUCKETS, math.inf), self.latency_counts, strict=True):
            upto += count
            samples.append((f'_bucket{{le="{"+Inf" if edge == math.inf else edge}"}}', float(upto)))
        samples += [("_sum", self.latency_sum), ("_count", float(upto))]
        family("batch_latency_seconds", "histogram", "Time per batch", samples)
        return "\n".join(lines) + "\n"

    def write(self, writer: Writer, step: int, prefix: str = "moe") -> None:
        """Give every figure to ``writer`` (TensorBoard's SummaryWriter or anything with add_scalar)."""
        told = dict(self.figures())
        told.update({f"task_mix/{name}": share for name, share in self.task_mix().items()})
        if self.latencies:
            told.update({f"latency_s/p{percent}": self.latency(percent / 100) for percent in (50, 99)})
        for name, value in told.items():
            writer.add_scalar(f"{prefix}/{name}", value, step)


def two_digits(count: float) -> int:
    """``count`` to two significant digits: the floor hardly changes, and is simulated once."""
    return int(float(f"{count:.1e}"))


def escaped(label: str) -> str:
    """A label value as the format wants it."""
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
