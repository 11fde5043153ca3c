"""Vidur's profile CSVs as rows of our schema: mlp.csv, attention.csv, all_reduce.csv, send_recv.csv.

Device and model come from the path, ``compute/<device>/<organisation>/<model>/mlp.csv``, the device of a
network profile from its node, ``network/<node>/all_reduce.csv``. Times are medians in milliseconds,
measured eagerly on the device's clock. Files named ``*_SURROGATE.csv`` were not measured and are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.exectime.csv_files import Columns, read_columns
from trimtab.exectime.profile_schema import NUMBERS, WORDS, Profile
from trimtab.exectime.shapes import (
    bytes_per_token,
    decode_work,
    matrix_bytes,
    matrix_flops,
    matrix_shapes,
    prefill_work,
)
from trimtab.hardware.devices import get_device, get_node
from trimtab.hardware.models import Model, get_model

Array = NDArray[np.float64]
FILES = ("mlp.csv", "attention.csv", "all_reduce.csv", "send_recv.csv")


def read_vidur(path: Path) -> Profile:
    """One of Vidur's CSVs, by its name.

    Raises
    ------
    TrimtabError
        for a surrogate, an unknown model or device in the path, a missing column or a bad cell.
    """
    if "surrogate" in path.name.lower():
        raise TrimtabError(f"{path} was not measured (a surrogate): nothing can be calibrated with it")
    readers: dict[str, Callable[[Path], list[Profile]]] = {
        "mlp.csv": _mlp,
        "attention.csv": _attention,
        "all_reduce.csv": _network,
        "send_recv.csv": _network,
    }
    if path.name not in readers:
        raise TrimtabError(f"{path} is not one of Vidur's profiles ({', '.join(FILES)})")
    return concatenate(readers[path.name](path))


def concatenate(parts: list[Profile]) -> Profile:
    """All rows of several profiles."""
    words = {name: np.concatenate([part.words[name] for part in parts]) for name in WORDS}
    numbers = {name: np.concatenate([part.numbers[name] for part in parts]) for name in NUMBERS}
    return Profile(words, numbers, ", ".join(dict.fromkeys(part.source for part in parts)))


def _profile(
    path: Path, device: str, model: str, operator: str, times: Array, **columns: Array | float
) -> Profile:
    """Rows of one operator; columns not given are empty, rows that were not timed (0) are dropped."""
    count = len(times)
    numbers = {name: np.full(count, np.nan) for name in NUMBERS}
    for name, column in {"graph": 0.0, "median_ms": times, **columns}.items():
        numbers[name] = np.broadcast_to(np.asarray(column, dtype=np.float64), count).copy()
    words = {"device": device, "model": model, "operator": operator}
    rows = Profile({name: np.full(count, word) for name, word in words.items()}, numbers, _source(path))
    return rows.where(times > 0)


def _source(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _owner(path: Path) -> tuple[str, Model]:
    parts = path.absolute().parts
    if len(parts) < 5:
        raise TrimtabError(f"{path}: expected compute/<device>/<organisation>/<model>/{path.name}")
    return get_device(parts[-4]).name, get_model(f"{parts[-3]}/{parts[-2]}")


def _mlp(path: Path) -> list[Profile]:
    device, model = _owner(path)
    operators = [*matrix_shapes(model, 1), *bytes_per_token(model, 1)]
    targets = {name: f"time_stats.{name}.median" for name in operators}
    keys = ["num_tokens", "num_tensor_parallel_workers", "n_head", "n_embd", "n_expanded_embd"]
    columns = read_columns(path, [*keys, *targets.values()])
    _same_model(path, columns, model)
    found = []
    for tp in np.unique(columns["num_tensor_parallel_workers"]):
        _heads_divide(path, model, int(tp))
        mine = columns["num_tensor_parallel_workers"] == tp
        tokens = columns["num_tokens"][mine]
        common = {"tp": float(tp), "tokens": tokens, "m": tokens}
        for name, (inputs, outputs) in matrix_shapes(model, int(tp)).items():
            work: dict[str, Array | float] = {
                "k": inputs,
                "n": outputs,
                "flops": matrix_flops(tokens, inputs, outputs),
                "bytes": matrix_bytes(tokens, inputs, outputs),
            }
            times = columns[targets[name]][mine]
            found.append(_profile(path, device, model.name, name, times, **common, **work))
        for name, size in bytes_per_token(model, int(tp)).items():
            times = columns[targets[name]][mine]
            found.append(_profile(path, device, model.name, name, times, **common, bytes=size * tokens))
    return found


def _attention(path: Path) -> list[Profile]:
    device, model = _owner(path)
    prefill, decode = "time_stats.attn_prefill.median", "time_stats.attn_decode.median"
    keys = ["num_tensor_parallel_workers", "batch_size", "prefill_chunk_size", "kv_cache_size"]
    columns = read_columns(path, [*keys, prefill, decode])
    found = []
    for degree in np.unique(columns[keys[0]]):
        tp = int(degree)
        _heads_divide(path, model, tp)
        mine = columns[keys[0]] == degree
        batch, chunk, kv = (columns[name][mine] for name in keys[1:])
        work = {
            "attn_decode": (decode, chunk == 0, decode_work(model, tp, batch, kv), {"batch": batch}),
            "attn_prefill": (prefill, chunk > 0, prefill_work(model, tp, kv, chunk), {"chunk": chunk}),
        }
        for name, (target, rows, (flops, num_bytes), extra) in work.items():
            tokens = np.maximum(batch, chunk)
            every = {"tokens": tokens, "kv": kv, "flops": flops, "bytes": num_bytes, **extra}
            part = {key: np.asarray(column)[rows] for key, column in every.items()}
            found.append(
                _profile(path, device, model.name, name, columns[target][mine][rows], tp=float(tp), **part)
            )
    return found


def _network(path: Path) -> list[Profile]:
    """Rows inside one node; the number of devices stands in ``tp``, 2 for a send to the neighbour."""
    node = get_node(path.absolute().parent.name)
    operator = path.stem
    target = f"time_stats.{operator}.median"
    columns = read_columns(path, ["num_workers", "devices_per_node", "size", target])
    inside = columns["num_workers"] == columns["devices_per_node"]
    devices, size, times = (columns[name][inside] for name in ("num_workers", "size", target))
    if not inside.any():
        return []
    return [_profile(path, node.device, node.name, operator, times, tp=devices, bytes=size)]


def _same_model(path: Path, columns: Columns, model: Model) -> None:
    for name, expected in (("n_head", model.heads), ("n_embd", model.hidden), ("n_expanded_embd", model.ffn)):
        if (columns[name] != expected).any():
            given = columns[name][columns[name] != expected][0]
            raise TrimtabError(f"{path}: {name} is {given:g}, but {model.name} has {expected}")


def _heads_divide(path: Path, model: Model, tp: int) -> None:
    if tp < 1 or model.heads % tp:
        raise TrimtabError(f"{path}: tp={tp} does not divide the {model.heads} heads of {model.name}")
