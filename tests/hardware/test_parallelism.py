"""Devices, nodes, and which splits of a model over them are possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import TrimtabError
from trimtab.hardware import (
    allowed_tensor_parallel,
    default_node,
    get_device,
    get_model,
    get_node,
    list_devices,
    list_models,
    list_nodes,
    node_for,
    validate_parallelism,
)


def test_every_device_has_sources_a_node_and_efficiencies() -> None:
    from trimtab.exectime.kernels import get_efficiency

    assert {"a100-80", "h100", "a40", "l40s", "a10g", "h200", "b200", "mi300x"} == set(list_devices())
    for name in list_devices():
        device = get_device(name)
        assert device.source
        assert device.price_source
        assert default_node(device).device == name
        assert 0 < get_efficiency(device.efficiency).compute <= 1


def test_every_node_holds_a_known_device() -> None:
    vidur = {"a40_pairwise_nvlink": 8, "a100_pairwise_nvlink": 4, "h100_pairwise_nvlink": 4}
    vidur |= {"a100_dgx": 8, "h100_dgx": 8}
    assert {name: get_node(name).devices for name in vidur} == vidur
    for name in list_nodes():
        node = get_node(name)
        assert node.source
        assert get_device(node.device).name == node.device
        assert node.devices % node.link_group == 0


def test_names() -> None:
    assert get_device("A100") is get_device("a100-80gb") is get_device("a100-80")
    assert get_node("H100-DGX") is get_node("h100_dgx")
    with pytest.raises(TrimtabError, match=r"unknown device 'h10'.*Did you mean 'h100'"):
        get_device("h10")
    with pytest.raises(TrimtabError, match=r"unknown node 'a100_dgz'.*Did you mean 'a100_dgx'"):
        get_node("a100_dgz")


def test_node_of_another_device_is_refused() -> None:
    assert node_for(get_device("a100"), None).name == "a100_dgx"
    assert node_for(get_device("a100"), "a100_pairwise_nvlink").devices == 4
    with pytest.raises(
        TrimtabError, match="'h100_dgx' holds h100, not a100-80; allowed: a100_dgx, a100_pair"
    ):
        node_for(get_device("a100"), "h100_dgx")


@pytest.mark.parametrize(
    ("model", "node", "expected"),
    [
        ("llama-3-8b", "a100_dgx", [1, 2, 4, 8]),
        ("llama-3-8b", "a100_pairwise_nvlink", [1, 2, 4]),
        ("llama-2-7b", "a40_pairwise_nvlink", [1, 2, 4, 8]),
        ("qwen2.5-7b", "h100_dgx", [1, 2, 4]),  # 28 heads
        ("phi-2", "h100_dgx", [1]),
    ],
)
def test_tensor_parallel_degrees(model: str, node: str, expected: list[int]) -> None:
    assert allowed_tensor_parallel(get_model(model), get_node(node)) == expected
    for tp in range(17):
        if tp in expected:
            validate_parallelism(get_model(model), tp, 1, get_node(node))
        else:
            with pytest.raises(TrimtabError, match=f"^tp={tp} is not possible for {model}.*allowed: 1"):
                validate_parallelism(get_model(model), tp, 1, get_node(node))


def test_the_table_of_supported_models() -> None:
    """Any combination of TP and PP, for example Llama-2-70B on TP2-PP2 on a pairwise node."""
    validate_parallelism(get_model("llama-2-70b"), 2, 2, get_node("a100_pairwise_nvlink"))
    for name in list_models():
        model = get_model(name)
        for pp in (p for p in range(1, 9) if model.layers % p == 0):
            validate_parallelism(model, 1, pp, get_node("a100_dgx"))


def test_refusals_say_why() -> None:
    llama, dgx, pairs = get_model("llama-3-8b"), get_node("a100_dgx"), get_node("a100_pairwise_nvlink")
    reasons = [
        (get_model("phi-2"), 2, 1, dgx, "does not support tensor parallelism; allowed: 1"),
        (llama, 8, 1, pairs, "the node has 4 devices"),
        (llama, 3, 1, dgx, "must be 1, 2, 4 or 8"),
        (get_model("qwen2.5-7b"), 8, 1, dgx, "does not divide the model's 28 attention heads"),
        (llama, 1, 3, dgx, "pp=3 does not divide the 32 layers of llama-3-8b; allowed: 1, 2, 4, 8, 16, 32"),
        (llama, 1, 0, dgx, "pp=0 does not divide"),
        (get_model("qwen3-8b"), 4, 3, dgx, "12 devices neither fit into one a100_dgx node"),
    ]
    for model, tp, pp, node, message in reasons:
        with pytest.raises(TrimtabError) as error:
            validate_parallelism(model, tp, pp, node)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    validate_parallelism(llama, 8, 2, dgx)  # two whole nodes


def test_a_device_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(
        "memory_gib: 96\ntflops: 500\nhbm_tb_s: 2.4\nlink_gb_s: 400\nunits: 100\nefficiency: h100\n"
    )
    device = get_device(str(path))
    assert (device.name, device.memory_gib, device.price) == ("new", 96, 0.0)
    node = default_node(device)
    assert (node.device, node.devices, node.link_group, node.cross_gb_s) == ("new", 8, 8, 400)
    assert node_for(device, None) == node
    for text, message in (
        ("tflops: 3\n", "missing memory_gib, hbm_tb_s, link_gb_s, units, efficiency"),
        (path.read_text().replace("96", "-1"), "memory_gib must be a positive number, got -1"),
        (path.read_text().replace("tflops", "teraflops"), "unknown device key in .*'teraflops'"),
        ("- 1\n", "must hold a mapping"),
    ):
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        with pytest.raises(TrimtabError, match=message):
            get_device(str(bad))
    with pytest.raises(TrimtabError, match="cannot read device"):
        get_device(str(tmp_path / "none.yaml"))
