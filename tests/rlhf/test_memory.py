"""Bytes: by hand, monotone, and the published cases."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rlhf.conftest import make_job
from trimtab.hardware import get_model
from trimtab.rlhf import memory
from trimtab.rlhf.generation import kv_capacity
from trimtab.rlhf.job import GIB
from trimtab.rlhf.memory import Share, forecast
from trimtab.rlhf.placement import Placement, Plan, Serving, Training

HYBRID = Placement("hybrid", "all", 8, 8, 8, 8, 4, 2)
EXAMPLE = Plan(
    HYBRID,
    Training(zero=3, checkpointing=True, batching="dynamic", cap=16384),
    Serving(0.5, vllm_sleep=True, ds_sleep=True),
)


def test_state_by_hand() -> None:
    """2 + 2 + 12 bytes a parameter, each divided by those who share it."""
    model = get_model("llama-3-8b")
    count = float(model.parameters)
    two = memory.trained(model, True, Share(8.0, 2), False)
    assert two["weights"] == 2 * count
    assert two["gradients"] == 2 * count / 8
    assert two["optimiser"] == 12 * count / 8
    three = memory.trained(model, True, Share(8.0, 3), False)
    assert three["weights"] == 2 * count / 8
    offloaded = memory.trained(model, True, Share(8.0, 2), True)
    assert offloaded["optimiser"] == offloaded["gradients"] == 0
    assert memory.frozen(model, True, Share(8.0, 2), True)["weights"] == 2 * count
    assert memory.frozen(model, True, Share(8.0, 3), True)["weights"] == 0
    # a critic has no LM head
    assert memory.parameters(model, False) == count - model.vocab * model.hidden


def test_logits_outweigh_the_model() -> None:
    """16,384 tokens and a vocabulary of 152,064: 25 GB before the model."""
    model = get_model("qwen2.5-7b")
    assert memory.logits(model, 16384, memory.LOGITS_TRAIN) / 1e9 == pytest.approx(25, rel=0.01)


def test_the_published_hybrid_example() -> None:
    """OpenRLHF's 8B example on 8 A100s: about 48 GB when it generates and when it trains."""
    expected = forecast(make_job(), EXAMPLE)
    phases = {phase: sum(parts.values()) / 1e9 for phase, parts in expected.pools["all"].items()}
    assert phases["generation"] == pytest.approx(48, rel=0.2)
    assert phases["train actor"] == pytest.approx(52, rel=0.2)
    assert expected.fits
    # actor and critic take turns: only one optimiser is there at a time
    assert expected.pools["all"]["train actor"]["optimiser"] == 12 * get_model("llama-3-8b").parameters / 8


def test_published_cases(published: ModuleType) -> None:
    """At least nine of ten cases with published settings; the whole list is benchmarks/rlhf_fit.py."""
    cases = [case for case in published.PUBLISHED["fit"] if not case.get("verl") and not case.get("search")]
    right = 0
    for case in cases:
        job, plan = published.fit_case(case)
        expected = forecast(job, plan)
        if case.get("groups") in ("single", "v0.2"):
            expected.pools.pop("vllm")
        right += expected.fits == case["fits"]
    # two OpenRLHF issues are out of memory for other reasons (a regression; fragments after 55 steps)
    assert len(cases) - right <= 2


steps_down = st.sampled_from(
    [
        {"training": {"checkpointing": True}},
        {"training": {"adam_offload": True}},
        {"training": {"zero": 3}},
        {"training": {"cap": 4096}},
        {"serving": {"utilization": 0.3}},
        {"serving": {"vllm_sleep": True}},
        {"serving": {"ds_sleep": True}},
        {"serving": {"eager": True}},
    ]
)
plans = st.builds(
    lambda zero, adam, check, cap, sleep, ds, use: Plan(
        HYBRID,
        Training(zero=zero, adam_offload=adam, checkpointing=check, batching="dynamic", cap=cap),
        Serving(use, sleep, ds),
    ),
    st.sampled_from([2, 3]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([4096, 16384, 65536]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.3, 0.5, 0.8]),
)


@given(plans, steps_down)
def test_what_saves_memory_never_costs_any(plan: Plan, step: dict[str, dict[str, object]]) -> None:
    """Per phase, except where ZeRO-3 gathers more than it saves (small models), which 8B is not."""
    job = make_job()
    training = replace(plan.training, **step.get("training", {}))  # type: ignore[arg-type]
    serving = replace(plan.serving, **step.get("serving", {}))  # type: ignore[arg-type]
    before, after = forecast(job, plan), forecast(job, Plan(plan.placement, training, serving))
    for phase, parts in after.pools["all"].items():
        assert sum(parts.values()) <= sum(before.pools["all"][phase].values()) * (1 + 1e-12), phase


def test_host_memory() -> None:
    """70B with Adam on one node's host: 16 bytes a parameter, 12 of them moments and master copy."""
    job = make_job(actor=get_model("llama-3-70b"), remote_reward="url", algorithm="reinforce++")
    place = Placement("distributed", "none", 8, 0, 8, 0, 1, 8)
    parts = memory.host_parts(job, Plan(place, Training(zero=3, adam_offload=True), Serving(0.9)))
    assert parts["Adam"] == pytest.approx(16 * 70.6e9, rel=0.01)


def test_kv_cache() -> None:
    job = make_job()
    model = job.actor
    by_hand = (0.5 * 80 * GIB - 2 * model.parameters / 2 - memory.ENGINE_FIXED) / model.kv_bytes_per_token(2)
    assert kv_capacity(job, 2, 0.5) == int(by_hand)
    assert kv_capacity(make_job(actor=get_model("llama-3-70b")), 1, 0.9) < 0


def test_forward_batches_exceed_their_cap() -> None:
    """OpenRLHF floors their number to a multiple of the ranks: some per cent more tokens than allowed."""
    job = make_job(prompts=1024)
    over = float(memory.rollout_overshoot(job, 16384, 8))
    assert 1.0 <= over < 1.2
    assert float(memory.rollout_overshoot(job, 16384, 1)) == pytest.approx(1.0, abs=0.02)
