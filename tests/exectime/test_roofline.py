"""The roofline: against measured kernels, and properties that any machine has."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.exectime import ExecTables, tokens_per_second
from trimtab.exectime.kernels import Kernels, get_efficiency
from trimtab.exectime.roofline import decode_attention, prefill_attention, token_operators
from trimtab.hardware import Model, default_node, get_device, get_model, get_node, list_devices, list_models

Build = Callable[..., ExecTables]
MATRIX = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")


def kernels_of(device: str, model: Model) -> Kernels:
    found = get_device(device)
    return Kernels(found, default_node(found), get_efficiency(found.efficiency), model.dtype_bytes)


def profile_errors(folder: Path, device: str) -> dict[str, list[float]]:
    """Relative errors by operator, and of their sum (``layer``), over all models, TPs and token counts."""
    errors: dict[str, list[float]] = defaultdict(list)
    for path in sorted((folder / device).glob("*/*/mlp.csv")):
        model = get_model(f"{path.parts[-3]}/{path.parts[-2]}")
        with path.open() as file:
            rows = list(csv.DictReader(file))
        for tp in (1, 2, 4, 8):
            mine = [row for row in rows if int(row["num_tensor_parallel_workers"]) == tp]
            if not mine:
                continue
            tokens = np.array([float(row["num_tokens"]) for row in mine])
            times = token_operators(kernels_of(device, model), model, tokens, tp)
            times.pop("all_reduce", None)
            measured = {
                name: np.array([float(row[f"time_stats.{name}.median"]) for row in mine]) / 1000
                for name in times
            }
            for name, seconds in times.items():
                errors[name].extend(np.abs(seconds / measured[name] - 1))
            errors["layer"].extend(np.abs(sum(times.values()) / sum(measured.values()) - 1))
    return errors


@pytest.mark.parametrize(
    ("device", "matrix_bound", "layer_bound"),
    [("a100", 0.07, 0.07), ("h100", 0.10, 0.08), ("a40", 0.08, 0.06)],
)
def test_error_against_measured_kernels(
    vidur_data: Path, device: str, matrix_bound: float, layer_bound: float, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = profile_errors(vidur_data / "profiling" / "compute", device)
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    with capsys.disabled():
        shown = ", ".join(f"{name} {mean:.1%}" for name, mean in means.items())
        print(f"\n  roofline on {device}, {len(errors['layer'])} rows, mean absolute error: {shown}")
    assert np.mean([value for name in MATRIX for value in errors[name]]) < matrix_bound
    assert means["layer"] < layer_bound
    assert max(means.values()) < 0.21  # the short element-wise kernels


@pytest.mark.parametrize(
    ("node", "tp", "bound"),
    [
        ("a100_dgx", 2, 0.15),
        ("a100_dgx", 4, 0.15),
        ("a100_dgx", 8, 0.15),
        ("h100_dgx", 4, 0.15),
        ("h100_dgx", 8, 0.15),
        ("a100_pairwise_nvlink", 4, 0.15),
        ("h100_pairwise_nvlink", 4, 0.15),
    ],
)
def test_all_reduce_against_measured(
    vidur_data: Path, node: str, tp: int, bound: float, capsys: pytest.CaptureFixture[str]
) -> None:
    with (vidur_data / "profiling" / "network" / node / "all_reduce.csv").open() as file:
        rows = [
            (float(row["size"]), float(row["time_stats.all_reduce.median"]) / 1000)
            for row in csv.DictReader(file)
            if int(row["num_workers"]) == tp == int(row["devices_per_node"])
        ]
    size, measured = np.array(rows).T
    device = get_device(get_node(node).device)
    kernels = Kernels(device, get_node(node), get_efficiency(device.efficiency))
    error = float(np.mean(np.abs(kernels.all_reduce(size, tp) / measured - 1)))
    with capsys.disabled():
        print(f"\n  all-reduce on {node}, tp={tp}, {len(rows)} rows: mean absolute error {error:.1%}")
    assert error < bound


def test_public_figures_for_llama_3_8b(build: Build) -> None:
    """One sequence decodes at about 90 tokens/s on A100 and 150 on H100 (vLLM, bf16, CUDA graphs)."""
    assert build(device="a100").stage_seconds([1000], []) == pytest.approx(0.011, rel=0.15)
    assert build(device="h100").stage_seconds([1000], []) == pytest.approx(0.0067, rel=0.15)
    # Prompts of 2,048 tokens: 10,000 to 20,000 tokens/s on A100.
    assert 0.1 < build(device="a100", chunk=2048).stage_seconds([], [(0, 2048)]) < 0.2


def test_memory_bound_is_never_beaten(build: Build) -> None:
    """No faster than reading the weights and the KV cache once, no faster than the peak FLOPs."""
    for name in ("llama-3-8b", "qwen2.5-32b", "mixtral-8x7b"):
        model = get_model(name)
        for device in ("a100", "h100", "b200"):
            found, tables = get_device(device), build(name, device)
            layers = model.active_parameters - model.embedding_parameters
            kv = 4096 * model.kv_bytes_per_token()
            assert tables.stage_seconds([4096], []) > (2 * layers + kv) / found.bandwidth
            assert tables.stage_seconds([], [(0, 512)]) > 2 * 512 * layers / found.peak_flops


def test_experts_touched() -> None:
    """A token reads the weights of 8 experts, many tokens those of all 128."""
    model, one, many = get_model("qwen3-30b-a3b"), np.array([1.0]), np.array([4096.0])
    kernels = kernels_of("h100", model)
    expert_bytes = 3 * 2048 * 768 * 2 / (kernels.device.bandwidth * kernels.efficiency.memory)
    for tokens, experts in ((one, 8), (many, 128)):
        times = token_operators(kernels, model, tokens, 1)
        seconds = float((times["mlp_up_proj"] + times["mlp_down_proj"])[0])
        assert seconds >= experts * expert_bytes
        if experts == 8:
            assert seconds == pytest.approx(experts * expert_bytes + 12e-6, rel=0.15)


@pytest.fixture(scope="module")
def wide(build: Build) -> ExecTables:
    return build(batch=256, chunk=2048, context=32768)


@settings(max_examples=60, deadline=None)
@given(
    decodes=st.lists(st.integers(0, 20_000), max_size=60),
    prefills=st.lists(st.tuples(st.integers(0, 8_000), st.integers(1, 2_000)), max_size=4),
    more=st.integers(1, 500),
)
def test_more_work_takes_longer(
    wide: ExecTables, decodes: list[int], prefills: list[tuple[int, int]], more: int
) -> None:
    before = wide.stage_seconds(decodes, prefills)
    assert wide.stage_seconds([*decodes, more], prefills) > before
    assert wide.stage_seconds(decodes, [*prefills, (0, more)]) > before
    if decodes:
        assert wide.stage_seconds([decodes[0] + more, *decodes[1:]], prefills) >= before
    if prefills:
        # Linear interpolation between chunk columns may take a little back.
        kv, chunk = prefills[0]
        assert wide.stage_seconds(decodes, [(kv + more, chunk), *prefills[1:]]) >= before * 0.999


def test_interpolated_attention_is_close_to_the_kernels(wide: ExecTables) -> None:
    model = get_model("llama-3-8b")
    kernels = kernels_of("a100", model)
    for past, chunk in ((0, 100), (0, 2048), (777, 333), (20_001, 512)):
        exact = 32 * prefill_attention(kernels, model, np.array([float(past)]), np.array([float(chunk)]), 1)
        assert wide._prefill([(past, chunk)]) == pytest.approx(float(exact[0]), rel=0.02)
    for count, kv in ((1, 5), (64, 1000), (200, 7777)):
        exact = 32 * decode_attention(kernels, model, np.array([float(count)]), np.array([float(kv)]), 1)
        assert wide._decode(count, kv) == pytest.approx(float(exact[0]), rel=0.02)


def test_splitting_a_model(build: Build) -> None:
    whole, halves = build("llama-3-70b", "h100", tp=1), build("llama-3-70b", "h100", tp=1, pp=2)
    batch = [1000] * 64
    # Two stages take as long as one whole, plus the send; a stage carries half the LM head.
    both = halves.stage_seconds(batch, [], False) + halves.stage_seconds(batch, [], True)
    assert both - whole.stage_seconds(batch, []) == pytest.approx(float(halves.send_s[64]), rel=1e-6)
    # Tensor parallelism helps, and less than ideally.
    times = [build("llama-3-70b", "h100", tp=tp).stage_seconds(batch, []) for tp in (1, 2, 4, 8)]
    for wide, narrow in zip(times[1:], times, strict=False):
        assert narrow / 2 < wide < narrow


def test_sliding_windows_cap_attention() -> None:
    model = get_model("llama-3-8b")
    windowed = replace(model, sliding_window=1024, sliding_layers=32)
    kernels, count, kv = kernels_of("a100", model), np.array([64.0]), np.array([8192.0])
    capped = decode_attention(kernels, windowed, count, kv, 1)
    assert capped == pytest.approx(decode_attention(kernels, model, count, np.array([1024.0]), 1))
    half = replace(windowed, sliding_layers=16)
    full = decode_attention(kernels, model, count, kv, 1)
    assert decode_attention(kernels, half, count, kv, 1) == pytest.approx((capped + full) / 2)
    long, short = np.array([8192.0]), np.array([512.0])
    assert prefill_attention(kernels, windowed, long, short, 1) < prefill_attention(
        kernels, model, long, short, 1
    )


def test_every_model_on_every_device_builds_fast_and_finite(build: Build) -> None:
    started = time.process_time()
    for device in list_devices():
        for name in list_models():
            tables = build(name, device, batch=64, chunk=1024, context=32768)
            for array in (tables.token_s, tables.decode_s, tables.prefill_s, tables.cpu_s, tables.send_s):
                assert np.isfinite(array).all()
                assert (array >= 0).all()
            assert tables.prefill_s.shape[0] <= 258
            assert tables.prefill_s.shape[1] <= 514
    spent = time.process_time() - started
    assert spent / (len(list_devices()) * len(list_models())) < 0.3


def test_faster_hardware_is_faster(build: Build) -> None:
    rates = {name: tokens_per_second(build(device=name)) for name in list_devices()}
    order = ["a10g", "a40", "l40s", "a100-80", "h100", "h200", "b200"]
    assert [rates[name] for name in order] == sorted(rates[name] for name in order)
    # Two stages: each has half the work, so a pipelined replica is nearly twice as fast.
    ratio = tokens_per_second(build(pp=2), pp=2) / rates["a100-80"]
    assert 1.8 < ratio < 2.0


def test_host_overhead_is_added_to_every_stage(build: Build) -> None:
    plain, slow = build(), build(cpu_overhead_ms=3.0)
    assert slow.stage_seconds([10], []) - plain.stage_seconds([10], []) == pytest.approx(0.003)
