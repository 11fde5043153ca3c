"""``exectime.kind: tables``: per-operator look-up tables on disk, ``<path>__<operator>.csv[.gz]``.

Columns (Vidur's keys, milliseconds): ``num_tokens,prediction`` for token operators, KV write,
all_reduce and send_recv; ``batch_size,kv_cache_size,prediction`` for attn_decode;
``kv_cache_size,prefill_chunk_size_squared,prediction`` for attn_prefill.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.exectime.compose import KV_STEP, OperatorGrids, compose, token_operators
from trimtab.exectime.csv_files import read_columns
from trimtab.exectime.tables import ExecTables
from trimtab.hardware.models import Model


def build_from_tables(prefix: str, model: Model, tp: int, pp: int, cpu_s: NDArray[np.float64]) -> ExecTables:
    """Tables composed from the files under ``prefix``; grids are those of the files.

    ``all_reduce`` is read when tp > 1, ``send_recv`` when pp > 1. A missing ``attn_kv_cache_save``
    counts as zero, as in Vidur.

    Raises
    ------
    TrimtabError
        for a missing file, a bad cell, or a grid with holes.
    """
    grids = OperatorGrids(
        by_tokens={name: _by_tokens(prefix, name) for name in token_operators(model)},
        kv_save=np.zeros(1),
        decode=_decode(prefix),
        prefill=_prefill(prefix),
        all_reduce=_by_tokens(prefix, "all_reduce") if tp > 1 else None,
        send_recv=_by_tokens(prefix, "send_recv") if pp > 1 else None,
    )
    return compose(_same_length(prefix, grids), model, pp, cpu_s, source=f"tables {Path(prefix).name}")


def _same_length(prefix: str, grids: OperatorGrids) -> OperatorGrids:
    lengths = {name: len(row) for name, row in grids.by_tokens.items()}
    tokens = next(iter(lengths.values()))
    kv_save = np.zeros(tokens)
    if _find(prefix, "attn_kv_cache_save") is not None:
        kv_save = _by_tokens(prefix, "attn_kv_cache_save")
        lengths["attn_kv_cache_save"] = len(kv_save)
    for name, row in (("all_reduce", grids.all_reduce), ("send_recv", grids.send_recv)):
        if row is not None:
            lengths[name] = len(row)
    for name, length in lengths.items():
        if length != tokens:
            raise TrimtabError(
                f"{prefix}__{name}: reaches {length - 1} tokens where the other operators reach {tokens - 1}"
            )
    return replace(grids, kv_save=kv_save)


def _find(prefix: str, name: str) -> Path | None:
    choices = (Path(f"{prefix}__{name}.csv.gz"), Path(f"{prefix}__{name}.csv"))
    return next((path for path in choices if path.is_file()), None)


def _open(prefix: str, name: str, keys: list[str]) -> tuple[Path, dict[str, NDArray[np.float64]]]:
    path = _find(prefix, name)
    if path is None:
        raise TrimtabError(f"no look-up table {prefix}__{name}.csv.gz (or .csv)")
    return path, read_columns(path, [*keys, "prediction"])


def _by_tokens(prefix: str, name: str) -> NDArray[np.float64]:
    """(tokens+1,) milliseconds; the file must hold 1, 2, ..., tokens."""
    path, columns = _open(prefix, name, ["num_tokens"])
    tokens = _whole(path, "num_tokens", columns["num_tokens"], step=1)
    row = np.full(int(tokens.max()) + 1, np.nan)
    row[tokens] = columns["prediction"]
    _complete(path, row[1:], lambda hole: f"num_tokens={hole[0] + 1}")
    row[0] = 0.0
    return row


def _decode(prefix: str) -> NDArray[np.float64]:
    """(batch+1, kv/64+1) milliseconds."""
    path, columns = _open(prefix, "attn_decode", ["batch_size", "kv_cache_size"])
    batch = _whole(path, "batch_size", columns["batch_size"], step=1)
    kv = _whole(path, "kv_cache_size", columns["kv_cache_size"], step=KV_STEP)
    grid = np.full((int(batch.max()) + 1, int(kv.max()) + 1), np.nan)
    grid[batch, kv] = columns["prediction"]
    _complete(path, grid[1:], lambda at: f"batch_size={at[0] + 1}, kv_cache_size={at[1] * KV_STEP}")
    grid[0] = 0.0
    return grid


def _prefill(prefix: str) -> NDArray[np.float64]:
    """(kv/64+1, chunk+1) milliseconds."""
    path, columns = _open(prefix, "attn_prefill", ["kv_cache_size", "prefill_chunk_size_squared"])
    kv = _whole(path, "kv_cache_size", columns["kv_cache_size"], step=KV_STEP)
    squares = columns["prefill_chunk_size_squared"]
    roots = np.rint(np.sqrt(squares))
    wrong = np.flatnonzero(roots * roots != squares)
    if len(wrong):
        raise TrimtabError(
            f"{path}: line {wrong[0] + 2}, column 'prefill_chunk_size_squared': "
            f"{squares[wrong[0]]:g} is not a square"
        )
    chunk = _whole(path, "prefill_chunk_size_squared", roots, step=1)
    grid = np.full((int(kv.max()) + 1, int(chunk.max()) + 1), np.nan)
    grid[kv, chunk] = columns["prediction"]
    _complete(path, grid[:, 1:], lambda at: f"kv_cache_size={at[0] * KV_STEP}, chunk size {at[1] + 1}")
    grid[:, 0] = 0.0
    return grid


def _whole(path: Path, name: str, values: NDArray[np.float64], step: int) -> NDArray[np.int64]:
    """Multiples of ``step`` as grid indices."""
    index = np.rint(values / step).astype(np.int64)
    wrong = np.flatnonzero((index * step != values) | (index < 0))
    if len(wrong):
        raise TrimtabError(
            f"{path}: line {wrong[0] + 2}, column {name!r}: {values[wrong[0]]:g} is not a multiple of {step}"
        )
    return index


def _complete(path: Path, grid: NDArray[np.float64], describe: Callable[[NDArray[np.int64]], str]) -> None:
    """Every grid point was given, and none is negative."""
    holes = np.argwhere(np.isnan(grid))
    if len(holes):
        raise TrimtabError(f"{path}: {len(holes)} grid points are missing, the first at {describe(holes[0])}")
    negative = np.argwhere(grid < 0)
    if len(negative):
        raise TrimtabError(f"{path}: column 'prediction' is negative at {describe(negative[0])}")
