"""What a run leaves behind: tables and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.scenario import Scenario


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
    sample_times (S,) s; samples (S, R) SAMPLE; itl_counts (ITL_BINS,) output tokens per ITL bin.
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
