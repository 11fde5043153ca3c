"""What a run leaves behind: tables and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import SCALING
from trimtab.errors import TrimtabError
from trimtab.scenario import Scenario

# What a request asked and what happened to it; the engine's working fields are not for readers.
REQUEST_COLUMNS = (
    "arrival",
    "prefill_tokens",
    "decode_tokens",
    "session",
    "turn",
    "klass",
    "priority",
    "replica",
    "status",
    "preemptions",
    "retries",
    "scheduled",
    "first_token",
    "finished",
    "execution",
    "hit_tokens",
    "prefill_replica",
    "transfer",
)


@dataclass(frozen=True)
class Group:
    """What reports need to know of one replica group (facts only; replicas refer to it by index)."""

    name: str
    model: str
    device: str
    tp: int
    pp: int
    scheduler: str
    params_per_device: float  # parameters, for MFU
    attention_flops_per_pair: float  # 4 * layers/pp * heads/tp * head_dim, per q * (q + kv)
    peak_flops: float  # of one device, FLOP/s
    kv_block_size: int  # tokens
    kv_blocks: int
    cost_per_hour: float  # USD for one replica


@dataclass(frozen=True)
class Result:
    """One run. Arrays have the dtypes of ``trimtab.engine.dtypes``.

    requests (N,) REQUEST; replicas (R,) REPLICA; iterations (up to the recording limit,) ITERATION;
    sample_times (S,) s; samples (S, R) SAMPLE; itl_counts (ITL_BINS,) output tokens per ITL bin; scalings
    (changes of power up to the recording limit,) SCALING.
    """

    scenario: Scenario
    provenance: dict[str, Any]
    groups: tuple[Group, ...]
    requests: NDArray[Any]
    replicas: NDArray[Any]
    iterations: NDArray[Any]
    sample_times: NDArray[np.float64]
    samples: NDArray[Any]
    itl_counts: NDArray[np.int64]
    cpu_seconds: float
    scalings: NDArray[Any] = field(default_factory=lambda: np.zeros(0, SCALING))

    @property
    def autoscaled(self) -> bool:
        """Whether any group comes and goes."""
        return any(group.autoscale for group in self.scenario.replicas)

    def summary(self) -> dict[str, float]:
        """Every figure of the run by key (docs/reference/metrics.md); NaN where there is none."""
        from trimtab.report.metrics import summarize

        return summarize(self)

    def frame(self) -> Any:
        """The request table as a pandas DataFrame, times in seconds.

        Raises
        ------
        TrimtabError
            where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise TrimtabError(
                "a DataFrame needs pandas: pip install pandas; .requests is a NumPy table"
            ) from None
        return pandas.DataFrame({name: self.requests[name] for name in REQUEST_COLUMNS})
