"""Calibration: what was put into a profile comes out again, errors are honest, bad input is one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.exectime.calibrate import collect, held_out, held_out_errors
from trimtab.exectime.calibration import load_calibration, save_calibration
from trimtab.exectime.curves import Lattice, Surface, fit_spline, interpolate, monotone
from trimtab.exectime.fit import fit_calibration, fit_surface, predict, shape_folds
from trimtab.exectime.groups import GROUPS
from trimtab.exectime.kernels import Kernels, get_efficiency, kernels_for
from trimtab.exectime.profile_schema import COLUMNS
from trimtab.exectime.shapes import bytes_per_token, decode_work, matrix_shapes, prefill_work
from trimtab.hardware import default_node, get_device, get_model

Row = dict[str, object]
TOKENS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
SPLINES = dict.fromkeys(GROUPS, "spline")


def bare(device: str = "h200") -> Kernels:
    found = get_device(device)
    return Kernels(found, default_node(found), get_efficiency(found.efficiency))


def wave(tokens: float, inputs: float = 4096.0) -> float:
    """How the made-up device differs from the roofline: slowly in tokens and in the matrix."""
    return float(1.2 + 0.05 * np.log(tokens) + 0.02 * np.log(inputs / 4096))


def made_up(models: tuple[str, ...] = ("llama-3-8b", "qwen3-8b"), tp: int = 1) -> list[Row]:
    """A profile in our schema of a device that is a roofline times ``wave``."""
    kernels, rows = bare(), []
    for name in models:
        model = get_model(name)
        common = {"device": "h200", "model": name, "tp": tp, "graph": 1, "repeats": 10}
        for tokens in TOKENS:
            m = np.array([float(tokens)])
            for operator, (k, n) in matrix_shapes(model, tp).items():
                seconds = kernels.matrix_product(m, k, n)[0] * wave(tokens, k)
                shape = {"m": tokens, "k": k, "n": n, "bytes": 2 * (k * n + tokens * (k + n))}
                shape |= {"flops": 2 * tokens * k * n, "tokens": tokens, "operator": operator}
                rows.append({**common, **shape, "median_ms": seconds * 1000})
            for operator, size in bytes_per_token(model, tp).items():
                seconds = size * tokens / kernels.device.bandwidth * 2 + 1e-6
                shape = {"tokens": tokens, "bytes": size * tokens, "operator": operator}
                rows.append({**common, **shape, "median_ms": seconds * 1000})
        rows += [{**common, **row} for row in attention(name, tp)]
    return rows


def attention(name: str, tp: int) -> list[Row]:
    model, kernels, rows = get_model(name), bare(), []
    for kv in (0.0, 256.0, 1024.0, 4096.0):
        for batch in (1.0, 4.0, 16.0, 64.0, 256.0):
            flops, size = decode_work(model, tp, np.array(batch), np.array(kv))
            seconds = float(kernels.attention_decode(flops, size)) * 1.5
            shape = {"operator": "attn_decode", "batch": batch, "kv": kv, "flops": flops, "bytes": size}
            rows.append({**shape, "median_ms": seconds * 1000})
        for chunk in (16.0, 128.0, 512.0, 2048.0):
            flops, size = prefill_work(model, tp, np.array(kv), np.array(chunk))
            seconds = float(kernels.attention_prefill(flops, size)) * 1.2
            shape = {"operator": "attn_prefill", "chunk": chunk, "kv": kv, "flops": flops, "bytes": size}
            rows.append({**shape, "tokens": chunk, "median_ms": seconds * 1000})
    return rows


def write(path: Path, rows: list[Row], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return write(tmp_path / "profile.csv", made_up())


# --- the mathematics ----------------------------------------------------------------------------


@given(hnp.arrays(np.float64, (4, 5, 6), elements=st.floats(0.1, 100)))
def test_monotone_in_every_direction(values: np.ndarray) -> None:
    rising = monotone(values)
    for axis in range(3):
        assert (np.diff(rising, axis=axis) >= -1e-12).all()
        assert rising.min() >= values.min() * (1 - 1e-12)
    assert monotone(rising) == pytest.approx(rising)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=20), st.lists(st.floats(0, 7), min_size=1, max_size=20)
)
def test_interpolation_reproduces_planes(rows: list[float], columns: list[float]) -> None:
    knots = (np.array([0.0, 1.0, 4.0, 10.0]), np.array([0.0, 3.0, 7.0]))
    values = 1 + 2 * knots[0][:, None] + 5 * knots[1][None, :]
    at = np.meshgrid(rows, columns, indexing="ij")
    assert interpolate(knots, values, at) == pytest.approx(1 + 2 * at[0] + 5 * at[1])


def test_spline_fills_gaps_and_smooths() -> None:
    knots = (np.arange(10.0),)
    grid = np.array([[0.0], [1.0], [2.0], [7.0], [8.0], [9.0]])
    found = fit_spline(knots, grid, np.full(6, 0.25))
    assert found == pytest.approx(np.full(10, 0.25), abs=1e-6)  # a constant stays one, across the gap
    twice = np.repeat(grid, 200, axis=0)
    steps = fit_spline(knots, twice, (twice[:, 0] > 5) * 1.0)
    assert steps[2] == pytest.approx(0, abs=0.01)
    assert steps[7] == pytest.approx(1, abs=0.01)
    assert 0 < steps[4] < steps[5] < 1


def test_near_keys_count_more() -> None:
    keys, curve = np.array([[1000.0, 1000.0], [8000.0, 8000.0]]), np.array([[0.1], [0.5]])
    surface = Surface(keys, (np.array([1.0]),), curve)
    between = surface.residual_at(np.array([[1000.0, 1000.0], [1500.0, 1500.0], [6000.0, 6000.0]]))[:, 0]
    assert between[0] == pytest.approx(0.1, abs=2e-3)
    assert 0.1 < between[1] < between[2] < 0.5


def test_equal_shapes_fall_together() -> None:
    shapes = np.array([[float(n)] for n in range(1, 4000)])
    folds = shape_folds(shapes, 4)
    assert (shape_folds(shapes[::-1], 4)[::-1] == folds).all()
    assert np.bincount(folds) == pytest.approx(np.full(4, 1000), rel=0.1)


# --- from profile to tables ---------------------------------------------------------------------


def test_recovers_the_device(profile: Path) -> None:
    found = collect([profile])
    held = held_out(found.rows)
    assert 0.1 < held.mean() < 0.4
    calibration = fit_calibration(found.kernels, found.rows.where(~held), SPLINES)
    errors = held_out_errors(calibration, found.kernels, found.rows.where(held))
    # 18 token counts are few; the constants alone cannot follow the wave.
    assert errors["linear"] < 0.06
    assert errors["iteration"]["median"] < 0.05
    assert errors["operators"]["attn_decode"]["calibrated"] < 0.05
    assert errors["operators"]["attn_prefill"]["calibrated"] < 0.05
    assert set(calibration.models) == {"llama-3-8b", "qwen3-8b"}


def test_predictors_agree_where_it_is_easy(profile: Path) -> None:
    found = collect([profile])
    rows = found.rows.where(np.isin(found.rows.words["operator"], GROUPS["matrix"].operators))
    measured = rows.numbers["median_ms"] / 1000
    for name in ("spline", "forest", "boosting"):
        surface = fit_surface("matrix", found.kernels, rows, name)
        assert surface.predictor == name
        seconds = predict("matrix", surface, found.kernels, rows)
        assert np.mean(np.abs(seconds / measured - 1)) < 0.1, name


def test_command_line_and_back_again(
    profile: Path, tmp_path: Path, build: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.json"
    assert main(["calibrate", str(profile), "--out", str(out), "--source", "made up", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "h200: mean absolute error on held-out shapes" in shown
    assert "linear operators, held-out shapes" in shown
    assert "left out of the fit" in shown
    assert out.stat().st_size < 100_000
    calibration = load_calibration(out)
    assert calibration.source == "made up"
    again = tmp_path / "again.json"
    save_calibration(calibration, again)
    assert again.read_bytes() == out.read_bytes()
    # The tables of a scenario follow it: this device is slower than the roofline.
    device = get_device("h200")
    kernels = kernels_for(device, default_node(device), path=str(out))
    tokens = np.array([64.0, 512.0, 2048.0])
    expected = [float(bare().matrix_product(np.array([m]), 4096, 6144)[0]) * wave(m) for m in tokens]
    assert kernels.matrix_product(tokens, 4096, 6144) == pytest.approx(expected, rel=0.04)
    slow = build(device="h200", path=str(out))
    assert "made up" in slow.source  # type: ignore[attr-defined]
    assert slow.stage_seconds([], [(0, 512)]) > 1.1 * build(device="b200").stage_seconds([], [(0, 512)])  # type: ignore[attr-defined]
    assert main(["calibrate", str(profile), "--out", str(out), "--quiet", "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert {"operators", "linear", "iteration", "left_out"} <= set(errors)


def test_graphs_go_before_eager_launches(tmp_path: Path) -> None:
    rows = made_up(("llama-3-8b",))
    eager = [{**row, "graph": 0, "median_ms": float(str(row["median_ms"])) * 3} for row in rows]
    found = collect([write(tmp_path / "both.csv", rows + eager)])
    assert len(found.rows) == len(rows)
    assert (found.rows.numbers["graph"] == 1).all()


def test_fp8_uses_the_same_surface() -> None:
    device = get_device("h100")
    tokens = np.arange(1.0, 2049.0, 64)
    bf16 = kernels_for(device, default_node(device), 2.0)
    fp8, int4 = (kernels_for(device, default_node(device), width) for width in (1.0, 0.5))
    for wide, narrow in ((bf16, fp8), (bf16, int4)):
        times = [one.matrix_product(tokens, 8192, 10240) for one in (wide, narrow)]
        assert (times[1] <= times[0] * 1.001).all()
        assert times[1][0] < 0.8 * times[0][0]


def test_a_profile_of_few_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row of an operator can be held out or fitted, not both: no error is claimed, none is raised."""
    rows = [row for row in made_up(("llama-3-8b",)) if row["operator"] in ("attn_decode", "attn_prefill")]
    for few in (rows[:1], rows[-1:], rows[3:6]):
        profile = write(tmp_path / "few.csv", few)
        assert main(["calibrate", str(profile), "--out", str(tmp_path / "few.json"), "--quiet"]) == 0
        assert "linear operators, held-out shapes: - mean" in capsys.readouterr().out
        assert load_calibration(tmp_path / "few.json").device == "h200"


def test_from_profile_to_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `trimtab profile` writes is what `trimtab calibrate` reads, here of a CPU and a tiny model."""
    pytest.importorskip("torch")
    device, profile, out = tmp_path / "cpu.yaml", tmp_path / "tiny.csv", tmp_path / "tiny.json"
    sheet = "memory_gib: 8\ntflops: 0.1\nhbm_tb_s: 0.02\nlink_gb_s: 10\nunits: 2\nefficiency: pcie\n"
    device.write_text(sheet)
    assert main(["profile", "--cpu", "--quick", "--fresh", "--out", str(profile), "--quiet"]) == 0
    assert main(["calibrate", str(profile), "--device", str(device), "--out", str(out), "--quiet"]) == 0
    assert "cpu: mean absolute error on held-out shapes" in capsys.readouterr().out
    assert {"matrix", "decode", "prefill", "kv_save"} <= set(load_calibration(out).surfaces)


# --- bad input ----------------------------------------------------------------------------------


def refused(path: Path, *more: Path) -> str:
    with pytest.raises(TrimtabError) as error:
        collect([path, *more])
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_column(tmp_path: Path) -> None:
    names = tuple("median_msec" if name == "median_ms" else name for name in COLUMNS)
    message = refused(write(tmp_path / "p.csv", made_up(), names))
    assert "line 1: no column 'median_ms'. Did you mean 'median_msec'?" in message


@pytest.mark.parametrize(("factor", "unit"), [(1e-3, "seconds"), (1e3, "microseconds")])
def test_wrong_unit(tmp_path: Path, factor: float, unit: str) -> None:
    rows = [{**row, "median_ms": float(str(row["median_ms"])) * factor} for row in made_up()]
    message = refused(write(tmp_path / "p.csv", rows))
    assert f"they seem to be in {unit}; median_ms must be in milliseconds" in message


def test_heads_that_do_not_divide(tmp_path: Path) -> None:
    rows = [{**row, "tp": 3} for row in made_up(("llama-3-8b",))]
    assert "tp=3 does not divide the 32 heads of llama-3-8b" in refused(write(tmp_path / "p.csv", rows))


def test_empty_profile(tmp_path: Path) -> None:
    assert "an empty profile: no rows below the header" in refused(write(tmp_path / "p.csv", []))
    (tmp_path / "folder").mkdir()
    assert "an empty profile: no rows in" in refused(tmp_path / "folder")


def test_bad_cells(tmp_path: Path) -> None:
    good = made_up(("llama-3-8b",))
    for change, message in (
        ({"operator": "attn_pre_prj"}, "line 2: unknown operator 'attn_pre_prj'"),
        ({"median_ms": 0}, "line 2: median_ms must be positive, got 0"),
        ({"median_ms": "fast"}, "line 2, column 'median_ms': 'fast' is not a finite number"),
        ({"k": ""}, "line 2: operator 'attn_pre_proj' needs column 'k'"),
        ({"device": "h20"}, "unknown device 'h20'"),
    ):
        path = write(tmp_path / "p.csv", [{**good[0], **change}, *good[1:]])
        assert message in refused(path)


def test_several_devices(tmp_path: Path) -> None:
    rows = made_up(("llama-3-8b",))
    both = write(tmp_path / "p.csv", rows + [{**row, "device": "h100"} for row in rows])
    assert "profiles of 2 devices (h100, h200); choose one: --device" in refused(both)
    assert len(collect([both], "h100").rows) == len(rows)


def test_surrogates_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "attention_SURROGATE.csv"
    path.write_text("a,b\n1,2\n")
    assert main(["calibrate", str(path), "--out", str(tmp_path / "x.json")]) == 2
    assert not (tmp_path / "x.json").exists()


def test_no_calibration(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(TrimtabError, match="is not a calibration; make one with: trimtab calibrate"):
        load_calibration(path)
    with pytest.raises(TrimtabError, match="cannot read calibration"):
        load_calibration(tmp_path / "y.json")


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.floats(1, 60_000),
    inputs=st.floats(64, 40_000),
    outputs=st.floats(64, 200_000),
    grow=st.sampled_from([(1.01, 1, 1), (1, 1.05, 1), (1, 1, 1.05), (3, 2, 2)]),
)
@pytest.mark.parametrize("name", ["a100", "h100", "a40"])
def test_a_larger_product_is_never_faster(
    name: str, tokens: float, inputs: float, outputs: float, grow: tuple[float, float, float]
) -> None:
    lattice = LATTICES.setdefault(name, shipped_lattice(name))
    small = lattice.seconds((inputs, outputs), (np.array([tokens]),))[0]
    large = lattice.seconds((inputs * grow[1], outputs * grow[2]), (np.array([tokens * grow[0]]),))[0]
    assert large >= small * (1 - 1e-12)


LATTICES: dict[str, Lattice] = {}


def shipped_lattice(name: str) -> Lattice:
    device = get_device(name)
    lattice = kernels_for(device, default_node(device)).lattice("matrix")
    assert lattice is not None
    return lattice
