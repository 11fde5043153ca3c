"""``exectime.kind: forest``: Vidur's random forests, fitted to profile CSVs and laid out as tables.

One forest per operator (features and grids as in Vidur), evaluated once on the whole grid. A fit takes
seconds to a minute, so the grids are kept in the user's cache folder under a hash of the CSVs and of
every parameter. Where Vidur leaves the forest's seed open, ours is ``exectime.seed``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.exectime.cache import cache_path, load_arrays, save_arrays
from trimtab.exectime.compose import KV_STEP, OperatorGrids, compose, token_operators
from trimtab.exectime.profiles import TrainingSet, find_profiles, training_sets
from trimtab.exectime.tables import ExecTables
from trimtab.hardware.devices import Device, Node
from trimtab.hardware.models import Model
from trimtab.scenario import ExecTimeConfig, ReplicaGroup

FORMAT = 1  # of the cached grids; raise it when their meaning changes
Array = NDArray[np.float64]


def build_forest(
    group: ReplicaGroup,
    model: Model,
    device: Device,
    node: Node,
    max_batch: int,
    max_chunk: int,
    max_context: int,
    cpu_s: Array,
) -> ExecTables:
    """Tables on Vidur's grids: tokens 1..max, batch 1..max_batch x KV by 64, KV by 64 x chunk 1..max_chunk.

    Raises
    ------
    TrimtabError
        for missing or bad profiles, or without scikit-learn.
    """
    config, tp, pp = group.exectime, group.tp, group.pp
    files = find_profiles(config.path or "", model, device, node, tp, pp)
    # Vidur's LightLLM runs with single-token blocks; all else with 16 unless told otherwise.
    block_size = group.scheduler.block_size or (1 if group.scheduler.name == "lightllm" else 16)
    sizes = _Sizes(max(max_context, max_chunk + max_batch), max_batch, max_chunk, max_context)
    parameters = {
        "model": [model.heads, model.kv_heads, model.hidden, model.ffn, model.gated_mlp, model.vocab],
        "norm": model.post_attention_norm,
        "split": [tp, pp, node.devices, block_size],
        "grid": [sizes.tokens, sizes.batch, sizes.chunk, sizes.kv],
        "forest": [config.trees, config.max_depth, config.seed],
    }
    cached = cache_path("forest", [FORMAT, parameters], files.paths())
    grids = _load(cached)
    if grids is None:
        sets = training_sets(files, model, node, tp, pp, block_size)
        grids = _fit_grids(sets, sizes, config, model)
        _save(cached, grids)
    source = f"forest {config.trees}x{config.max_depth} on {device.name}/{model.name}, {files.attention.name}"
    return compose(grids, model, pp, cpu_s, source)


class _Sizes:
    """Ends of the grids: tokens of a batch, sequences, chunk tokens, KV tokens.

    Tokens and KV go up to a power of two, so that traffic with another longest request finds the
    same grids in the cache.
    """

    def __init__(self, tokens: int, batch: int, chunk: int, kv: int):
        self.batch, self.chunk = batch, chunk
        self.tokens = 1 << (tokens - 1).bit_length()
        self.kv = max(KV_STEP, 1 << (kv - 1).bit_length())


def _fit_grids(
    sets: dict[str, TrainingSet], sizes: _Sizes, config: ExecTimeConfig, model: Model
) -> OperatorGrids:
    tokens = np.arange(1, sizes.tokens + 1, dtype=np.float64)
    kv = np.arange(0, sizes.kv + 1, KV_STEP, dtype=np.float64)
    batch = np.arange(1, sizes.batch + 1, dtype=np.float64)
    chunk = np.arange(1, sizes.chunk + 1, dtype=np.float64)

    def by_tokens(name: str) -> Array:
        return np.concatenate([[0.0], predict_grid(_fit(sets[name], config), [tokens])])

    decode = predict_grid(_fit(sets["attn_decode"], config), [batch, kv])
    prefill = predict_grid(_fit(sets["attn_prefill"], config), [kv, chunk * chunk])
    return OperatorGrids(
        by_tokens={name: by_tokens(name) for name in token_operators(model)},
        kv_save=by_tokens("attn_kv_cache_save")
        if "attn_kv_cache_save" in sets
        else np.zeros(sizes.tokens + 1),
        decode=np.vstack([np.zeros((1, len(kv))), decode]),
        prefill=np.hstack([np.zeros((len(kv), 1)), prefill]),
        all_reduce=by_tokens("all_reduce") if "all_reduce" in sets else None,
        send_recv=by_tokens("send_recv") if "send_recv" in sets else None,
    )


def _fit(data: TrainingSet, config: ExecTimeConfig) -> Any:
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError:
        raise TrimtabError(
            "exectime kind 'forest' needs scikit-learn; install it with: pip install 'trimtab[forest]'"
        ) from None
    forest = RandomForestRegressor(
        n_estimators=config.trees, max_depth=config.max_depth, random_state=config.seed, n_jobs=-1
    )
    forest.fit(data.features, data.milliseconds)
    # Threads would add the trees' answers in any order: not the same bits twice.
    forest.n_jobs = 1
    return forest


def predict_grid(forest: Any, axes: list[Array]) -> Array:
    """The forest's answers on the product of the axes, shaped like it.

    Trees are constant between their thresholds, so one point per cell of thresholds is evaluated and
    the rest is copied: the same numbers for a fraction of the work.
    """
    points, cells = [], []
    for feature, axis in enumerate(axes):
        # The trees compare single-precision features with double-precision thresholds.
        seen = axis.astype(np.float32).astype(np.float64)
        first, cell = np.unique(
            np.searchsorted(_thresholds(forest, feature), seen), return_index=True, return_inverse=True
        )[1:]
        points.append(axis[first])
        cells.append(cell)
    mesh = np.meshgrid(*points, indexing="ij")
    answers = forest.predict(np.column_stack([part.ravel() for part in mesh]))
    return np.asarray(answers.reshape(mesh[0].shape)[np.ix_(*cells)], dtype=np.float64)


def _thresholds(forest: Any, feature: int) -> Array:
    trees = [estimator.tree_ for estimator in forest.estimators_]
    return np.unique(np.concatenate([tree.threshold[tree.feature == feature] for tree in trees]))


# --- cache --------------------------------------------------------------------------------------


def _load(path: Path) -> OperatorGrids | None:
    """The cached grids; None if absent or damaged (they are then fitted again)."""
    arrays = load_arrays(path)
    if arrays is None or not {"kv_save", "decode", "prefill"} <= set(arrays):
        return None
    return OperatorGrids(
        by_tokens={name[7:]: row for name, row in arrays.items() if name.startswith("tokens_")},
        kv_save=arrays["kv_save"],
        decode=arrays["decode"],
        prefill=arrays["prefill"],
        all_reduce=arrays.get("all_reduce"),
        send_recv=arrays.get("send_recv"),
    )


def _save(path: Path, grids: OperatorGrids) -> None:
    arrays = {f"tokens_{name}": row for name, row in grids.by_tokens.items()}
    arrays |= {"kv_save": grids.kv_save, "decode": grids.decode, "prefill": grids.prefill}
    for name, row in (("all_reduce", grids.all_reduce), ("send_recv", grids.send_recv)):
        if row is not None:
            arrays[name] = row
    save_arrays(path, arrays)
