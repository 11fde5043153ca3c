"""No stage of a training, of any seed, plays what another one plays, or what routers are judged on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `learn` is not installed")
pytest.importorskip("safetensors", reason="the extra `learn` is not installed")

from learning import SMALL, silent  # noqa: E402

from trimtab.learn import scenarios  # noqa: E402
from trimtab.learn.demonstrations import demonstrate  # noqa: E402
from trimtab.learn.evolve import lay_courses  # noqa: E402
from trimtab.learn.held_out import FIRST_HELD_OUT, NUM_SCENARIOS, HeldOut  # noqa: E402
from trimtab.learn.policy import Scorer  # noqa: E402
from trimtab.learn.ppo import new_learner, places, train_update  # noqa: E402
from trimtab.learn.presets import get_preset, override  # noqa: E402
from trimtab.learn.rollout import Acting  # noqa: E402
from trimtab.learn.scenarios import EASY, FIRST_SEED, STAGES, Draw, Level, stream  # noqa: E402
from trimtab.robustness import scenario_of, suite  # noqa: E402
from trimtab.scenario import Scenario  # noqa: E402

SEEDS = (0, 1)
UPDATES = 3


def drawing(stage: Callable[[Draw], Any]) -> list[Scenario]:
    """All that a stage draws when it runs; of fleets whose size does not matter here, the smallest."""
    drawn: list[Scenario] = []

    def draw(rng: np.random.Generator, level: Level) -> Scenario:
        del level
        drawn.append(scenarios.draw_scenario(rng, EASY))
        return drawn[-1]

    stage(draw)
    return drawn


def trained(seed: int) -> dict[str, list[Scenario]]:
    config = override(get_preset("lossfree"), SMALL | {"seed": seed, "clone.steps_per_policy": 8})

    def reinforce(draw: Draw) -> None:
        learner = new_learner(config, Scorer(config.hidden), draw)
        for _ in range(UPDATES):
            train_update(learner)

    def show(draw: Draw) -> None:
        for number, teacher in enumerate(("random", "least-outstanding")):
            demonstrate(teacher, number, config, draw, silent)

    return {
        f"ppo {seed}": drawing(reinforce),
        f"demonstrations {seed}": drawing(show),
        f"evolution {seed}": drawing(lambda draw: lay_courses(4, seed, draw)),
    }


def content(scenario: Scenario) -> str:
    """What it is but for its seed, which two draws could share by chance."""
    return scenario.model_copy(update={"seed": 0}).digest()


def test_no_scenario_is_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "saturation", lambda data: 10.0)
    blank = Acting(Scorer(16).flat(), 16)
    drawn = {name: found for seed in SEEDS for name, found in trained(seed).items()}
    drawn["held out"] = drawing(lambda draw: HeldOut(draw).measure(blank))
    for name, found in drawn.items():
        assert len(found) >= 4
        assert len({content(each) for each in found}) == len(found), name
        assert min(each.seed for each in found) >= FIRST_SEED
    drawn["suite"] = [scenario_of(cell, 10.0) for cell in suite()]
    assert max(each.seed for each in drawn["suite"]) + 1_000 < FIRST_HELD_OUT
    for one, other in combinations(drawn, 2):
        assert not {content(each) for each in drawn[one]} & {content(each) for each in drawn[other]}, (
            one,
            other,
        )


def test_streams_are_apart_for_as_long_as_anybody_trains() -> None:
    """First numbers of 1,000 updates of PPO, of demonstrations, of courses and held-out scenarios."""
    config = override(get_preset("lossfree"), {"seed": 1})
    learner = new_learner(config, Scorer(config.hidden))
    generators = [np.random.default_rng(FIRST_HELD_OUT + index) for index in range(NUM_SCENARIOS)]
    for seed in SEEDS:
        generators += [np.random.default_rng(FIRST_SEED * (1 + seed) + index) for index in range(240)]
        for update in range(1_000):
            learner.config, learner.update = override(config, {"seed": seed}), update
            generators += [stream("ppo", *place) for place in places(learner)]
        generators += [
            stream("demonstrations", seed, number, index) for number in range(4) for index in range(60)
        ]
    firsts = [int(each.integers(2**63)) for each in generators]
    assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize("stage", STAGES)
def test_tosses_are_no_scenarios(stage: str) -> None:
    """A number more is another stream, also where it is zero."""
    firsts = {int(stream(stage, 0, *[0] * length).integers(2**63)) for length in range(6)}
    assert len(firsts) == 6
