"""The last stage goes on where it was interrupted, to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("safetensors", reason="training needs safetensors")

from trimtab.learn import polish as stage
from trimtab.learn.policy import Scorer
from trimtab.learn.presets import EvolveConfig, TrainConfig

SMALL = EvolveConfig(generations=10, pool=2, courses=1, pairs=2)
CONFIG = replace(TrainConfig(), hidden=4, seed=3, evolve=SMALL)


@pytest.fixture(autouse=True)
def short_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.learn.scenarios.MOST", 200)
    monkeypatch.setattr("trimtab.learn.scenarios.FEWEST", 100)


def start() -> Any:
    scorer = Scorer(4, seed=3)
    scorer.lean_on_heuristic(20.0)
    return scorer.flat()


def quiet(*_: object) -> None:
    pass


def test_an_interrupted_evolution_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = stage.polish(tmp_path / "whole", CONFIG, start(), quiet)

    def stop(done: int, total: int, latest: str) -> None:
        if done == 7 and not latest:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.polish(tmp_path / "cut", CONFIG, start(), stop)
    assert stage._load(tmp_path / "cut" / stage.FILE, stage.digest(CONFIG, start()), 4).generation == 5
    resumed = stage.polish(tmp_path / "cut", CONFIG, start(), quiet)
    assert resumed.values.tolist() == whole.values.tolist()
    assert not np.array_equal(resumed.values, stage.begin(start(), 4).values)
    told = (tmp_path / "whole" / "evolution.csv").read_text()
    assert told == (tmp_path / "cut" / "evolution.csv").read_text() and len(told.splitlines()) == 11


def test_another_run_and_a_damaged_file_are_not_gone_on_with(tmp_path: Path) -> None:
    stage.polish(tmp_path, CONFIG, start(), quiet)
    path, mark = tmp_path / stage.FILE, stage.digest(CONFIG, start())
    assert stage._load(path, mark, 4) is not None
    other = replace(CONFIG, evolve=replace(SMALL, sigma=0.5))
    assert stage._load(path, stage.digest(other, start()), 4) is None
    path.write_bytes(path.read_bytes()[:50])
    assert stage._load(path, mark, 4) is None
