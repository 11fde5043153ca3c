"""The door to execution times: one function that dispatches on ``exectime.kind``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.exectime.cache import cache_path, load_arrays, save_arrays, source_digest
from trimtab.exectime.tables import ExecTables
from trimtab.hardware.devices import Device, Node
from trimtab.hardware.models import Model
from trimtab.scenario import ReplicaGroup, Speculation


def build_tables(
    group: ReplicaGroup,
    model: Model,
    device: Device,
    node: Node,
    max_batch: int,
    max_chunk: int,
    max_context: int,
) -> ExecTables:
    """The tables of one replica of ``group``.

    ``max_batch`` sequences and ``max_chunk`` prompt tokens bound a batch, ``max_context`` tokens a
    sequence; what lies beyond is extrapolated in proportion. ``exectime.max_tokens`` overrides
    ``max_context``. Kind ``tables`` keeps the grids of its files.

    Raises
    ------
    TrimtabError
        for a missing ``exectime.path``, unreadable profiles, or a missing optional package.
    """
    config = group.exectime
    max_context = config.max_tokens or max_context
    cpu_s = np.full(max(max_batch, 1) + 1, config.cpu_overhead_ms / 1000.0)
    cpu_s[0] = 0.0
    if config.kind == "roofline":
        from trimtab.exectime.experts import ExpertParallel
        from trimtab.exectime.kernels import kernels_for
        from trimtab.exectime.roofline import build_roofline

        kernels = kernels_for(device, node, model.dtype_bytes, config.path)
        parallel = ExpertParallel(group.ep, group.moe_imbalance)
        sizes = (max_batch, max_chunk, max_context)
        split = [group.tp, group.pp, group.ep, group.moe_imbalance]
        options = [config.cpu_overhead_ms, config.eager]
        hardware = [repr(device), repr(node), repr(kernels.efficiency), kernels.calibration_digest]
        path = cache_path("roofline", [source_digest(), repr(model), hardware, split, sizes, options])
        tables = _load(path)
        if tables is None:
            tables = build_roofline(kernels, model, group.tp, group.pp, *sizes, cpu_s, parallel, config.eager)
            _save(path, tables)
        return tables
    if group.ep > 1:
        raise TrimtabError(f"exectime kind {config.kind!r} has no expert parallelism; use roofline, or ep 1")
    if not config.path:
        raise TrimtabError(f"exectime kind {config.kind!r} needs exectime.path, which is not set")
    if config.kind == "tables":
        from trimtab.exectime.lookup import build_from_tables

        return build_from_tables(config.path, model, group.tp, group.pp, cpu_s)
    from trimtab.exectime.forest import build_forest

    return build_forest(group, model, device, node, max_batch, max_chunk, max_context, cpu_s)


def _save(path: Path, tables: ExecTables) -> None:
    values = vars(tables)
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in values.items() if name not in arrays}
    save_arrays(path, {**arrays, "rest": np.array(json.dumps(rest))})


def _load(path: Path) -> ExecTables | None:
    arrays = load_arrays(path)
    if arrays is None or "rest" not in arrays:
        return None
    rest = json.loads(str(arrays.pop("rest")))
    values: dict[str, Any] = {**arrays, **rest}
    return ExecTables(**values)


# A reference batch for comparing replicas of different hardware.
REFERENCE_DECODES = 64
REFERENCE_KV = 1000  # tokens of each decode
REFERENCE_CHUNK = 512  # prompt tokens


def tokens_per_second(tables: ExecTables, pp: int = 1, speculation: Speculation | None = None) -> float:
    """Tokens per second of one replica on a mixed batch: 64 decodes at 1000 KV and one 512 chunk.

    With ``pp`` stages full, a batch leaves every stage time (the first stage's, which also sends), so
    the replica's rate is the tokens of a batch over one stage's seconds.
    """
    drafts, each = (speculation.tokens, speculation.tokens_per_step) if speculation else (0, 1.0)
    stage = tables.stage_seconds([REFERENCE_KV] * REFERENCE_DECODES, [(0, REFERENCE_CHUNK)], pp == 1, drafts)
    return (REFERENCE_DECODES * each + REFERENCE_CHUNK) / stage
