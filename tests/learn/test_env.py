"""The Gymnasium environments: what checkers, spaces, seeds, rewards and learners ask of them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.engine.dtypes import Status
from trimtab.errors import TrimtabError
from trimtab.learn.scenarios import EASY, FIRST_SEED, HARD
from trimtab.routers import Router
from trimtab.scenario import load_scenario
from trimtab.simulation import start

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is part of the extra learn")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from trimtab.cluster.whole import advance_whole  # noqa: E402
from trimtab.learn.env import ENV_ID, RouterEnv  # noqa: E402
from trimtab.learn.scenarios import build_episode  # noqa: E402
from trimtab.learn.vector_env import RouterVectorEnv  # noqa: E402

SMALL: dict[str, Any] = {"scenario": "mixed-fleet", "overrides": {"workload.num_requests": 300}}
FAULTY: dict[str, Any] = {
    "replicas": [{"device": "a40", "count": 3, "scheduler": {"name": "vllm_v1", "prefix_caching": True}}],
    "workload": {"num_requests": 400, "max_tokens": 4096, "arrivals": {"kind": "poisson", "qps": 6}},
    "signals": {"refresh_s": 0.5},
    "faults": {
        "retries": 0,
        "events": [
            {"kind": "crash", "replica": 1, "at_s": 10},
            {"kind": "recover", "replica": 1, "at_s": 30},
            {"kind": "drain", "replica": 2, "at_s": 40},
        ],
    },
}


def soonest(observation: dict[str, Any]) -> Any:
    return np.argmin(observation["replicas"][..., 0] + 9 * (1 - observation["accepting"]), axis=-1)


def play(env: Any, seed: int | None = None) -> dict[str, Any]:
    """One episode by ``soonest``: what was seen, done and earned."""
    observation, info = env.reset(seed=seed)
    seen, actions, earned, ended, cut = [observation], [], [], False, False
    while not (ended or cut):
        assert (info["action_mask"] == observation["accepting"]).all()
        actions.append(int(soonest(observation)))
        observation, reward, ended, cut, info = env.step(actions[-1])
        seen.append(observation)
        earned.append(reward)
    return {"seen": seen, "actions": actions, "earned": np.array(earned), "ended": ended, "cut": cut}


@pytest.mark.parametrize("options", [SMALL, {"scenario": FAULTY, "max_replicas": 5}], ids=["plain", "faulty"])
def test_gymnasium_finds_nothing_wrong(options: dict[str, Any]) -> None:
    env = gymnasium.make(f"trimtab.learn.env:{ENV_ID}", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


def test_stable_baselines_finds_nothing_wrong() -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="needs stable-baselines3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*unconventional shape"
        )  # a table; its policies flatten it
        checker.check_env(RouterEnv(**SMALL))


def test_the_run_is_that_of_the_engine() -> None:
    """The same choices, made by the compiled loop: every time of every request is equal."""
    env = RouterEnv(**SMALL)
    actions = play(env, seed=4)["actions"]
    seed = FIRST_SEED + int(gymnasium.utils.seeding.np_random(4)[0].integers(2**31))
    scenario = load_scenario("mixed-fleet", {"workload.num_requests": 300}).model_copy(update={"seed": seed})
    router = scenario.router.model_copy(update={"name": "replay", "assignment": actions})
    scenario = scenario.model_copy(update={"router": router})
    state = start(scenario, *build_episode(scenario), kind=Router.REPLAY)
    advance_whole(state, np.inf)
    for name in ("arrival", "first_token", "finished", "replica"):
        np.testing.assert_array_equal(env.requests[name], state.requests[name])


@pytest.mark.parametrize("dwelling", [0.0, 0.3])
def test_rewards_add_up_to_the_waiting_of_all_requests(dwelling: float) -> None:
    env = RouterEnv(**SMALL, dwelling=dwelling, scale_s=0.2)
    played = play(env, seed=1)
    requests = env.requests
    waited = (requests["first_token"] - requests["arrival"]).sum()
    dwelt = (requests["finished"] - requests["arrival"]).sum()
    assert played["ended"] and not played["cut"]
    assert len(played["actions"]) == 300
    assert (requests["status"] == Status.FINISHED).all()
    assert played["earned"].sum() == pytest.approx(-(waited + dwelling * dwelt) / 0.2, rel=1e-12)


def waiting_by_hand(requests: Any, since: float, now: float) -> float:
    """Request-seconds from ``since`` to ``now`` without a first token, straight from the table."""
    routed = (requests["arrival"] <= since) & (requests["replica"] >= 0)
    routed &= ~np.isin(requests["status"], [Status.FAILED, Status.ABORTED, Status.REJECTED])
    first = np.where(np.isnan(requests["first_token"]), np.inf, requests["first_token"])
    return float((np.clip(first, since, now) - since)[routed].sum())


def test_each_reward_is_what_the_table_says_under_faults() -> None:
    env = RouterEnv(scenario=FAULTY, dwelling=0.0, lost=7.0)
    observation, _ = env.reset(seed=2)
    ended, lost = False, 0
    while not ended:
        control = env.runs.states[0].control  # type: ignore[union-attr]
        since = float(control["now"][0])
        observation, reward, ended, _, _ = env.step(int(soonest(observation)))
        unserved = int(control["failed"][0])
        by_hand = waiting_by_hand(env.requests, since, float(control["now"][0]))
        assert reward == pytest.approx(-by_hand - 7.0 * (unserved - lost), rel=1e-9, abs=1e-9)
        lost = unserved
    assert lost > 0  # the crash cost something


def test_a_request_nobody_accepted_waits_from_its_arrival() -> None:
    """The only replica is down for five seconds: who came then is asked about late, and charged for it."""
    alone = {**FAULTY, "replicas": [{"device": "h100", "count": 1}], "signals": {}}
    alone["faults"] = {
        "events": [
            {"kind": "crash", "replica": 0, "at_s": 5},
            {"kind": "recover", "replica": 0, "at_s": 10},
        ]
    }
    env = RouterEnv(scenario=alone, dwelling=0.0)
    played = play(env, seed=0)
    requests = env.requests
    assert (requests["status"] == Status.FINISHED).all()
    waited = (requests["first_token"] - requests["arrival"]).sum()
    assert played["earned"].sum() == pytest.approx(-waited, rel=1e-12)


def test_the_mask_follows_faults() -> None:
    env = RouterEnv(scenario=FAULTY, max_replicas=4)
    observation, _ = env.reset(seed=3)
    ended, masks = False, set()
    while not ended:
        state = env.runs.states[0]
        assert state is not None
        assert observation["accepting"].tolist() == [*state.replicas["accepting"], 0]
        assert env.action_masks().tolist() == observation["accepting"].astype(bool).tolist()
        now = float(state.control["now"][0])
        if 10 < now < 30:
            assert observation["accepting"][1] == 0
        masks_now = observation["accepting"].tolist()
        masks.add(tuple(masks_now))
        wanted = int(env.action_space.sample())
        allowed = [replica % 3 for replica in range(wanted % 3, wanted % 3 + 3) if masks_now[replica % 3]]
        observation, _, ended, _, info = env.step(wanted)
        assert info["replica"] == allowed[0]  # the one asked for, or the next that accepts
    assert {(1, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0)} <= masks


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31 - 1), stale=st.booleans())
def test_observations_stay_in_bounds(seed: int, stale: bool) -> None:
    """Over drawn scenarios, even with senseless routing; padding is zero."""
    level = replace(HARD, most_replicas=6, stale=float(stale), failing=0.5, least_load=1.0, most_load=1.5)
    env = RouterEnv(level=level, max_replicas=8, max_episode_steps=120)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    ended = cut = False
    while not (ended or cut):
        assert env.observation_space.contains(observation)
        assert observation["accepting"].any()
        assert not observation["replicas"][6:].any()
        observation, reward, ended, cut, _ = env.step(int(env.action_space.sample()))
        assert np.isfinite(reward)
        assert reward <= 0
    assert env.observation_space.contains(observation)
    assert cut and not ended


def test_same_seed_same_trajectory() -> None:
    level = replace(HARD, most_replicas=6)
    options: dict[str, Any] = {"level": level, "curriculum_steps": 200, "max_episode_steps": 150}
    env = RouterEnv(**options)
    first = [play(env, seed) for seed in (5, None)]
    again = [play(env, 5), play(RouterEnv(**options), 5), play(env, None)]
    assert again[0]["actions"] == again[1]["actions"] == first[0]["actions"]
    np.testing.assert_array_equal(first[0]["earned"], again[0]["earned"])
    np.testing.assert_array_equal(again[1]["earned"], again[0]["earned"])
    for one, other in zip(first[0]["seen"], again[1]["seen"], strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert not np.array_equal(first[0]["earned"], first[1]["earned"])  # the next episode is another


def test_uncompiled_it_is_the_same() -> None:
    """With every invariant swept after every event."""
    code = """
from trimtab.learn.env import RouterEnv
env = RouterEnv(scenario="mixed-fleet", overrides={"workload.num_requests": 20})
env.reset(seed=3)
print([env.step(action % 8)[1] for action in range(20)])
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "TRIMTAB_DEBUG": debug},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for debug in ("0", "1")
    ]
    assert printed[0] == printed[1]
    assert printed[0].count(",") == 19


def test_vector_is_the_single_one_many_times() -> None:
    """Across episodes, with threads, SAME_STEP resets and final observations."""
    options = {**SMALL, "max_episode_steps": 250, "repeats": 2}
    many = gymnasium.make_vec(f"trimtab.learn.env:{ENV_ID}", num_envs=3, threads=2, **options)
    singles = [RouterEnv(**options) for _ in range(3)]
    observation, infos = many.reset(seed=7)
    alone = [env.reset(seed=7 + i)[0] for i, env in enumerate(singles)]
    resets = 0
    for _ in range(600):
        actions = soonest(observation)
        observation, rewards, ended, cut, infos = many.step(actions)
        assert many.observation_space.contains(observation)
        for i, env in enumerate(singles):
            alone[i], reward, end, stop, _ = env.step(int(actions[i]))
            assert (reward, end, stop) == (rewards[i], ended[i], cut[i])
            assert ("final_obs" in infos and infos["_final_obs"][i]) == (end or stop)
            if end or stop:
                resets += 1
                assert env.observation_space.contains(infos["final_obs"][i])
                for name in alone[i]:
                    np.testing.assert_array_equal(infos["final_obs"][i][name], alone[i][name])
                alone[i] = env.reset()[0]
            for name in alone[i]:
                np.testing.assert_array_equal(observation[name][i], alone[i][name])
            assert (infos["action_mask"][i] == observation["accepting"][i]).all()
    assert resets == 6
    many.close()


def test_make_vec_in_gymnasiums_own_way() -> None:
    many = gymnasium.make_vec(f"trimtab.learn.env:{ENV_ID}", 2, "sync", **SMALL)
    observation, _ = many.reset(seed=0)
    for _ in range(310):
        observation, *_ = many.step(soonest(observation) * observation["accepting"].any(axis=-1))
    assert many.observation_space.contains(observation)
    many.close()


def test_an_episode_over_must_be_reset() -> None:
    env = RouterEnv(**SMALL)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    play(env)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


def test_the_curriculum_goes_from_easy_to_hard() -> None:
    env = RouterEnv(curriculum_steps=400, max_replicas=6, max_episode_steps=200, level=HARD)
    assert env.task.level.most_replicas == 6
    env.reset(seed=0)
    material = env.runs.courses[0].material
    assert material is not None
    assert len({group.device for group in material[0].replicas}) == 1
    assert material[0].num_replicas <= EASY.most_replicas
    assert material[0].signals.refresh_s == 0
    for _ in range(2):
        play(env)
    env.reset()
    assert env.runs.courses[0].steps == 400


def test_repeats_play_the_same_arrivals() -> None:
    env = RouterEnv(**SMALL, repeats=2, max_episode_steps=5)
    arrivals = []
    for seed in (0, None, None):
        env.reset(seed=seed)
        arrivals.append(env.requests["arrival"].copy())
    np.testing.assert_array_equal(arrivals[0], arrivals[1])
    assert not np.array_equal(arrivals[0], arrivals[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"senario": "mixed-fleet"}, "unknown option 'senario'"),
        ({"scenario": "mixed-feet"}, "mixed-fleet"),
        ({"scenario": "mixed-fleet", "max_replicas": 2}, "max_replicas is 2, but the scenario has"),
        ({"max_replicas": 1}, "max_replicas must be at least 2, got 1"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"scale_s": 0}, "scale_s must be above 0, got 0"),
        ({"overrides": {"seed": 1}}, "overrides need a scenario"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    for make in (RouterEnv, RouterVectorEnv):
        with pytest.raises(TrimtabError, match=message):
            make(**options)


def test_actions_that_cannot_be() -> None:
    env = RouterEnv(**SMALL)
    env.reset(seed=0)
    with pytest.raises(TrimtabError, match="action must be 0 to"):
        env.step(99)
    many = RouterVectorEnv(2, **SMALL)
    many.reset(seed=0)
    with pytest.raises(TrimtabError, match="actions must be 2 replicas"):
        many.step([0])


def test_ppo_of_stable_baselines_trains_unchanged() -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    env = RouterEnv(**SMALL)
    model = sb3.PPO("MultiInputPolicy", env, n_steps=128, batch_size=64, n_epochs=2, seed=0, device="cpu")
    before = [each.detach().clone() for each in model.policy.parameters()]
    model.learn(256)
    assert model.num_timesteps == 256
    assert any((a != b).any() for a, b in zip(before, model.policy.parameters(), strict=True))
