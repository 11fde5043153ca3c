"""attach() on the real code of many families: found, counted, biased, restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from hugging_face import EXPERTS, FAMILIES, SCORES, TOP_K, ExpertArguments, tiny_model, token_ids

from trimtab.moe import attach

FORCED = (5, 2)  # experts


def hashed(model: Any) -> int:
    """Layers of this model that choose by token id."""
    return sum("HashRouter" in type(module).__name__ for module in model.modules())


@torch.no_grad()
def run(model: Any, **given: Any) -> tuple[torch.Tensor, list[tuple[np.ndarray, torch.Tensor]]]:
    """Logits, and what the experts of each routed layer were handed."""
    seen = ExpertArguments(model)
    logits = model(input_ids=token_ids(), use_cache=False, **given).logits
    for handle in seen.handles:
        handle.remove()
    return logits, seen.layers[hashed(model) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_what_the_experts_were_given(family: str) -> None:
    model = tiny_model(family)
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[0, :9] = 0  # padding on the left
    with attach(model) as observed:
        assert len(observed.routers) == FAMILIES[family].routers
        assert {router.placement for router in observed.routers} == {FAMILIES[family].placement}
        _, layers = run(model, attention_mask=mask)
        kept = mask.reshape(-1).bool().numpy()
        recount = [np.bincount(choices[kept].reshape(-1), minlength=EXPERTS) for choices, _ in layers]
        np.testing.assert_array_equal(observed.load, recount)
        assert observed.load.sum() == TOP_K * kept.sum() * len(layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_moves_the_selection_and_nothing_else(family: str) -> None:
    model = tiny_model(family)
    logits_of: list[torch.Tensor] = []
    with attach(model) as attached:
        bias = attached.trained.copy()
        bias[:, FORCED] += 100.0
        attached.set_bias(bias)
        for router in attached.routers:
            router.module.register_forward_hook(lambda _m, _a, output: logits_of.append(output[0]))
        _, layers = run(model)
        for (choices, weights), logits in zip(layers, logits_of, strict=True):
            assert set(choices.reshape(-1)) == set(FORCED)
            if family == "phimoe":
                continue  # its weights are its own formula; tested below
            scores = SCORES[FAMILIES[family].score](logits.float()).gather(1, torch.as_tensor(choices))
            expected = scores / scores.sum(-1, keepdim=True)
            torch.testing.assert_close(weights.float() / weights.float().sum(-1, keepdim=True), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_detaching_restores_every_bit(family: str) -> None:
    model = tiny_model(family)
    tensors = {**model.state_dict()}
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in tensors.items()}
    output = run(model)[0]
    attached = attach(model, "sign")
    attached.set_bias(attached.trained + np.linspace(-1, 1, EXPERTS))
    assert not torch.equal(run(model)[0], output)
    attached.detach()
    after = model.state_dict()
    assert list(after) == list(tensors)
    for name, (pointer, values) in before.items():
        assert after[name].data_ptr() == pointer, name
        assert after[name].dtype == values.dtype
        assert torch.equal(after[name], values), name
    assert torch.equal(run(model)[0], output)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(hasattr(module, "trimtab_attached") for module in model.modules())


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"phimoe"}))
def test_scores_are_what_the_bias_is_added_to(family: str) -> None:
    """The top-k of recorded scores plus bias is what the model chose, with the bias of that forward."""
    model = tiny_model(family)
    with attach(model, "quantile") as attached:
        run(model)
        served = attached.bias
        assert not np.array_equal(served, attached.trained)
        _, layers = run(model)
        biased = attached.scores().double() + torch.from_numpy(served)[:, None]
        expected = biased.topk(TOP_K, dim=-1).indices.sort(-1).values
        for (choices, _), wanted in zip(layers, expected, strict=True):
            agree = (np.sort(choices, axis=-1) == wanted.numpy()).mean()
            assert agree >= 0.97  # scores are float32: ties at the quantile may fall either way


def test_the_second_choice_of_phimoe_is_biased_too() -> None:
    model = tiny_model("phimoe")
    with attach(model) as attached:
        bias = attached.trained.copy()
        bias[:, 5] += 100.0
        attached.set_bias(bias)
        _, layers = run(model)
        for choices, weights in layers:
            assert (choices[:, 0] == 5).all()
            assert (choices[:, 1] != 5).all()
            assert bool((weights > 0).all()) and bool((weights <= 1).all())


@pytest.mark.parametrize("family", ["llama4_text", "jetmoe"])
def test_routers_that_return_no_choices_are_read_inside(family: str) -> None:
    FAMILIES_BESIDE = {"llama4_text": 3, "jetmoe": 6}
    from hugging_face import BASE
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **BASE)).eval()
    with attach(model, "quantile") as attached, torch.no_grad():
        assert len(attached.routers) == FAMILIES_BESIDE[family]
        model(input_ids=token_ids())
        assert attached.load is not None
        assert (attached.load.sum(axis=1) == TOP_K * 48).all()
