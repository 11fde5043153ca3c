"""Training data from profile CSVs in the layout of Vidur's ``data/profiling``.

``compute/<device>/<model id>/mlp.csv`` and ``attention.csv`` (or ``attention_SURROGATE.csv``: times
that were not measured), ``network/<node>/all_reduce.csv`` and ``send_recv.csv``. Times are medians in
milliseconds. Which rows, features and targets belong to an operator follows
vidur/execution_time_predictor/sklearn_execution_time_predictor.py (microsoft/vidur@7d47513).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.exectime.compose import token_operators
from trimtab.exectime.csv_files import Columns, read_columns
from trimtab.hardware.devices import Device, Node
from trimtab.hardware.models import Model

ATTENTION_FILES = ("attention.csv", "attention_SURROGATE.csv")


@dataclass(frozen=True)
class TrainingSet:
    """features (rows, 1 or 2), milliseconds (rows,)."""

    features: NDArray[np.float64]
    milliseconds: NDArray[np.float64]


@dataclass(frozen=True)
class ProfileFiles:
    """The CSVs that a replica's times come from. ``all_reduce`` only for tp > 1, ``send_recv`` for pp > 1."""

    mlp: Path
    attention: Path
    all_reduce: Path | None
    send_recv: Path | None

    def paths(self) -> list[Path]:
        return [path for path in (self.mlp, self.attention, self.all_reduce, self.send_recv) if path]


def find_profiles(root: str, model: Model, device: Device, node: Node, tp: int, pp: int) -> ProfileFiles:
    """The files for this model, device and node under ``root``.

    Raises
    ------
    TrimtabError
        that names the first missing file, and what is there instead.
    """
    base = Path(root)
    if not base.is_dir():
        raise TrimtabError(f"exectime.path {root!r} is not a folder")
    compute = base / "compute" / (device.profile or device.name)
    folders = [compute / name for name in (model.id, *model.aliases, model.name)]
    folder = next((choice for choice in folders if choice.is_dir()), None)
    if folder is None:
        present = sorted("/".join(path.parts[-3:-1]) for path in compute.glob("*/*/mlp.csv"))
        raise TrimtabError(
            f"no profile of {model.id} on {device.name}: {folders[0]} does not exist; "
            f"profiled there: {', '.join(present) or 'nothing'}"
        )
    network = base / "network" / node.name
    return ProfileFiles(
        mlp=_first_file(folder, ("mlp.csv",)),
        attention=_first_file(folder, ATTENTION_FILES),
        all_reduce=_first_file(network, ("all_reduce.csv",)) if tp > 1 else None,
        send_recv=_first_file(network, ("send_recv.csv",)) if pp > 1 else None,
    )


def _first_file(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise TrimtabError(f"no profile {folder / names[0]}")


def training_sets(
    files: ProfileFiles, model: Model, node: Node, tp: int, pp: int, block_size: int
) -> dict[str, TrainingSet]:
    """Training rows of every operator by Vidur's name; ``attn_kv_cache_save`` only if it was profiled."""
    sets = _mlp_sets(files.mlp, model, tp)
    sets.update(_attention_sets(files.attention, model, tp, block_size))
    if files.all_reduce is not None:
        sets["all_reduce"] = _network_set(files.all_reduce, "all_reduce", model, tp, tp)
    if files.send_recv is not None:
        # 1: neighbours sit in different nodes; 2: in the same one.
        per_node = 1 if tp * pp > node.devices else 2
        sets["send_recv"] = _network_set(files.send_recv, "send_recv", model, None, per_node)
    return sets


def _mlp_sets(path: Path, model: Model, tp: int) -> dict[str, TrainingSet]:
    shape: dict[str, float] = {
        "n_head": model.heads,
        "n_kv_head": model.kv_heads,
        "n_embd": model.hidden,
        "n_expanded_embd": model.ffn,
        "use_gated_mlp": float(model.gated_mlp),
        "vocab_size": model.vocab,
        "num_tensor_parallel_workers": tp,
    }
    targets = {name: f"time_stats.{name}.median" for name in token_operators(model)}
    columns = read_columns(path, [*shape, "num_tokens", *targets.values()])
    rows = _matching(path, columns, shape)
    tokens = columns["num_tokens"][rows, None]
    return {name: TrainingSet(tokens, columns[target][rows]) for name, target in targets.items()}


def _attention_sets(path: Path, model: Model, tp: int, block_size: int) -> dict[str, TrainingSet]:
    shape: dict[str, float] = {
        "n_embd": model.hidden,
        "n_q_head": model.heads,
        "n_kv_head": model.kv_heads,
        "block_size": block_size,
        "num_tensor_parallel_workers": tp,
    }
    prefill, decode, save = (
        f"time_stats.{name}.median" for name in ("attn_prefill", "attn_decode", "attn_kv_cache_save")
    )
    needed = [*shape, "batch_size", "prefill_chunk_size", "kv_cache_size", prefill, decode]
    columns = read_columns(path, needed, [save])
    rows = _matching(path, columns, shape)
    batch, chunk, kv = (columns[name][rows] for name in ("batch_size", "prefill_chunk_size", "kv_cache_size"))
    decoding = chunk == 0
    for what, selected in (("decode", decoding), ("prefill", ~decoding)):
        if not selected.any():
            raise TrimtabError(f"{path}: no {what} rows for {model.name} with tp={tp}")
    sets = {
        "attn_decode": TrainingSet(np.column_stack([batch, kv])[decoding], columns[decode][rows][decoding]),
        "attn_prefill": TrainingSet(
            np.column_stack([kv, chunk * chunk])[~decoding], columns[prefill][rows][~decoding]
        ),
    }
    if save in columns:
        sets["attn_kv_cache_save"] = TrainingSet(np.maximum(chunk, batch)[:, None], columns[save][rows])
    return sets


def _network_set(
    path: Path, name: str, model: Model, workers: int | None, devices_per_node: int
) -> TrainingSet:
    shape: dict[str, float] = {"devices_per_node": devices_per_node}
    if workers is not None:
        shape["num_workers"] = workers
    target = f"time_stats.{name}.median"
    columns = read_columns(path, [*shape, "size", target])
    rows = _matching(path, columns, shape)
    # A message of `size` bytes carries the bf16 hidden states of this many tokens.
    return TrainingSet((columns["size"][rows] / model.hidden / 2)[:, None], columns[target][rows])


def _matching(path: Path, columns: Columns, shape: dict[str, float]) -> NDArray[np.bool_]:
    """Rows with these values; an error names the first column that leaves none, and what it holds."""
    rows = np.ones(len(next(iter(columns.values()))), dtype=bool)
    for name, value in shape.items():
        left = rows & (columns[name] == value)
        if not left.any():
            present = ", ".join(f"{other:g}" for other in np.unique(columns[name][rows]))
            raise TrimtabError(f"{path}: no rows with {name}={value:g}; profiled there: {present}")
        rows = left
    return rows
