"""Operators that share a surface, and what of a profile row is its key, its grid and its first guess."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.exectime.kernels import Kernels
from trimtab.exectime.profile_schema import Profile

Array = NDArray[np.float64]
Columns = Callable[[dict[str, Array]], list[Array]]

# Rows of a batch: dense where engines spend their time, and on both sides of each tile of 64.
TOKEN_KNOTS = np.unique(
    [
        *(1, 2, 4, *range(8, 65, 8), 65, 80, 96, 112, 128),
        *(64 * tile + offset for tile in range(2, 16) for offset in (8, 64)),
        *range(1088, 2049, 64),
        *range(2176, 4097, 128),
        *range(4608, 8193, 512),
        *range(10240, 32769, 2048),
    ]
).astype(np.float64)
MESSAGE_KNOTS = 2.0 ** np.arange(10, 30.1, 0.5)
MOST_KNOTS = 20  # per axis of attention, where the profile's own grid is taken


@dataclass(frozen=True)
class Group:
    """``key`` and ``grid``: columns (R,) of rows; ``knots`` None: those of the profile."""

    operators: tuple[str, ...]
    key: Columns
    grid: Columns
    knots: Array | None = None

    def keys_of(self, rows: Profile) -> Array:
        """(R, d), rounded so that equal shapes are equal."""
        return np.asarray(np.round(np.column_stack(self.key(rows.numbers)), 3), dtype=np.float64)

    def grid_of(self, rows: Profile) -> Array:
        """(R, g)."""
        return np.column_stack(self.grid(rows.numbers))

    def knots_of(self, grid: Array) -> tuple[Array, ...]:
        """One axis of knots per grid column, inside the range of the rows."""
        return tuple(self._axis(grid[:, dim]) for dim in range(grid.shape[1]))

    def _axis(self, column: Array) -> Array:
        low, high = float(column.min()), float(column.max())
        axis: Array
        if self.knots is not None:
            inside = self.knots[(self.knots >= low) & (self.knots <= high)]
            axis = np.unique([low, *inside, high])
        else:
            axis = np.unique(column)
            if len(axis) > MOST_KNOTS:
                axis = axis[np.unique(np.rint(np.linspace(0, len(axis) - 1, MOST_KNOTS)).astype(int))]
        return np.asarray(axis if len(axis) > 1 else [low, low + 1.0], dtype=np.float64)

    def first_guess(self, name: str, kernels: Kernels, rows: Profile) -> Array:
        """Analytic seconds (R,) of every row."""
        keys, grid = self.keys_of(rows), self.grid_of(rows)
        if name == "grouped":
            numbers = rows.numbers
            return kernels.roof(numbers["flops"], numbers["bytes"])
        columns = [keys[:, dim] for dim in range(keys.shape[1])]
        return np.asarray(kernels.base(name)(columns, [grid[:, dim] for dim in range(grid.shape[1])]))


def _per_token(numbers: dict[str, Array]) -> list[Array]:
    return [numbers["bytes"] / numbers["tokens"]]


def _tokens(numbers: dict[str, Array]) -> list[Array]:
    return [numbers["tokens"]]


def _batch(numbers: dict[str, Array]) -> list[Array]:
    return [numbers["batch"]]


def _matrix(numbers: dict[str, Array]) -> list[Array]:
    return [numbers["k"], numbers["n"]]


def _decode_pairs(numbers: dict[str, Array]) -> list[Array]:
    pairs = numbers["batch"] * (numbers["kv"] + 1)
    return [numbers["flops"] / pairs, numbers["bytes"] / pairs]


def _prefill_pairs(numbers: dict[str, Array]) -> list[Array]:
    chunk, past = numbers["chunk"], numbers["kv"]
    return [numbers["flops"] / (chunk * past + chunk * chunk / 2)]


PRODUCTS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "moe_router", "lm_head")
GROUPS: dict[str, Group] = {
    "matrix": Group(PRODUCTS, _matrix, lambda n: [n["m"]], TOKEN_KNOTS),
    "norm": Group(("input_layernorm", "post_attention_layernorm"), _per_token, _tokens, TOKEN_KNOTS),
    "act": Group(("mlp_act",), _per_token, _tokens, TOKEN_KNOTS),
    "rope": Group(("attn_rope",), _per_token, _tokens, TOKEN_KNOTS),
    "add": Group(("add",), _per_token, _tokens, TOKEN_KNOTS),
    "kv_save": Group(("attn_kv_cache_save",), _per_token, _tokens, TOKEN_KNOTS),
    "sampling": Group(("sampling",), lambda n: [n["bytes"] / n["batch"]], _batch),
    "prefill": Group(("attn_prefill",), _prefill_pairs, lambda n: [n["chunk"], n["kv"]]),
    "decode": Group(("attn_decode",), _decode_pairs, lambda n: [n["batch"], n["kv"]]),
    "grouped": Group(("moe_grouped",), _matrix, lambda n: [n["m"] / n["batch"]]),
    "all_reduce": Group(("all_reduce",), lambda n: [n["tp"]], lambda n: [n["bytes"]], MESSAGE_KNOTS),
    "all_to_all": Group(("all_to_all",), lambda n: [n["tp"]], lambda n: [n["bytes"]], MESSAGE_KNOTS),
    "send_recv": Group(("send_recv",), lambda n: [n["tp"]], lambda n: [n["bytes"]], MESSAGE_KNOTS),
    "cpu_overhead": Group(("cpu_overhead",), lambda n: [np.ones_like(n["batch"])], _batch),
}
GROUP_OF = {operator: name for name, group in GROUPS.items() for operator in group.operators}
