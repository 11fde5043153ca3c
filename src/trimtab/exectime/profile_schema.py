"""Our profile: one CSV per device and model, one row per operator and shape, written by ``trimtab profile``.

Columns (an unused one stays empty):

========== =======================================================================================
device     name of the device, as in ``trimtab devices`` where it is known
model, tp  whose shard was measured: name, and the tensor-parallel degree that cut it
operator   one of ``OPERATORS``
tokens     tokens of the batch
batch      sequences: attn_decode, lm_head, sampling, cpu_overhead; moe_grouped: experts touched
kv         tokens in the cache of each sequence before this iteration: attn_decode, attn_prefill
chunk      prompt tokens of the one sequence: attn_prefill
m, k, n    rows, inputs and outputs of a matrix product on this shard. A gated up projection is one
           product of both halves; moe_grouped is up, activation and down of all touched experts with
           m token copies, k = hidden and n = width of an expert on this device
bytes      read and written (weights, activations, KV); all_reduce, all_to_all, send_recv: the message
           of one device (for all_to_all with the part that it keeps); sampling: the float32 logits,
           4 x vocabulary x batch; attn_kv_cache_save: keys and values read and written
flops      two per multiply and add
graph      1 if replayed from a CUDA graph, 0 if launched eagerly
median_ms  median over the repeats, milliseconds;  min_ms: the fastest;  repeats: how many
========== =======================================================================================
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError, did_you_mean, unknown
from trimtab.exectime.csv_files import read_text

WORDS = ("device", "model", "operator")
NUMBERS = (
    "tp",
    "tokens",
    "batch",
    "kv",
    "chunk",
    "m",
    "k",
    "n",
    "bytes",
    "flops",
    "graph",
    "median_ms",
    "min_ms",
    "repeats",
)
COLUMNS = ("device", "model", "tp", "operator", *NUMBERS[1:])

# Operator -> the columns that it must fill besides device, model, tp, graph and the times.
MATRIX = ("tokens", "m", "k", "n", "bytes", "flops")
MEMORY = ("tokens", "bytes")
MESSAGE = ("bytes",)
OPERATORS: dict[str, tuple[str, ...]] = {
    "attn_pre_proj": MATRIX,
    "attn_post_proj": MATRIX,
    "mlp_up_proj": MATRIX,
    "mlp_down_proj": MATRIX,
    "moe_router": MATRIX,
    "moe_grouped": (*MATRIX, "batch"),
    "lm_head": (*MATRIX, "batch"),
    "mlp_act": MEMORY,
    "attn_rope": MEMORY,
    "input_layernorm": MEMORY,
    "post_attention_layernorm": MEMORY,
    "add": MEMORY,
    "attn_kv_cache_save": MEMORY,
    "sampling": ("batch", "bytes"),
    "attn_prefill": ("tokens", "kv", "chunk", "bytes", "flops"),
    "attn_decode": ("batch", "kv", "bytes", "flops"),
    "all_reduce": MESSAGE,
    "all_to_all": MESSAGE,
    "send_recv": MESSAGE,
    "cpu_overhead": ("batch",),
}


@dataclass(frozen=True)
class Profile:
    """Rows of one or more profiles, all columns (rows,): words as str arrays, numbers as float64 with NaN
    where a cell is empty. ``source`` says where they come from.
    """

    words: dict[str, NDArray[np.str_]]
    numbers: dict[str, NDArray[np.float64]]
    source: str

    def __len__(self) -> int:
        return len(self.numbers["median_ms"])

    def where(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Profile:
        """The selected rows."""
        words = {name: column[rows] for name, column in self.words.items()}
        return Profile(words, {name: column[rows] for name, column in self.numbers.items()}, self.source)


def read_profile(path: Path) -> Profile:
    """A profile in our schema (``.csv``, also ``.csv.gz``). Further columns are ignored.

    Raises
    ------
    TrimtabError
        one line that names the file, and the missing column, bad cell, unknown operator or emptiness.
    """
    reader = csv.reader(io.StringIO(read_text(path)))
    header = [name.strip() for name in next(reader, [])]
    for name in COLUMNS:
        if name not in header:
            raise TrimtabError(f"{path}: line 1: no column {name!r}.{did_you_mean(name, header)}")
    at = {name: header.index(name) for name in COLUMNS}
    rows, lines = [], []
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise TrimtabError(
                f"{path}: line {reader.line_num}: {len(cells)} cells where the header has {len(header)}"
            )
        rows.append(cells)
        lines.append(reader.line_num)
    if not rows:
        raise TrimtabError(f"{path}: an empty profile: no rows below the header")
    words = {name: np.array([row[at[name]].strip() for row in rows]) for name in WORDS}
    numbers = {name: _numbers(path, lines, name, [row[at[name]] for row in rows]) for name in NUMBERS}
    _check(path, lines, words, numbers)
    return Profile(words, numbers, path.name)


def _numbers(path: Path, lines: list[int], name: str, cells: list[str]) -> NDArray[np.float64]:
    column = np.full(len(cells), np.nan)
    for index, cell in enumerate(cells):
        if not cell.strip():
            continue
        try:
            column[index] = float(cell)
        except ValueError:
            column[index] = np.inf
        if not np.isfinite(column[index]):
            raise TrimtabError(
                f"{path}: line {lines[index]}, column {name!r}: {cell!r} is not a finite number"
            )
    return column


def _check(
    path: Path,
    lines: list[int],
    words: dict[str, NDArray[np.str_]],
    numbers: dict[str, NDArray[np.float64]],
) -> None:
    """Known operators, filled cells, positive times."""
    for operator in np.unique(words["operator"]):
        if operator not in OPERATORS:
            line = lines[int(np.flatnonzero(words["operator"] == operator)[0])]
            raise TrimtabError(f"{path}: line {line}: {unknown('operator', str(operator), OPERATORS)}")
        mine = words["operator"] == operator
        for name in ("tp", "graph", "median_ms", *OPERATORS[operator]):
            empty = np.flatnonzero(mine & np.isnan(numbers[name]))
            if len(empty):
                raise TrimtabError(
                    f"{path}: line {lines[empty[0]]}: operator {str(operator)!r} needs column {name!r}"
                )
    wrong = np.flatnonzero(~(numbers["median_ms"] > 0))
    if len(wrong):
        given = numbers["median_ms"][wrong[0]]
        raise TrimtabError(f"{path}: line {lines[wrong[0]]}: median_ms must be positive, got {given:g}")
