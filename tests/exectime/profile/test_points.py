"""What is measured: shards, grids, FLOPs and bytes by hand, devices by their drivers' names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.exectime.profile.plan import estimate_seconds, runs_and_samples
from trimtab.exectime.profile.points import (
    ORDER,
    Point,
    collective_points,
    cpu_grid,
    decode_point,
    full_grid,
    geometric,
    points,
    prefill_point,
    quick_grid,
    rows_by_expert,
)
from trimtab.exectime.profile.run import known_device, kv_capacity, slug
from trimtab.exectime.profile.shapes import TINY, shard_of
from trimtab.hardware import get_device, get_model

LLAMA = shard_of(get_model("llama-3-8b"), 1)
QWEN = shard_of(get_model("qwen3-30b-a3b"), 1)


def found(operator: str, tokens: int, shard=LLAMA, grid=None) -> Point:
    grid = grid or full_grid()
    (point,) = [
        point
        for point in points(shard, grid, 1_000_000, graphs=True)
        if point.operator == operator and point.tokens == tokens and point.graph
    ]
    return point


def test_a_shard_holds_its_part() -> None:
    shard = shard_of(get_model("llama-3-70b"), 8)
    assert (shard.heads, shard.kv_heads, shard.mlp_widths, shard.vocab) == (8, 1, (3584,), 16032)
    assert shard_of(get_model("llama-3-70b"), 4).fused_heads == 16 + 2 * 2
    assert QWEN.mlp_widths == ()
    assert (QWEN.experts, QWEN.expert_width) == (128, 768)


@pytest.mark.parametrize(
    ("model", "tp", "message"),
    [
        ("llama-3-8b", 3, "tp=3 is not possible for llama-3-8b: tensor parallelism must be 1, 2, 4 or 8"),
        ("llama-3-8b", 0, "tp=0 is not possible"),
        ("phi-2", 2, "phi-2: the model does not support tensor parallelism; allowed: 1"),
        ("deepseek-v3", 1, "deepseek-v3 has multi-head latent attention"),
    ],
)
def test_what_cannot_be_split_is_refused(model: str, tp: int, message: str) -> None:
    with pytest.raises(TrimtabError) as caught:
        shard_of(get_model(model), tp)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(TrimtabError) as caught:
        shard_of(replace(TINY, heads=6, kv_heads=6), 4)
    assert "does not divide the attention heads, 6; allowed: 1, 2" in str(caught.value)


def test_matrix_product_by_hand() -> None:
    point = found("attn_pre_proj", 16)
    assert (point.m, point.k, point.n) == (16, 4096, 6144)
    assert point.flops == 2 * 16 * 4096 * 6144
    assert point.bytes == 2 * (4096 * 6144 + 16 * 4096 + 16 * 6144)
    up = found("mlp_up_proj", 16)
    assert (up.k, up.n) == (4096, 2 * 14336)
    head = found("lm_head", 16)
    assert (head.batch, head.k, head.n) == (16, 4096, 128256)


def test_element_wise_by_hand() -> None:
    assert found("add", 8).bytes == 2 * 3 * 8 * 4096
    assert found("mlp_act", 8).bytes == 2 * 3 * 8 * 14336
    assert found("attn_rope", 8).bytes == 2 * 2 * 8 * (32 + 8) * 128
    assert found("attn_kv_cache_save", 8).bytes == 2 * 2 * 8 * 2 * 8 * 128
    assert found("input_layernorm", 8).bytes == 2 * 2 * 8 * 4096
    assert found("sampling", 8).bytes == 4 * 8 * 128256


def test_attention_by_hand() -> None:
    decode = decode_point(LLAMA, 2, 3)
    # Two sequences, three cached tokens and the new one: 2 x 4 pairs, QK' and AV in 32 heads of 128.
    assert decode.flops == 2 * 4 * (2 + 2) * 32 * 128
    assert decode.bytes == 2 * 128 * 2 * 8 * 8  # keys and values of eight KV heads
    prefill = prefill_point(LLAMA, past=3, chunk=2)
    assert prefill.flops == (2 * 3 + 2) * 4 * 32 * 128  # past, and half of the square of the chunk
    assert prefill.bytes == 2 * 128 * (2 * 8 * 5 + 2 * 32 * 2)


def test_experts_by_hand() -> None:
    one = found("moe_grouped", 1, QWEN)
    matrices = 3 * 2048 * 768
    assert (one.batch, one.m, one.k, one.n) == (8, 8, 2048, 768)
    assert one.flops == 2 * 8 * matrices
    assert one.bytes == 2 * (8 * matrices + 8 * (2048 + 2 * 768 + 2 * 768 + 768 + 768 + 2048))
    assert found("moe_grouped", 4096, QWEN).batch == 128


def test_what_is_counted_per_token_is_one_number() -> None:
    """Times are looked up by it, whatever the size of the batch."""
    listed = points(LLAMA, full_grid(), 1_000_000, graphs=True)
    for name in ("input_layernorm", "mlp_act", "attn_rope", "add", "attn_kv_cache_save", "sampling"):
        assert len({p.bytes / p.tokens for p in listed if p.operator == name}) == 1, name
    decodes = [p for p in listed if p.operator == "attn_decode"]
    assert len({p.bytes / (p.batch * (p.kv + 1)) for p in decodes}) == 1
    assert len({p.flops / (p.batch * (p.kv + 1)) for p in decodes}) == 1
    prefills = [p for p in listed if p.operator == "attn_prefill"]
    assert len({p.flops / (p.chunk * p.kv + p.chunk**2 / 2) for p in prefills}) == 1


def test_routing_only_grows() -> None:
    counts = [rows_by_expert(QWEN, tokens) for tokens in (1, 2, 3, 4, 5, 64, 100)]
    assert [int(rows.sum()) for rows in counts] == [8, 16, 24, 32, 40, 512, 800]
    touched = [int(np.count_nonzero(rows)) for rows in counts]
    assert touched[0] == 8
    assert touched[-1] == 128


def test_every_operator_is_in_the_grid() -> None:
    names = {point.operator for point in points(QWEN, full_grid(), 1_000_000, graphs=True)}
    names |= {
        point.operator for point in collective_points(shard_of(get_model("mixtral-8x7b"), 2), quick_grid(), 2)
    }
    names |= {point.operator for point in points(LLAMA, quick_grid(), 1_000_000, graphs=True)}
    assert names == set(ORDER)


def test_points_are_different_and_in_order() -> None:
    for grid in (full_grid(), quick_grid(), cpu_grid()):
        listed = points(QWEN, grid, 1_000_000, graphs=True)
        assert len(set(listed)) == len(listed)
        order = [ORDER.index(point.operator) for point in listed]
        assert order == sorted(order)
        assert any(not point.graph for point in listed)
        assert all(not point.graph for point in points(QWEN, grid, 1_000_000, graphs=False))


def test_grids_are_dense_where_the_engine_is() -> None:
    grid = full_grid()
    assert set(range(1, 65)) <= set(grid.tokens)
    assert max(np.diff([tokens for tokens in grid.tokens if tokens <= 512])) <= 8
    assert max(np.array(grid.tokens[1:]) / np.array(grid.tokens[:-1])) <= 2
    assert grid.tokens[-1] == 16384
    assert (grid.contexts[0], grid.contexts[-1]) == (128, 32768)
    assert (grid.chunks[0], grid.chunks[-1]) == (16, 8192)
    for name in ("tokens", "sequences", "contexts", "chunks", "pasts"):
        # A full profile goes on from a quick one.
        assert set(getattr(quick_grid(), name)) <= set(getattr(grid, name)), name
    assert geometric(1, 8, 1) == (1, 2, 4, 8)


def test_decodes_fit_the_memory() -> None:
    capacity = kv_capacity(get_model("llama-3-8b"), 1, get_device("h200").memory_bytes)
    assert 800_000 < capacity < 1_000_000
    decodes = [p for p in points(LLAMA, full_grid(), capacity, graphs=True) if p.operator == "attn_decode"]
    assert max(p.batch * p.kv for p in decodes) <= capacity
    assert max(p.batch * p.kv for p in decodes) > capacity / 2


def test_collectives_need_their_devices() -> None:
    shard = shard_of(get_model("mixtral-8x7b"), 4)
    assert collective_points(shard, quick_grid(), 1) == []
    assert {p.operator for p in collective_points(shard, quick_grid(), 2)} == {"send_recv"}
    all_of_them = collective_points(shard, quick_grid(), 4)
    assert {(p.operator, p.batch) for p in all_of_them} == {
        ("send_recv", 2),
        ("all_reduce", 4),
        ("all_to_all", 4),
    }
    assert all(p.m % 4 == 0 for p in all_of_them if p.operator == "all_to_all")


@pytest.mark.parametrize(("model", "tp"), [("llama-3-8b", 1), ("llama-3-70b", 4), ("qwen3-30b-a3b", 1)])
def test_a_profile_takes_minutes(model: str, tp: int) -> None:
    """By an estimate, on an H200: the grids are bounded by what people wait for."""
    device, shard = get_device("h200"), shard_of(get_model(model), tp)
    capacity = kv_capacity(get_model(model), tp, device.memory_bytes)

    def seconds(grid) -> float:
        listed = points(shard, grid, capacity, graphs=True)
        return estimate_seconds(listed, grid.repeats, device.peak_flops, device.bandwidth)

    assert seconds(full_grid()) < 240
    assert seconds(quick_grid()) < 30


def test_short_operators_run_often() -> None:
    assert runs_and_samples(0.002, 20) == (24, 20)
    assert runs_and_samples(0.1, 20) == (3, 20)
    assert runs_and_samples(50.0, 20) == (1, 5)
    assert runs_and_samples(0.0, 3) == (24, 3)


@pytest.mark.parametrize(
    ("name", "memory_gib", "units", "ours"),
    [
        ("NVIDIA H200", 139.8, 132, "h200"),
        ("NVIDIA H100 80GB HBM3", 79.1, 132, "h100"),
        ("NVIDIA A100-SXM4-80GB", 79.2, 108, "a100-80"),
        ("NVIDIA A40", 44.4, 84, "a40"),
        ("NVIDIA L40S", 44.4, 142, "l40s"),
        ("AMD Instinct MI300X", 191.98, 304, "mi300x"),
        ("NVIDIA H100 PCIe", 79.1, 114, None),  # another memory, fewer multiprocessors
        ("NVIDIA A100-SXM4-40GB", 39.4, 108, None),
        ("NVIDIA H100 NVL", 93.0, 132, None),
        ("Quadro RTX 6000", 23.6, 72, None),
    ],
)
def test_devices_by_their_drivers_names(name: str, memory_gib: float, units: int, ours: str | None) -> None:
    assert known_device(name, memory_gib * 2**30, units) == ours


def test_unknown_devices_keep_their_names() -> None:
    assert slug("NVIDIA GeForce RTX 4090") == "geforce-rtx-4090"
    assert slug("Tesla V100-SXM2-32GB") == "v100-sxm2-32gb"
