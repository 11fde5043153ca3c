"""attach(): what it refuses, what it leaves alone, and how it works with guards, balancers and states."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from hugging_face import BASE, EXPERTS, TOP_K, ExpertArguments, tiny_model, token_ids
from torch import nn

from trimtab.balance import (
    AdaptiveLoadBalancer,
    BiasLaw,
    DomainDetector,
    Guard,
    QuantileLaw,
    TaskTypeClassifier,
    law,
    load_of,
    load_state,
    save_state,
)
from trimtab.balance.measures import max_violation
from trimtab.errors import TrimtabError
from trimtab.moe import attach, trained_bias


@pytest.fixture
def model() -> Any:
    return tiny_model("deepseek_v3")


@torch.no_grad()
def forward(model: Any, ids: torch.Tensor | None = None, **given: Any) -> torch.Tensor:
    output: torch.Tensor = model(input_ids=token_ids() if ids is None else ids, **given).logits
    return output


# --- what it does --------------------------------------------------------------------------------


def test_a_law_evens_the_load_of_the_next_batches() -> None:
    for family, name in (("deepseek_v3", "quantile"), ("mixtral", "quantile"), ("minimax_m2", "ewma")):
        model = tiny_model(family)
        chosen = name if name == "quantile" else law("ewma", 0.02)
        with attach(model, chosen) as balanced:
            ids = token_ids(8, 64)
            forward(model, ids)
            before = max_violation(balanced.load).mean()
            for _ in range(40 if name == "ewma" else 4):
                forward(model, ids)
            assert max_violation(balanced.load).mean() < 0.35 * before, family


def test_the_bias_of_a_batch_comes_from_earlier_batches(model: Any) -> None:
    with attach(model, law("sign", 0.01)) as attached:
        ids, other = token_ids(seed=1), token_ids(seed=2)
        unadapted = forward(model, ids)
        assert torch.equal(unadapted, forward(tiny_model("deepseek_v3"), ids))
        expected = law("sign", 0.01, start=attached.trained).update(attached.load)
        np.testing.assert_allclose(attached.bias, expected, atol=1e-7)
        forward(model, other)
        assert attached.num_forwards == 2


def test_observing_changes_nothing(model: Any) -> None:
    reference = forward(model)
    with attach(model) as observed:
        assert torch.equal(forward(model), reference)
        assert observed.load.sum() == 3 * TOP_K * 48
        np.testing.assert_array_equal(observed.bias, trained_bias(model))


def test_strength_goes_part_of_the_way(model: Any) -> None:
    with attach(model, law("proportional", 0.1)) as whole:
        forward(model)
        full = whole.bias - whole.trained
    with attach(model, law("proportional", 0.1), strength=0.25) as part:
        forward(model)
        np.testing.assert_allclose(part.bias - part.trained, 0.25 * full, atol=1e-7)


def test_padding_is_not_learned_from_and_the_cache_is_understood(model: Any) -> None:
    ids, mask = token_ids(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[1, :5] = 0
    with attach(model, QuantileLaw(TOP_K)) as attached, torch.no_grad():
        first = model(input_ids=ids, attention_mask=mask, use_cache=True)
        assert attached.load.sum() == 3 * TOP_K * 19
        assert attached.scores().shape == (3, 19, EXPERTS)
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], dim=1)
        model(input_ids=ids[:, :1], attention_mask=longer, past_key_values=first.past_key_values)
        assert attached.load.sum() == 3 * TOP_K * 2
        attached.recorders[0].begin(mask[:1, :3])
        with pytest.raises(TrimtabError, match="no fit for an attention_mask of 1 x 3"):
            attached.recorders[0].valid_tokens(7)


def test_generating_works_while_attached(model: Any) -> None:
    with attach(model, "sign") as attached:
        model.generate(input_ids=token_ids(1, 4), max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert attached.num_forwards == 3


def test_groups_are_limited_as_the_model_limits_them() -> None:
    """The bias enters the group's score: lifting one group's experts makes it the only one chosen."""
    model = tiny_model("deepseek_v3", n_group=4, topk_group=1)
    with attach(model) as attached:
        bias = attached.trained.copy()
        bias[:, 4:6] += 10.0
        attached.set_bias(bias)
        forward(model)
        assert (attached.load[:, [0, 1, 2, 3, 6, 7]] == 0).all()
        bias[:, 4:6] -= 10.0
        attached.set_bias(bias)
        forward(model)
        assert (attached.load[:, :4] > 0).any()


def test_a_law_by_name_knows_the_groups_and_one_that_does_not_is_refused() -> None:
    model = tiny_model("deepseek_v3", n_group=4, topk_group=2)
    with torch.no_grad():
        for router in (layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")):
            router.weight.mul_(30)  # tiny random routers hardly prefer anyone
    with pytest.raises(TrimtabError, match=r"other routers .* make it with top_k=2, groups=4, top_groups=2"):
        attach(model, QuantileLaw(TOP_K))
    with attach(model, QuantileLaw(TOP_K, groups=4, top_groups=2, rounds=10)) as attached:
        forward(model)
        before = max_violation(attached.load).mean()
        for _ in range(4):
            forward(model)
        assert max_violation(attached.load).mean() < 0.5 * before
    with attach(model, "quantile") as attached:
        assert attached.law.market.groups == 4

    class Own(BiasLaw):
        observes = "scores"

    with attach(model, Own()) as attached:  # a law that reckons with no market is its author's affair
        assert attached.law.observes == "scores"


def test_groups_without_a_bias_of_their_own_stay_closed() -> None:
    """DeepSeek-V2 picks a group first, by unbiased scores: no bias reaches an expert outside of it."""
    model = tiny_model("deepseek_v2", topk_method="group_limited_greedy", n_group=2, topk_group=1)
    with attach(model) as attached:
        forward(model)
        groups = attached.load.reshape(-1, 2, 4).sum(-1)
        bias = np.zeros_like(attached.trained)
        bias[:, 0] = 50.0
        attached.set_bias(bias)
        forward(model)
        # The first layer has the same input, so each group still gets as many tokens.
        np.testing.assert_array_equal(attached.load.reshape(-1, 2, 4).sum(-1)[0], groups[0])
        assert attached.load[0, 0] == groups[0, 0] / TOP_K


def test_scores_tell_what_another_bias_would_do(model: Any) -> None:
    with attach(model, QuantileLaw(TOP_K)) as attached:
        forward(model)
        scores = attached.scores().double().numpy()
        np.testing.assert_array_equal(load_of(scores, attached.trained, TOP_K), attached.load)


def test_a_bias_in_half_precision_is_kept_in_float32_meanwhile() -> None:
    model = tiny_model("afmoe").to(torch.bfloat16)
    reference = forward(model)
    tensor = model.model.layers[1].mlp.expert_bias
    bits = tensor.detach().clone()
    with attach(model, law("sign", 1e-4)) as attached:
        forward(model)
        moved = attached.bias - attached.trained
        assert 5e-5 < np.abs(moved).max() < 2e-4  # bfloat16 near 0.1 has steps of 5e-4
    assert model.model.layers[1].mlp.expert_bias is tensor
    assert torch.equal(tensor, bits)
    assert torch.equal(forward(model), reference)


def test_writing_is_in_place(model: Any) -> None:
    tensor = model.model.layers[0].mlp.gate.e_score_correction_bias
    pointer = tensor.data_ptr()
    with attach(model, "sign"):
        forward(model)
        assert model.model.layers[0].mlp.gate.e_score_correction_bias is tensor
        assert (tensor.data_ptr(), tensor.dtype) == (pointer, torch.float32)


def test_inference_mode_and_training_both_work(model: Any) -> None:
    with attach(model, "window") as attached:
        with torch.inference_mode():
            model(input_ids=token_ids())
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
        loss.backward()
        assert attached.num_forwards == 2
        assert model.model.layers[0].mlp.gate.weight.grad is not None


def test_a_parameter_is_kept_from_the_optimiser_meanwhile() -> None:
    model = tiny_model("laguna")
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias.requires_grad_(True)
    with attach(model):
        assert not bias.requires_grad
    assert bias.requires_grad


def test_nothing_is_left_behind(model: Any) -> None:
    attached = attach(model, "quantile")
    forward(model)
    attached.detach()
    attached.detach()  # twice is once
    assert not any(isinstance(each, type(attached)) for each in gc.get_referrers(model.model.layers[0]))
    attach(model).detach()


# --- with a guard, a balancer ----------------------------------------------------------------------


def test_a_guard_steps_and_rolls_back_to_the_bit(model: Any) -> None:
    reference = forward(model)
    guard = Guard(trained_bias(model), max_step=0.01, patience=1, cool_down=2)
    with attach(model, law("proportional", 1.0), guard=guard) as attached:
        forward(model)
        assert np.abs(attached.bias - attached.trained).max() <= 0.01 + 1e-6
        guard.quality = lambda bias: 1.0
        forward(model)
        assert guard.num_rollbacks == 1
        np.testing.assert_array_equal(attached.bias, attached.trained)
        assert torch.equal(forward(model), reference)


def test_a_probe_may_run_the_model(model: Any) -> None:
    with attach(model, law("sign", 0.05), guard=Guard(trained_bias(model))) as attached:
        losses = []

        def quality(bias: Any) -> float:
            with attached.trial(bias):
                losses.append(float(forward(model, token_ids(seed=9)).mean()))
            return 0.0

        attached.guard.quality = quality
        forward(model)
        load = attached.load.copy()
        assert len(losses) == 1 and attached.num_forwards == 1
        np.testing.assert_array_equal(load, attached.load)


def test_rollback_starts_the_law_anew(model: Any) -> None:
    reference = forward(model)
    with attach(model, law("ewma", 0.1)) as attached:
        forward(model)
        forward(model)
        attached.rollback()
        assert torch.equal(forward(model), reference)
        again = attached.bias
        attached.rollback()
        forward(model)
        np.testing.assert_array_equal(attached.bias, again)


def test_a_balancer_is_fed_and_obeyed(model: Any) -> None:
    classifier = TaskTypeClassifier(["low", "high"])
    low, high = token_ids() % 100 + 3, token_ids() % 100 + 120
    classifier.update(low, "low")
    classifier.update(high, "high")
    base = trained_bias(model)
    balancer = AdaptiveLoadBalancer(base, DomainDetector(classifier))
    with attach(model, balancer) as attached:
        forward(model, low)
        forward(model, high)
        assert balancer.load_monitor.task_mix() == {"high": 0.5, "low": 0.5}
        forward(model, low)
        assert not np.array_equal(attached.bias, attached.trained)
        attached.rollback()
        np.testing.assert_array_equal(attached.bias, attached.trained)
        with pytest.raises(TrimtabError, match="reads input_ids"):
            model(inputs_embeds=torch.zeros(1, 2, 64))
    with pytest.raises(TrimtabError, match="has its own guard"):
        attach(model, balancer, strength=0.5)


# --- states ----------------------------------------------------------------------------------------


def test_a_state_saves_and_loads(model: Any, tmp_path: Path) -> None:
    with attach(model, "ewma") as attached:
        forward(model)
        save_state(tmp_path / "state.npz", attached.state_dict())
        forward(model, token_ids(seed=5))
        expected = attached.bias
    with attach(model, "ewma") as again:
        again.load_state_dict(load_state(tmp_path / "state.npz"))
        forward(model, token_ids(seed=5))
        np.testing.assert_array_equal(again.bias, expected)


def test_a_state_of_another_model_is_refused_and_changes_nothing(model: Any) -> None:
    with attach(tiny_model("glm4_moe_lite"), "sign") as other:
        state = other.state_dict()
    with attach(tiny_model("deepseek_v3", seed=7), "sign") as cousin:
        same_shape = cousin.state_dict()
    with attach(model, "sign") as attached:
        forward(model)
        before, number = attached.bias, attached.law.num_updates
        wrong: list[tuple[Any, str]] = [
            (state, "another model"),
            (same_shape, "another trained bias"),
            ({**attached.state_dict(), "law": {"kind": "QuantileLaw"}}, "given to SignLaw"),
            ({**attached.state_dict(), "law": None}, "has a law"),
            ({"kind": "SignLaw"}, "not the state of an attachment"),
        ]
        for given, message in wrong:
            with pytest.raises(TrimtabError, match=message) as error:
                attached.load_state_dict(given)
            assert "\n" not in str(error.value)
        for bias in (np.zeros((3, 16)), np.full((3, EXPERTS), np.nan), np.zeros(EXPERTS)):
            with pytest.raises(TrimtabError, match=r"another model|must be finite"):
                attached.set_bias(bias)
        np.testing.assert_array_equal(attached.bias, before)
        assert attached.law.num_updates == number


# --- refusals --------------------------------------------------------------------------------------


def test_refusals_are_one_line(model: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **BASE))
    odd = nn.ModuleDict({"a": nn.Module()})
    odd["a"].__class__ = type("StrangeRouter", (nn.Module,), {})
    refused: list[tuple[Any, str]] = [
        (lambda: attach(dense), "LlamaForCausalLM has no router"),
        (lambda: attach(odd), "a is a StrangeRouter, which does not say its number of experts"),
        (lambda: attach("model"), "needs a torch.nn.Module; given str"),
        (lambda: attach(model, "quantil"), "Did you mean 'quantile'"),
        (lambda: attach(model, 3), "law is a name, a BiasLaw"),
        (lambda: attach(model, strength=2.0), "strength is from 0"),
        (lambda: attach(model, only="*vision*"), r"no router under '\*vision\*'"),
        (lambda: attach(model, law("sign", start=np.zeros((3, 16)))), "a bias for another model"),
        (lambda: attach(model, law("sign", start=np.zeros((3, 8)))), "law's starting bias is not that of"),
        (lambda: attach(model, guard=Guard(np.zeros((3, 8)))), "not that of this model"),
        (lambda: attach(model, "quantile", reduce=lambda counts: counts), "use QuantileHistogramLaw"),
    ]
    for call, message in refused:
        with pytest.raises(TrimtabError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
        assert not model._forward_hooks


def test_attaching_twice_is_refused(model: Any) -> None:
    with attach(model) as first:
        with pytest.raises(TrimtabError, match="attached already"):
            attach(model, "sign")
        with pytest.raises(TrimtabError, match="attached already"):
            attach(model.model)  # the same routers by another way
        forward(model)
        assert first.num_forwards == 1


def test_a_silent_router_is_an_error(model: Any) -> None:
    block = model.model.layers[1].mlp
    gate = block.gate
    block.forward = lambda hidden: hidden + 0 * gate.weight.sum()  # as a fused kernel would
    with attach(model, "sign") as attached:
        before = attached.bias
        with pytest.raises(TrimtabError, match=r"1 of 3 routers recorded nothing.*layers\.1\.mlp\.gate"):
            forward(model)
        np.testing.assert_array_equal(attached.bias, before)


def test_all_padding_is_an_error_and_changes_nothing(model: Any) -> None:
    with attach(model, "sign") as attached:
        before = attached.bias
        with pytest.raises(TrimtabError, match="all zero"):
            forward(model, attention_mask=torch.zeros(2, 24, dtype=torch.int64))
        np.testing.assert_array_equal(attached.bias, before)


def test_a_forward_that_fails_leaves_the_hooks_in_order() -> None:
    model = tiny_model("mixtral")
    with attach(model, "quantile") as attached:
        experts = model.model.layers[1].mlp.experts
        original, experts.forward = experts.forward, lambda *_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            forward(model)
        experts.forward = original
        forward(model)
        assert attached.load.sum() == 3 * TOP_K * 48


def test_recomputing_for_the_backward_is_not_counted_twice() -> None:
    model = tiny_model("qwen3_moe").train()
    model.gradient_checkpointing_enable()
    seen = ExpertArguments(model)
    with attach(model) as attached:
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        assert len(seen.layers) == 6  # forward and recomputation
        assert attached.load.sum() == 3 * TOP_K * 48
