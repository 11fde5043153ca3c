"""Every calibration that ships: small, complete, and never faster for more work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.exectime import ExecTables
from trimtab.exectime.calibration import FOLDER, load_calibration, shipped_calibrations
from trimtab.exectime.kernels import kernels_for
from trimtab.exectime.roofline import build_roofline, token_operators
from trimtab.hardware import (
    Model,
    allowed_tensor_parallel,
    default_node,
    get_device,
    get_model,
    list_devices,
    list_models,
)

TABLES = ("token_s", "kv_write_s", "decode_s", "prefill_s", "send_s", "cpu_s")
CALIBRATED = [name for name in list_devices() if get_device(name).efficiency in shipped_calibrations()]


def tables(model: Model, device: str, tp: int = 1) -> ExecTables:
    found = get_device(device)
    kernels = kernels_for(found, default_node(found), model.dtype_bytes)
    return build_roofline(kernels, model, tp, 1, 64, 1024, 8192, np.zeros(65))


def test_what_ships() -> None:
    assert shipped_calibrations() == ["a100", "a40", "h100"]
    assert set(CALIBRATED) == {"a100-80", "a40", "h100", "h200"}
    for name in shipped_calibrations():
        path = FOLDER / f"{name}.json"
        assert path.stat().st_size < 100_000
        calibration = load_calibration(path)
        assert "microsoft/vidur" in calibration.source
        assert {"matrix", "norm", "act", "rope", "add", "send_recv"} <= set(calibration.surfaces)
        # Public attention profiles are surrogates: nothing may be fitted to them.
        assert not {"decode", "prefill"} & set(calibration.surfaces)
        assert "prefill_compute" not in calibration.efficiency


def test_errors_that_were_measured() -> None:
    """The targets of the accuracy page; a worse fit must not ship unnoticed."""
    for name in shipped_calibrations():
        errors = load_calibration(FOLDER / f"{name}.json").errors
        assert errors["linear"] <= 0.05, name
        assert errors["iteration"]["median"] <= 0.03, name
        assert errors["left_out"]["median"] <= 0.10, name
        for operator, entry in errors["operators"].items():
            assert entry["calibrated"] <= entry["constants"], (name, operator)


@pytest.mark.parametrize("device", CALIBRATED)
def test_more_tokens_and_longer_contexts_are_never_faster(device: str) -> None:
    for name in list_models():
        model = get_model(name)
        for tp in {1, max(allowed_tensor_parallel(model, default_node(get_device(device))))}:
            built = tables(model, device, tp)
            for table in TABLES:
                values = getattr(built, table)
                assert np.isfinite(values).all(), (name, tp, table)
                for axis in range(values.ndim):
                    assert (np.diff(values, axis=axis) >= 0).all(), (name, tp, table)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["llama-3-8b", "llama-3-70b", "qwen2.5-7b", "mixtral-8x7b", "phi-2"]),
    grow=st.sampled_from(["layers", "ffn", "vocab", "heads", "hidden", "kv_heads"]),
    factor=st.floats(1.01, 2.5),
)
@pytest.mark.parametrize("device", CALIBRATED)
def test_a_bigger_model_is_never_faster(device: str, name: str, grow: str, factor: float) -> None:
    model = get_model(name)
    size = getattr(model, grow)
    larger = {grow: max(size + 1, int(size * factor))}
    if grow == "heads":
        larger = {"heads": size * 2}
    if grow == "kv_heads":
        larger = {"kv_heads": model.heads}
    small, large = tables(model, device), tables(replace(model, **larger), device)
    for table in TABLES:
        assert (getattr(large, table) >= getattr(small, table) * (1 - 1e-12)).all(), (larger, table)


def test_more_devices_share_the_work() -> None:
    for name in ("a100-80", "h100"):
        by_degree = [tables(get_model("llama-2-70b"), name, tp).token_s[1024] for tp in (1, 2, 4, 8)]
        assert by_degree == sorted(by_degree, reverse=True)


def test_eager_iterations_wait_for_the_host(build: Callable[..., ExecTables]) -> None:
    """A layer takes no less than the launches of its kernels; long ones hide them."""
    model = replace(get_model("phi-2"), hidden=512, ffn=1024, heads=8, kv_heads=8, head_dim=64)
    device = get_device("b200")
    kernels = kernels_for(device, default_node(device))
    sizes = (model, 1, 1, 64, 4096, 4096, np.zeros(65))
    graphs, eager = (build_roofline(kernels, *sizes, eager=on) for on in (False, True))
    num_kernels = len(token_operators(kernels, model, np.ones(1), 1))
    expected = np.maximum(graphs.token_s, 32 * 5e-6 * num_kernels)
    assert eager.token_s[1:] == pytest.approx(expected[1:])
    assert eager.token_s[1] > graphs.token_s[1]
    assert eager.token_s[-1] == graphs.token_s[-1]
    assert build(batch=32, eager=True).token_s[1] >= build(batch=32).token_s[1]


def test_tables_are_cached_by_content(
    build: Callable[..., ExecTables], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    first = build(device="h100", batch=16)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("not from the cache")

    monkeypatch.setattr("trimtab.exectime.roofline.build_roofline", refuse)
    again = build(device="h100", batch=16)
    for table in TABLES:
        assert (getattr(first, table) == getattr(again, table)).all()
    assert (first.source, first.operators, first.kv_step) == (again.source, again.operators, again.kv_step)
    for change in ({"batch": 17}, {"cpu_overhead_ms": 1.0}, {"eager": True}, {"model": "llama-2-7b"}):
        with pytest.raises(AssertionError, match="not from the cache"):
            build(**{"device": "h100", "batch": 16, **change})


def test_a_damaged_cache_is_made_again(
    build: Callable[..., ExecTables], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    first = build(batch=16)
    (path,) = Path(str(tmp_path)).rglob("*.npz")
    path.write_bytes(path.read_bytes()[:1000])
    assert (build(batch=16).token_s == first.token_s).all()
    assert json.loads(json.dumps(first.operators)) == first.operators
