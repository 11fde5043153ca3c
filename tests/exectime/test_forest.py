"""Random forests on profiles: the grid trick is exact, the cache is safe, Vidur's tables are met."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.exectime import ExecTables
from trimtab.exectime.compose import TOKEN_OPERATORS
from trimtab.exectime.forest import predict_grid

Build = Callable[..., ExecTables]
FOLDER = "compute/a100/meta-llama/Llama-2-7b-hf"
SMALL = {"batch": 8, "chunk": 64, "context": 256, "trees": 3, "max_depth": 6}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """A tiny profile tree of Llama-2-7B on one and two A100s, with times in proportion to the work."""
    root = tmp_path / "profiling"
    shape = {"n_head": 32, "n_kv_head": 32, "n_embd": 4096, "n_expanded_embd": 11008, "vocab_size": 32768}
    mlp, attention, network = [], [], []
    for tp in (1, 2):
        for tokens in range(8, 520, 8):
            times = {f"time_stats.{name}.median": 0.01 + tokens * 1e-4 / tp for name in TOKEN_OPERATORS}
            row = {**shape, "use_gated_mlp": True, "num_tensor_parallel_workers": tp, "num_tokens": tokens}
            mlp.append({**times, **row})
        for batch, chunk, kv in [
            *((b, 0, k) for b in (1, 2, 4, 8) for k in range(0, 320, 64)),
            *((1, c, k) for c in (16, 32, 64) for k in range(0, 320, 64)),
        ]:
            decode = 0.0 if chunk else 0.01 + batch * kv * 1e-6
            prefill = 0.02 + chunk * (kv + chunk) * 1e-6 if chunk else 0.0
            attention.append(
                {
                    "time_stats.attn_prefill.median": prefill,
                    "time_stats.attn_decode.median": decode,
                    "n_embd": 4096,
                    "n_q_head": 32,
                    "n_kv_head": 32,
                    "block_size": 16,
                    "num_tensor_parallel_workers": tp,
                    "batch_size": batch,
                    "prefill_chunk_size": chunk,
                    "kv_cache_size": kv,
                    "is_prefill": bool(chunk),
                }
            )
    for size in (2048, 65536, 1 << 20, 1 << 22):
        for collective in ("all_reduce", "send_recv"):
            row = {"size": size, "num_workers": 2, "devices_per_node": 2, "collective": collective}
            network.append({**row, f"time_stats.{collective}.median": size * 1e-7})
    write(root / FOLDER / "mlp.csv", mlp)
    write(root / FOLDER / "attention_SURROGATE.csv", attention)
    for collective in ("all_reduce", "send_recv"):
        rows = [row for row in network if row["collective"] == collective]
        write(root / "network" / "a100_dgx" / f"{collective}.csv", rows)
    return root


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def forest(build: Build, root: Path, **changes: object) -> ExecTables:
    arguments = {"model": "llama-2-7b", "kind": "forest", "path": str(root), **SMALL, **changes}
    return build(**arguments)


def test_grid_of_cells_equals_every_single_prediction() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    random = np.random.default_rng(0)
    features = np.column_stack([random.integers(0, 500, 200), random.integers(1, 300, 200) ** 2])
    target = features[:, 0] + np.sqrt(features[:, 1]) + random.random(200)
    model = ensemble.RandomForestRegressor(n_estimators=7, max_depth=8, random_state=0)
    model.fit(features, target)
    kv, square = np.arange(0.0, 640, 64), np.arange(1.0, 20_000, 37) ** 2
    mesh = np.meshgrid(kv, square, indexing="ij")
    direct = model.predict(np.column_stack([part.ravel() for part in mesh])).reshape(mesh[0].shape)
    assert np.array_equal(predict_grid(model, [kv, square]), direct)


def test_composition_and_grids(build: Build, profiles: Path) -> None:
    tables = forest(build, profiles)
    assert tables.vidur
    assert tables.many_prefills_factor == 1.0  # no grouped queries
    assert "attention_SURROGATE.csv" in tables.source
    assert tables.token_s.shape == (257,)
    assert tables.decode_s.shape == (9, 5)
    assert tables.prefill_s.shape == (5, 65)
    assert not tables.kv_write_s.any()  # the profile has no such column
    # Nine operators of 0.01 + n 1e-4 ms, 32 layers; a forest of three trees is a step or two off.
    assert tables.token_s[128] == pytest.approx(32 * 9 * (0.01 + 0.0128) / 1000, rel=0.1)
    assert tables.decode_s[4, 2] == pytest.approx(32 * (0.01 + 4 * 128e-6) / 1000, rel=0.1)


def test_two_devices_add_the_network(build: Build, profiles: Path) -> None:
    tables = forest(build, profiles, tp=2, pp=2)
    # 65,536 bytes are 8 tokens: 0.0065536 ms to send; the all-reduce is in token_s, twice, with its launch.
    assert tables.send_s[8] == pytest.approx(6.5536e-6, rel=0.5)
    assert tables.operators["all_reduce"] > 2 * 0.02e-3
    assert tables.token_s[8] > 16 * 2 * 0.02e-3


def test_same_inputs_come_from_the_cache(
    build: Build, profiles: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = forest(build, profiles)
    (stored,) = own_cache.rglob("*.npz")
    assert not list(own_cache.rglob("*.part"))
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)  # fitting again would fail
    again = forest(build, profiles)
    for name in ("token_s", "kv_write_s", "decode_s", "prefill_s", "send_s"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    stored.write_bytes(b"half a file")
    monkeypatch.delitem(sys.modules, "sklearn.ensemble")
    assert np.array_equal(forest(build, profiles).token_s, first.token_s)  # fitted afresh, same seed


def test_any_change_is_another_entry(build: Build, profiles: Path, own_cache: Path) -> None:
    forest(build, profiles)
    for changes in ({"trees": 4}, {"seed": 1}, {"chunk": 32}, {"tp": 2}):
        forest(build, profiles, **changes)
    mlp = profiles / FOLDER / "mlp.csv"
    mlp.write_text(mlp.read_text().replace("0.0108", "0.0109", 1))
    forest(build, profiles)
    assert len(list(own_cache.rglob("*.npz"))) == 6


def test_cache_that_cannot_be_written_is_no_error(
    build: Build, profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("TRIMTAB_CACHE", str(blocked))
    assert forest(build, profiles).token_s[8] > 0


def test_without_scikit_learn(build: Build, profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(TrimtabError, match=r"pip install 'trimtab\[forest\]'"):
        forest(build, profiles)


def replace_in(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / FOLDER / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


BAD: list[tuple[Callable[[Path], object], dict[str, object], str]] = [
    (
        replace_in("mlp.csv", "0.0108", "fast"),
        {},
        "mlp.csv: line 2, column 'time_stats.attn_pre_proj.median'",
    ),
    (replace_in("mlp.csv", "num_tokens", "tokens"), {}, "line 1: no column 'num_tokens'"),
    (replace_in("mlp.csv", ",True,", ","), {}, "line 2: 16 cells where the header has 17"),
    (lambda _: None, {"tp": 4}, "no profile"),
    (lambda _: None, {"model": "llama-3-8b"}, "profiled there: meta-llama/Llama-2-7b-hf"),
    (lambda root: (root / FOLDER / "mlp.csv").unlink(), {}, "no profile"),
    (lambda root: (root / FOLDER / "attention_SURROGATE.csv").unlink(), {}, "attention.csv"),
    (lambda _: None, {"path": "nowhere"}, "exectime.path 'nowhere' is not a folder"),
]


@pytest.mark.parametrize(("change", "arguments", "message"), BAD)
def test_bad_profiles_name_the_place(
    build: Build,
    profiles: Path,
    change: Callable[[Path], object],
    arguments: dict[str, object],
    message: str,
) -> None:
    change(profiles)
    with pytest.raises(TrimtabError) as error:
        forest(build, profiles, **arguments)
    if "tp" in arguments:
        message = "mlp.csv: no rows with num_tensor_parallel_workers=4; profiled there: 1, 2"
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prefix", "model", "tp", "pp"),
    [("b_llama3_8b_4k", "llama-3-8b", 1, 1), ("c_llama2_70b_tp4", "llama-2-70b", 4, 2)],
)
def test_vidurs_own_tables_are_met(
    build: Build,
    vidur_data: Path,
    prefix: str,
    model: str,
    tp: int,
    pp: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Same profiles, same forests but for the seed: Vidur leaves its own open."""
    sizes = {"batch": 128, "chunk": 512, "context": 4096}
    tables = str(vidur_data / "predictor_tables" / prefix)
    theirs = build(model, tp=tp, pp=pp, kind="tables", path=tables, **sizes)
    folder = str(vidur_data / "profiling")
    ours = build(model, tp=tp, pp=pp, kind="forest", path=folder, trees=40, **sizes)
    errors = {}
    for name in ("token_s", "decode_s", "prefill_s"):
        mine, reference = getattr(ours, name), getattr(theirs, name)
        common = tuple(slice(0, min(a, b)) for a, b in zip(mine.shape, reference.shape, strict=True))
        mine, reference = mine[common], reference[common]
        seen = reference > 0
        errors[name] = float(np.mean(np.abs(mine[seen] / reference[seen] - 1)))
    with capsys.disabled():
        shown = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
        print(f"\n  forest against Vidur's tables, {model}: {shown}")
    assert errors["token_s"] < 0.005
    assert errors["decode_s"] < 0.01
    assert errors["prefill_s"] < 0.03
