"""What the learned router believes of old signals, against a ledger kept by hand from the same run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trimtab.engine.state import State
from trimtab.learn.scenarios import build_episode
from trimtab.routers import Router
from trimtab.routers.beliefs import PROMPTS
from trimtab.routers.features import FEATURES, NUM_CONTEXT, NUM_FEATURES, SHORT
from trimtab.routers.learned import make_brain, policy_size
from trimtab.scenario import load_scenario
from trimtab.simulation import start

HIDDEN = 3
NAMES = list(FEATURES)


def recorded(refresh_s: float, routers: int = 1) -> State:
    """A run behind a random policy, its signals ``refresh_s`` old at most."""
    from trimtab.cluster.whole import advance_whole

    data: dict[str, Any] = {
        "replicas": [
            {"device": "h100", "count": 1, "scheduler": {"name": "vllm_v1", "prefix_caching": True}},
            {"device": "l40s", "count": 2, "scheduler": {"name": "vllm_v1", "prefix_caching": True}},
        ],
        "workload": {
            "num_requests": 300,
            "arrivals": {"kind": "poisson", "qps": 12},
            "prefixes": {"groups": 3},
            "max_tokens": 4096,
        },
        "signals": {"refresh_s": refresh_s, "routers": routers} if refresh_s else {},
    }
    scenario = load_scenario(data)
    traffic, fleets = build_episode(scenario)
    values = np.random.default_rng(1).normal(size=policy_size(HIDDEN))
    brain = make_brain(values, HIDDEN, scenario.num_replicas, len(traffic.requests))
    state = start(scenario, traffic, fleets, Router.LEARNED, max_iterations=1, brain=brain)
    advance_whole(state, np.inf)
    return state


def seconds(state: State, name: str) -> np.ndarray:
    """(decisions, replicas) of a feature that is in seconds."""
    count = len(state.replicas)
    each = state.decisions[:, 2 + NUM_CONTEXT :].reshape(-1, count, 2 + NUM_FEATURES)[:, :, 2:]
    return SHORT * np.expm1(4 * each[:, :, NAMES.index(name)].astype(np.float64))


def test_between_snapshots_a_ledger_gains_what_is_sent_and_is_worked_off() -> None:
    state = recorded(4.0)
    prompts, own = seconds(state, "queued_prompts"), seconds(state, "own_prompt")
    decodes = seconds(state, "decoding")
    requests = state.requests
    rate = state.groups["decode_s"][state.replicas["group"]]
    compared = 0
    for after in range(1, len(requests)):
        before, passed = after - 1, requests["arrival"][after] - requests["arrival"][after - 1]
        if int(requests["arrival"][after] / 4.0) != int(requests["arrival"][before] / 4.0):
            continue  # a snapshot came between
        for replica in range(len(state.replicas)):
            sent = requests["replica"][before] == replica
            queued = prompts[before, replica] + sent * own[before, replica]
            done = min(queued, PROMPTS * passed)
            assert prompts[after, replica] == pytest.approx(queued - done, abs=2e-5)
            coming = decodes[before, replica] + sent * requests["expected_decode"][before] * rate[replica]
            assert decodes[after, replica] == pytest.approx(max(0.0, coming - (passed - done)), abs=2e-4)
            compared += 1
    assert compared > 600


def test_what_is_believed_is_less_than_all_that_was_sent() -> None:
    state = recorded(4.0)
    believed = seconds(state, "queued_prompts") + seconds(state, "decoding")
    assert (believed <= seconds(state, "work") + 1e-4).all()
    assert (believed < 0.5 * seconds(state, "work")).any()


def test_fresh_signals_need_no_belief() -> None:
    state = recorded(0.0)
    known = seconds(state, "queued_prompts") + seconds(state, "decoding")
    assert known == pytest.approx(seconds(state, "work"), abs=1e-4)


def test_each_router_keeps_its_own_ledger() -> None:
    """With two routers, a request that the one sends is not in the other's ledger until a snapshot."""
    state = recorded(50.0, routers=2)
    prompts, own = seconds(state, "queued_prompts"), seconds(state, "own_prompt")
    sent_by_other = 0
    for after in range(2, 12):
        between, replica = after - 1, int(state.requests["replica"][after - 1])
        mine = int(state.requests["replica"][after - 2])
        if mine != replica and own[between, replica] > 0.05:
            assert prompts[after, replica] <= prompts[after - 2, replica] + 1e-5
            sent_by_other += 1
    assert sent_by_other
