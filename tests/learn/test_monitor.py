"""What is logged has stable names, and a collapse is said once, with what to change."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `learn` is not installed")
pytest.importorskip("safetensors", reason="the extra `learn` is not installed")

from learning import always, small_run, tiny

from trimtab.learn.facts import busiest_share, queue_variance
from trimtab.learn.held_out import HeldOut
from trimtab.learn.measures import COLUMNS, MEASURES, NORMAL, Watch
from trimtab.learn.monitor import Monitor
from trimtab.learn.policy import Scorer
from trimtab.learn.ppo import Learner, new_learner, train_update
from trimtab.learn.presets import TrainConfig, override
from trimtab.learn.rollout import Acting, play
from trimtab.learn.scenarios import build_episode


def learner_of(folder: Path) -> Learner:
    config = small_run(folder).config
    return new_learner(config, Scorer(config.hidden), always(tiny()))


def test_names_are_those_that_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.learn.held_out.NUM_SCENARIOS", 2)
    learner = learner_of(tmp_path)
    facts = train_update(learner) | HeldOut(always(tiny())).measure(learner.acting())
    assert set(facts) <= set(COLUMNS)
    assert set(MEASURES) <= set(facts)
    assert all(normal.measure in MEASURES for normal in NORMAL)


def test_csv_and_tensorboard_hold_every_update(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    learner = learner_of(tmp_path)
    train_update(learner)
    with Monitor(tmp_path, learner.config, learner.history) as monitor:
        monitor.log(2, train_update(learner))
    with (tmp_path / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["update"] for row in rows] == ["1", "2"]
    for row, facts in zip(rows, learner.history, strict=True):
        assert float(row["losses/policy_loss"]) == pytest.approx(facts["losses/policy_loss"], rel=1e-5)
        assert row["eval/goodput"] == ""
    board = events.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    finite = {name for name, value in learner.history[1].items() if np.isfinite(value)}
    assert set(board.Tags()["scalars"]) == finite
    assert [event.step for event in board.Scalars("kl_ref")] == [2]


def test_collapse_is_said_once_with_its_remedy() -> None:
    watch = Watch(override(TrainConfig(), {"ppo.plays": 1}))
    good = {normal.measure: max(normal.least, 0.1) for normal in NORMAL}
    assert watch.look(1, good) == []
    (line,) = watch.look(2, {**good, "route/share_max_equal": 3.0})
    assert line == (
        "update 2: route/share_max_equal is 3, normal is at most 1.3: "
        "one replica is sent more than its share of an equal fleet; "
        "raise ppo.kl_ref_coef_initial, reward.balance_penalty_weight or ppo.bias_rate"
    )
    assert watch.look(3, {**good, "route/share_max_equal": 3.1}) == []
    assert watch.look(4, good) == []
    assert len(watch.look(5, {**good, "route/share_max_equal": 3.1})) == 1
    assert "is nan" in watch.look(6, {**good, "losses/policy_loss": float("nan")})[0]
    assert watch.look(7, {**good, "losses/explained_variance": -1.0}) == []
    assert "critic" in watch.look(30, {**good, "losses/explained_variance": -1.0})[0]


def test_remedies_are_parameters() -> None:
    for normal in NORMAL:
        names = [word.strip(",;") for word in normal.change.split() if word.startswith(("ppo.", "reward."))]
        assert names
        for name in names:
            section, _, parameter = name.partition(".")
            assert hasattr(getattr(TrainConfig(), section), parameter), name


def test_shares_and_queues_are_counted() -> None:
    scenario = tiny([{"device": "h100", "count": 3}], requests=90)
    blank = Acting(np.zeros_like(Scorer(16).flat()), 16, 1.0)
    episode = play(scenario, *build_episode(scenario), blank)
    counts = np.bincount(episode.state.requests["replica"], minlength=3)
    assert busiest_share(episode) == pytest.approx(3 * counts.max() / 90)
    assert np.isnan(busiest_share(play(tiny(), *build_episode(tiny()), blank)))
    assert queue_variance(episode) > 0
