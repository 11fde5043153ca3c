"""The compiled scorer against plain NumPy, the shipped policy, and files that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtab as tt
from trimtab.engine.state import State
from trimtab.errors import TrimtabError
from trimtab.learn.scenarios import build_episode
from trimtab.routers import Router
from trimtab.routers.features import BOUND, NUM_CONTEXT, NUM_FEATURES
from trimtab.routers.learned import decision_width, make_brain, parts, policy_size
from trimtab.routers.policy_file import SHIPPED, load_policy
from trimtab.scenario import load_scenario
from trimtab.simulation import start

HIDDEN = 5


def scores_in_numpy(values: np.ndarray, features: np.ndarray, context: np.ndarray) -> np.ndarray:
    """(R,) by the formula of the module's docstring."""
    weights, at = {}, 0
    for name, (rows, columns) in parts(HIDDEN).items():
        weights[name] = values[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
    pooled = np.concatenate([features.mean(axis=0), features.min(axis=0), context])
    first = np.maximum(features @ weights["own"] + pooled @ weights["pooled"] + weights["bias"][0], 0.0)
    second = np.maximum(first @ weights["inner"] + weights["inner_bias"][0], 0.0)
    return np.asarray(second @ weights["last"][0] + features @ weights["skip"][0])


def recorded(count: int, seed: int, **changes: Any) -> tuple[State, np.ndarray]:
    """A short run behind a random policy, and that policy."""
    from trimtab.cluster.whole import advance_whole

    data = {
        "replicas": {"count": count, "scheduler": {"name": "vllm_v1", "prefix_caching": True}},
        "workload": {"num_requests": 60, "prefixes": {"groups": 3}, "max_tokens": 4096},
        **changes,
    }
    scenario = load_scenario(data)
    traffic, fleets = build_episode(scenario)
    values = np.random.default_rng(seed).normal(size=policy_size(HIDDEN))
    brain = make_brain(values, HIDDEN, scenario.num_replicas, len(traffic.requests))
    state = start(scenario, traffic, fleets, Router.LEARNED, max_iterations=1, brain=brain)
    advance_whole(state, np.inf)
    return state, values


@given(count=st.integers(1, 9), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_highest_score_is_chosen_by_the_written_formula(count: int, seed: int) -> None:
    state, values = recorded(count, seed)
    assert state.decisions.shape[1] == decision_width(count)
    for request, row in enumerate(state.decisions):
        each = row[2 + NUM_CONTEXT :].reshape(count, 2 + NUM_FEATURES).astype(np.float64)
        features, context = each[:, 2:], row[2 : 2 + NUM_CONTEXT].astype(np.float64)
        assert (features >= 0).all() and (features <= BOUND).all() and (each[:, 0] == 1).all()
        scores = scores_in_numpy(values, features, context)
        chosen = int(row[0])
        assert chosen == state.requests["replica"][request]
        assert scores[chosen] >= scores.max() - 1e-4  # features were kept as float32


def test_who_does_not_accept_is_not_chosen() -> None:
    events = [{"at_s": 0, "kind": "drain", "replica": replica} for replica in (0, 2)]
    state, _ = recorded(3, 1, faults={"events": events})
    assert (state.requests["replica"] == 1).all()


def test_a_bias_outside_the_gradient_evens_the_load() -> None:
    """A policy that loves the replica that runs the most: the bias law takes its share down to a fair one."""
    scenario = load_scenario({"replicas": {"count": 4}, "workload": {"num_requests": 3000}})
    traffic, fleets = build_episode(scenario)
    values = np.zeros(policy_size(HIDDEN))
    values[-NUM_FEATURES + 6] = 1.0  # the more it runs, the better it looks

    def shares(rate: float) -> np.ndarray:
        from trimtab.cluster.whole import advance_whole

        brain = make_brain(values, HIDDEN, 4, bias_rate=rate)
        state = start(scenario, traffic, fleets, Router.LEARNED, max_iterations=1, brain=brain)
        advance_whole(state, np.inf)
        return np.asarray(np.bincount(state.requests["replica"], minlength=4) / 3000)

    assert shares(0.0).max() > 0.9
    assert shares(0.01).max() < 1.3 / 4


def test_the_shipped_policy_beats_least_outstanding_and_spreads() -> None:
    policy = load_policy()
    assert policy.about["features"] and policy.values.shape == (policy_size(policy.hidden),)
    overrides = {"workload.num_requests": 6000, "workload.arrivals.qps": 26}
    learned, plain = (
        tt.simulate("azure-conv", router=name, overrides=overrides, seed=11)
        for name in ("learned", "least-outstanding")
    )
    assert learned.summary()["p99_ttft_ms"] < 0.8 * plain.summary()["p99_ttft_ms"]
    shares = np.bincount(learned.requests["replica"], minlength=4) / 6000
    assert shares.max() < 1.3 / 4


def test_files_that_are_no_policy_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match=r"cannot read policy 'nowhere\.safetensors'"):
        tt.simulate("azure-conv", router="learned", overrides={"router.policy": "nowhere.safetensors"})
    mine = tmp_path / "mine.safetensors"
    shutil.copy(SHIPPED, mine)
    shutil.copy(SHIPPED.with_suffix(".json"), mine.with_suffix(".json"))
    assert load_policy(mine).values.tolist() == load_policy().values.tolist()
    about = json.loads(mine.with_suffix(".json").read_text())
    mine.with_suffix(".json").write_text(json.dumps({**about, "features": ["speed"]}))
    with pytest.raises(TrimtabError, match="trained on other features than this version's"):
        load_policy(mine)
    mine.with_suffix(".json").write_text(json.dumps({**about, "hidden": 8}))
    with pytest.raises(TrimtabError, match="does not have the parts of a policy of 8 units"):
        load_policy(mine)
    mine.write_bytes(mine.read_bytes()[:40])
    with pytest.raises(TrimtabError, match="is damaged, or is none"):
        load_policy(mine)
