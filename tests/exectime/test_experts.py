"""Expert parallelism: what imbalance costs, in which regime, and that slices know nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import TrimtabError
from trimtab.exectime import ExecTables, build_tables, moe_layer_seconds
from trimtab.exectime.experts import ExpertParallel, expert_operators
from trimtab.exectime.kernels import Array, Kernels, get_efficiency, kernels_for
from trimtab.exectime.roofline import token_operators
from trimtab.fleet import build_fleets
from trimtab.hardware import (
    default_node,
    get_device,
    get_model,
    plan_kv,
    validate_expert_parallelism,
)
from trimtab.hardware.memory import activation_bytes, weight_bytes
from trimtab.scenario import ReplicaGroup, load_scenario
from trimtab.workload import build_requests

MIXTURES = [("mixtral-8x7b", 4), ("qwen3-30b-a3b", 8), ("deepseek-v3", 8)]
PRODUCTS = ("mlp_up_proj", "mlp_act", "mlp_down_proj")


def layer(
    model: str, ranks: int, imbalance: float, tokens: list[float], device: str = "h200"
) -> dict[str, Array]:
    found, mixture = get_device(device), get_model(model)
    kernels = kernels_for(found, default_node(found), mixture.dtype_bytes)
    return expert_operators(kernels, mixture, np.array(tokens), ranks, ExpertParallel(ranks, imbalance))


def total(times: dict[str, Array], names: tuple[str, ...] = ()) -> Array:
    return np.asarray(sum(times[name] for name in names or times))


def tables(model: str, tp: int, **keys: float) -> ExecTables:
    device = get_device("h200")
    group = ReplicaGroup(model=model, device="h200", tp=tp, **keys)  # type: ignore[arg-type]
    return build_tables(group, get_model(model), device, default_node(device), 256, 8192, 4096)


@pytest.mark.parametrize(("model", "ranks"), MIXTURES)
def test_from_the_loads_of_the_ranks(model: str, ranks: int) -> None:
    """Even loads, and the expected number of touched experts, give what the tables are made of."""
    mixture, device, tokens = get_model(model), get_device("h200"), 512.0
    rows = np.full(ranks, tokens * mixture.experts_per_token / ranks)
    share = mixture.experts_per_token / mixture.experts
    touched = np.full(ranks, mixture.experts / ranks * (1 - (1 - share) ** tokens))
    seconds = moe_layer_seconds(mixture, device, default_node(device), rows, touched)
    assert seconds == pytest.approx(float(total(layer(model, ranks, 1.0, [tokens]))[0]), rel=1e-12)
    # The slowest rank alone decides; which one it is does not matter. Batches of loads are welcome.
    skewed = rows * np.linspace(0.5, 1.5, ranks)
    many = np.stack([rows, skewed, skewed[::-1]])
    answers = moe_layer_seconds(mixture, device, default_node(device), many, np.tile(touched, (3, 1)))
    assert answers.shape == (3,)
    assert answers[0] == pytest.approx(float(seconds), rel=1e-12)
    assert answers[1] == pytest.approx(float(answers[2]), rel=1e-12)
    assert answers[1] > answers[0]


@settings(max_examples=60, deadline=None)
@given(
    mixture=st.sampled_from(MIXTURES),
    tokens=st.floats(1, 50_000),
    low=st.floats(1, 4),
    more=st.floats(0, 4),
)
def test_busier_ranks_are_never_faster(
    mixture: tuple[str, int], tokens: float, low: float, more: float
) -> None:
    model, ranks = mixture
    most = min(ranks, get_model(model).experts / get_model(model).experts_per_token)
    low, high = min(low, most), min(low + more, most)
    before, after = (total(layer(model, ranks, value, [tokens]))[0] for value in (low, high))
    assert after >= before
    assert after <= before * (high / low) * (1 + 1e-9)  # nothing grows faster than the load


@pytest.mark.parametrize(("model", "ranks"), MIXTURES)
def test_regimes(model: str, ranks: int) -> None:
    """Once every expert is touched, few tokens wait for weights, many for arithmetic."""
    # Enough tokens to touch all experts, too few to fill them; then plenty.
    few = 4.0 * get_model(model).experts / get_model(model).experts_per_token
    even = total(layer(model, ranks, 1.0, [few, 200_000.0]), PRODUCTS)
    skewed = total(layer(model, ranks, 2.0, [few, 200_000.0]), PRODUCTS)
    assert skewed[0] / even[0] < 1.15
    shared = 0.12 if get_model(model).shared_experts else 0.02  # every rank computes these on its own tokens
    assert 2.0 * (1 - shared) < skewed[1] / even[1] <= 2.0


def test_whole_iterations_grow_with_imbalance() -> None:
    even, skewed = (tables("qwen3-30b-a3b", 8, ep=8, moe_imbalance=value) for value in (1.0, 3.0))
    decode = [([1000] * 32, []), ([], [(0, 8192)])]
    ratios = [skewed.stage_seconds(*batch) / even.stage_seconds(*batch) for batch in decode]  # type: ignore[arg-type]
    assert 1.0 < ratios[0] < 1.25 < ratios[1] < 3.0


def test_one_rank_is_a_sliced_model() -> None:
    """With ep=1 nothing about experts is exchanged, and the operators are those of before."""
    device, model = get_device("h200"), get_model("mixtral-8x7b")
    kernels = Kernels(device, default_node(device), get_efficiency(device.efficiency))
    tokens = np.array([7.0, 300.0])
    sliced = token_operators(kernels, model, tokens, 4)
    assert "all_to_all" not in sliced
    assert sliced["all_reduce"] == pytest.approx(2 * kernels.all_reduce(tokens * 4096 * 2, 4))
    up = kernels.roof(
        2 * 2 * tokens * 4096 * 2 * 14336 / 4,
        8 * (1 - 0.75**tokens) * 4096 * 2 * 14336 / 4 * 2 + 2 * 2 * tokens * (4096 + 2 * 14336 / 4),
    )
    assert sliced["mlp_up_proj"] == pytest.approx(up, rel=1e-12)


def test_tokens_travel_over_the_link() -> None:
    """By hand: 8 ranks, 4,096 tokens x 8 copies x 2,048 values x 2 bytes / 8 ranks, 7/8 of it leaves."""
    device = get_device("b200")  # not calibrated
    kernels = Kernels(device, default_node(device), get_efficiency(device.efficiency))
    times = layer("qwen3-30b-a3b", 8, 1.0, [4096.0], "b200")
    leaves = 4096 * 8 * 2048 * 2 / 8 * 7 / 8
    rate = device.link_gb_s / 2 * 1e9 * kernels.efficiency.link
    expected = 2 * (leaves / rate + kernels.efficiency.collective_us * 1e-6)
    assert times["all_to_all"][0] == pytest.approx(expected)
    # Reduce-scatter and all-gather instead of two all-reduces: half the bytes, the same launches.
    tokens = np.array([4096.0])
    apart = token_operators(kernels, get_model("qwen3-30b-a3b"), tokens, 8, ExpertParallel(8))
    whole = token_operators(kernels, get_model("qwen3-30b-a3b"), tokens, 8)
    launches = 2 * kernels.efficiency.collective_us * 1e-6
    assert apart["all_reduce"][0] - launches == pytest.approx((whole["all_reduce"][0] - launches) / 2)


def test_memory() -> None:
    mixtral, deepseek = get_model("mixtral-8x7b"), get_model("deepseek-v3")
    # Two whole experts of eight weigh what a quarter of each of the eight does.
    assert weight_bytes(mixtral, 4, 1, 4) == weight_bytes(mixtral, 4, 1)
    per_expert = 3 * 4096 * 14336
    others = mixtral.parameters - 32 * 8 * per_expert
    assert weight_bytes(mixtral, 4, 1, 4) == 2 * (32 * 2 * per_expert + others / 4)
    # The shared expert (one byte per weight) is whole on every device: 7/8 of it more.
    more = weight_bytes(deepseek, 8, 1, 8) - weight_bytes(deepseek, 8, 1)
    assert more == pytest.approx(58 * 3 * 7168 * 2048 * 7 / 8)
    assert activation_bytes(mixtral, 4, 4, 1.0) > activation_bytes(mixtral, 4)  # what was received
    assert activation_bytes(mixtral, 4, 4, 2.0) > activation_bytes(mixtral, 4, 4, 1.0)
    device = get_device("h100")
    whole, skewed = (
        plan_kv(mixtral, device, 4, max_tokens=4096, ep=4, moe_imbalance=imbalance)
        for imbalance in (1.0, 3.0)
    )
    assert plan_kv(mixtral, device, 4).num_blocks > whole.num_blocks > skewed.num_blocks
    with pytest.raises(TrimtabError, match="tp=8 would fit"):
        plan_kv(deepseek, get_device("h200"), 4, ep=4)


@pytest.mark.parametrize(
    ("model", "tp", "ep", "imbalance", "message"),
    [
        ("llama-3-8b", 2, 2, 1.0, "ep=2 is not possible for llama-3-8b: it has no experts; allowed: 1"),
        ("mixtral-8x7b", 4, 2, 1.0, "ep=2 must be 1 (slices of experts) or tp=4"),
        ("mixtral-8x7b", 4, 1, 1.5, "moe_imbalance=1.5 needs expert parallelism"),
        ("mixtral-8x7b", 8, 8, 5.0, "with ep=8: a rank gets at most 4 times the mean; allowed: 1 to 4"),
        ("qwen3-30b-a3b", 4, 4, 4.5, "a rank gets at most 4 times the mean"),
    ],
)
def test_refusals(model: str, tp: int, ep: int, imbalance: float, message: str) -> None:
    with pytest.raises(TrimtabError) as error:
        validate_expert_parallelism(get_model(model), tp, ep, imbalance)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_from_the_scenario() -> None:
    plain = {"model": "mixtral-8x7b", "device": "h100", "tp": 4}
    workload = {"num_requests": 10}
    requests = build_requests(load_scenario({"workload": workload}).workload, 0)
    sliced, whole, skewed = (
        build_fleets(load_scenario({"workload": workload, "replicas": {**plain, **keys}}), requests)[0][0]
        for keys in ({}, {"ep": 4}, {"ep": 4, "moe_imbalance": 2.0})
    )
    assert sliced.num_blocks > whole.num_blocks > skewed.num_blocks
    assert skewed.tables.token_s[-1] > whole.tables.token_s[-1]
    fitted = {**plain, "ep": 4, "exectime": {"kind": "forest", "path": "."}}
    with pytest.raises(TrimtabError, match="kind 'forest' has no expert parallelism"):
        build_fleets(load_scenario({"workload": workload, "replicas": fitted}), requests)
