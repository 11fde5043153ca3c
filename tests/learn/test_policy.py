"""The scorer: torch and engine agree, actions come from the distribution that is said, order is nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `learn` is not installed")
pytest.importorskip("safetensors", reason="the extra `learn` is not installed")

from learning import tiny  # noqa: E402

from trimtab.engine.dtypes import Outcome  # noqa: E402
from trimtab.learn.policy import Scorer, save_policy, unpack  # noqa: E402
from trimtab.learn.rollout import Acting, Episode, play  # noqa: E402
from trimtab.learn.scenarios import build_episode  # noqa: E402
from trimtab.routers import Router  # noqa: E402
from trimtab.routers.features import (  # noqa: E402
    CONTEXT,
    FEATURES,
    LONG,
    NUM_CONTEXT,
    NUM_FEATURES,
)
from trimtab.routers.learned import make_brain  # noqa: E402
from trimtab.routers.policy_file import Policy, load_policy  # noqa: E402
from trimtab.simulation import simulate, start  # noqa: E402

DRAINED = {"events": [{"kind": "drain", "replica": 1, "at_s": 1.0}]}


def scorer(seed: int) -> Scorer:
    """Random in every part, also those that start at zero."""
    made = Scorer(16, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(0.5 * torch.randn(value.shape, generator=generator))
    return made


def fleet(size: int) -> list[dict[str, Any]]:
    return [{"device": "h100", "count": size - 1}, {"device": "a40", "count": 1}]


def played(temperature: float, size: int = 3, **more: Any) -> tuple[Scorer, Episode]:
    policy = scorer(3)
    scenario = tiny(fleet(size), **more)
    episode = play(
        scenario,
        *build_episode(scenario),
        Acting(policy.flat(), 16, temperature),
        coins=np.random.default_rng(7),
    )
    return policy, episode


@pytest.mark.parametrize(("size", "faults"), [(2, {}), (3, DRAINED), (5, {}), (9, DRAINED)])
def test_engine_and_torch_score_alike(size: int, faults: dict[str, Any]) -> None:
    from trimtab.cluster.whole import advance_whole, answer_whole, consult

    policy = scorer(size)
    scenario = tiny(fleet(size), faults=faults)
    traffic, fleets = build_episode(scenario)
    brain = make_brain(policy.flat(), 16, size, len(traffic.requests))
    state = start(scenario, traffic, fleets, Router.OUTSIDE, brain=brain)
    rows, scores = [], []
    while advance_whole(state, np.inf) == Outcome.ASKING:
        replica = consult(state, int(Router.LEARNED))
        rows.append(state.decisions[state.control["asking"][0]].copy())
        scores.append(state.replicas["cost"].copy())
        answer_whole(state, replica)
    decisions = unpack(np.array(rows))
    with torch.no_grad():
        ours = policy(decisions).numpy()
    accepting = decisions.accepting.numpy()
    assert (~accepting).any() == bool(faults)
    assert np.isneginf(ours[~accepting]).all()
    np.testing.assert_allclose(ours[accepting], np.array(scores)[accepting], rtol=1e-5, atol=1e-5)
    taken = ours[np.arange(len(ours)), decisions.chosen.numpy()]
    np.testing.assert_allclose(taken, ours.max(axis=1), atol=1e-5)  # ties go to a random one


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_every_action_is_the_one_its_coin_buys(temperature: float) -> None:
    """Exact: the coin lies in the interval that softmax(score / temperature) gives to the choice."""
    policy, episode = played(temperature, size=4, requests=200, faults=DRAINED)
    decisions = unpack(episode.rows)
    with torch.no_grad():
        probs = torch.softmax(policy(decisions) / temperature, dim=1).double().numpy()
    upper = np.cumsum(probs, axis=1)
    each, chosen = np.arange(len(probs)), decisions.chosen.numpy()
    coins = episode.state.requests["coin_b"]
    assert (coins <= upper[each, chosen] + 1e-5).all()
    assert (coins >= upper[each, chosen] - probs[each, chosen] - 1e-5).all()
    assert len(np.unique(chosen)) > 2


def test_the_request_itself_is_observed() -> None:
    _, episode = played(1.0)
    requests = episode.state.requests
    context = episode.rows[:, 2 : 2 + NUM_CONTEXT]
    prompts = np.log1p(requests["prefill_tokens"] / LONG) / 4
    np.testing.assert_allclose(context[:, list(CONTEXT).index("prompt")], prompts, rtol=1e-5)
    own = unpack(episode.rows).features.numpy()[:, :, list(FEATURES).index("own_prompt")]
    assert (own > 0).all()
    assert np.corrcoef(own[:, 0], prompts)[0, 1] > 0.3


def test_order_of_replicas_is_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 7, 64):
        each = torch.rand(3, size, 2 + NUM_FEATURES, generator=generator)
        head = torch.rand(3, 2 + NUM_CONTEXT, generator=generator)
        head[:, 0], head[:, 1] = 0, size
        order = torch.randperm(size, generator=generator)
        plain = unpack(torch.cat([head, each.reshape(3, -1)], dim=1).numpy())
        permuted = unpack(torch.cat([head, each[:, order].reshape(3, -1)], dim=1).numpy())
        policy = scorer(size)
        with torch.no_grad():
            torch.testing.assert_close(policy(plain)[:, order], policy(permuted))


def test_padding_is_nothing() -> None:
    policy, episode = played(1.0)
    narrow = unpack(episode.rows)
    wide = unpack(np.pad(episode.rows, ((0, 0), (0, 4 * (2 + NUM_FEATURES)))))
    with torch.no_grad():
        scores = policy(wide)
        torch.testing.assert_close(scores[:, :3], policy(narrow))
    assert torch.isneginf(scores[:, 3:]).all()


def test_a_policy_beside_its_scenario_is_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scenarios"
    policy = scorer(1)
    save_policy(Policy(policy.flat(), 16, {}), folder / "mine.safetensors")
    np.testing.assert_allclose(load_policy(folder / "mine.safetensors").values, policy.flat())
    import yaml

    data = tiny().model_dump(mode="json", exclude_unset=True)
    data["router"] = {"name": "learned", "policy": "mine.safetensors"}
    (folder / "scenario.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.chdir(tmp_path)
    beside = simulate(folder / "scenario.yaml")
    monkeypatch.chdir(folder)
    here = simulate(tiny(), overrides={"router": data["router"]})
    assert (beside.requests["replica"] == here.requests["replica"]).all()
