"""KV planning: against the blocks Vidur planned in its reference runs, and production figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TrimtabError
from trimtab.hardware import (
    attention_flops_per_pair,
    get_device,
    get_model,
    params_per_device,
    plan_kv,
    vidur_num_blocks,
)

SHARED = Path(os.environ.get("TRIMTAB_SHARED", Path(__file__).parents[3] / "shared"))
CASES = sorted((SHARED / "data/vidur/cases").glob("*/summary.json"))


@pytest.mark.skipif(not CASES, reason="reference runs are not there; set TRIMTAB_SHARED")
def test_vidur_blocks_of_every_reference_run() -> None:
    checked = 0
    for path in CASES:
        summary = json.loads(path.read_text())
        config = json.loads((path.parent / "config.json").read_text())
        replica = config["cluster_config"]["replica_config"]
        scheduler = config["cluster_config"]["replica_scheduler_config"]
        if path.parent.name.startswith("d_"):
            continue  # these runs force 1500 blocks
        blocks, batch = vidur_num_blocks(
            get_model(replica["model_name"]),
            get_device(replica["device"]),
            replica["tensor_parallel_size"],
            replica["num_pipeline_stages"],
            scheduler["block_size"],
            replica["memory_margin_fraction"],
            config["request_generator_config"]["max_tokens"],
            scheduler["batch_size_cap"],
        )
        assert (blocks, batch) == (summary["num_blocks"], summary["max_batch_size"]), path.parent.name
        checked += 1
    assert checked >= 7


def test_plan_is_near_what_vllm_logs() -> None:
    # vLLM on one A100-80GB, Llama-3-8B, utilisation 0.9: about 27,000 to 28,500 blocks of 16 tokens.
    plan = plan_kv(get_model("llama-3-8b"), get_device("a100"))
    assert 27_000 < plan.num_blocks < 28_500
    assert plan.weights_gib == pytest.approx(8.03e9 * 2 / 2**30, rel=0.01)
    assert plan.max_tokens_cached == plan.num_blocks * 16
    assert plan.kv_gib == pytest.approx(plan.max_tokens_cached * 131072 / 2**30)


def test_model_that_does_not_fit_names_the_smallest_tp() -> None:
    with pytest.raises(
        TrimtabError, match=r"needs 133\.\d GiB per device, available 72\.0 .*tp=2 would fit"
    ) as e:
        plan_kv(get_model("llama-3-70b"), get_device("a100"))
    assert "\n" not in str(e.value)
    plan_kv(get_model("llama-3-70b"), get_device("a100"), tp=2)
    with pytest.raises(TrimtabError, match="no tp up to 8 fits"):
        plan_kv(get_model("llama-3.1-405b"), get_device("a100"), tp=8)
    with pytest.raises(TrimtabError, match="tp=2 would fit"):
        vidur_num_blocks(get_model("llama-3-70b"), get_device("a100"), 1, 1, 16, 0.1, 4096)


def test_request_longer_than_the_cache() -> None:
    model, device = get_model("llama-3-8b"), get_device("a10g")
    longest = plan_kv(model, device).max_tokens_cached
    assert plan_kv(model, device, max_tokens=longest).max_tokens_cached == longest
    with pytest.raises(TrimtabError, match=f"one request of {longest + 1} tokens does not fit"):
        plan_kv(model, device, max_tokens=longest + 1)


def test_deepseek_in_fp8_fits_one_h200_node() -> None:
    assert plan_kv(get_model("deepseek-v3"), get_device("h200"), tp=8).weights_gib == pytest.approx(79, abs=2)
    with pytest.raises(TrimtabError):
        plan_kv(get_model("deepseek-v3"), get_device("h100"), tp=8)


@given(
    margin=st.floats(0, 0.5),
    more=st.floats(0.001, 0.2),
    tp=st.sampled_from([1, 2, 4]),
    pp=st.sampled_from([1, 2]),
    block=st.sampled_from([1, 8, 16, 32]),
)
def test_more_margin_less_kv_and_more_devices_more_kv(
    margin: float, more: float, tp: int, pp: int, block: int
) -> None:
    model, device = get_model("llama-3-8b"), get_device("h100")
    plan = plan_kv(model, device, tp, pp, block, margin)
    assert plan_kv(model, device, tp, pp, block, margin + more).num_blocks < plan.num_blocks
    assert plan_kv(model, device, tp * 2, pp, block, margin).num_blocks > 2 * plan.num_blocks
    used = plan.weights_gib + plan.activation_gib + plan.kv_gib
    assert used <= 80 * (1 - margin) + 1e-9
    assert used + block * plan.bytes_per_token / 2**30 > 80 * (1 - margin) - 1e-9


def test_facts_for_mfu() -> None:
    model = get_model("llama-3-8b")
    # By hand: q and o 4096 x 4096, k and v 4096 x 1024 each, three matrices 4096 x 14336; 32 layers.
    per_layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert params_per_device(model) == 32 * per_layer
    assert params_per_device(model, tp=2, pp=2) == 32 * per_layer / 4
    # With more devices than KV heads, each device keeps one whole KV head (Vidur: ceil).
    seventy = get_model("llama-2-70b")
    kv_replicated = 80 * 2 * 8192 * 128 * (1 - 8 / 16)
    assert params_per_device(seventy, tp=16) == pytest.approx(params_per_device(seventy) / 16 + kv_replicated)
    assert attention_flops_per_pair(model) == 4 * 32 * 32 * 128
    assert attention_flops_per_pair(model, tp=4, pp=2) == 4 * 16 * 8 * 128
    assert params_per_device(get_model("mixtral-8x7b")) == pytest.approx(12.6e9, rel=0.02)
    assert params_per_device(get_model("mixtral-8x7b"), active=False) == pytest.approx(46.4e9, rel=0.02)
