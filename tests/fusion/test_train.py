"""Training and comparing as a person does it: the same bits again, resumed or not, and the pages."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `gates` is not installed")

import torch

from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.fusion.collapse import recover, settled
from trimtab.fusion.compare import Plan, Store, compare
from trimtab.fusion.measures import accuracy_of, evaluate, outputs_with
from trimtab.fusion.methods import METHODS
from trimtab.fusion.train import CHECKPOINT, Recipe, Training, begin, fit, resume, run_epoch, save
from trimtab.fusion.views import Views


def views(task: str = "classes", seed: int = 0) -> Views:
    """Two views of 60 samples, the second of them noise; a third with gaps."""
    generator = np.random.default_rng(seed)
    labels = np.arange(60) % 3
    clear = np.eye(3)[labels] + 0.3 * generator.normal(size=(60, 3))
    noise = generator.normal(size=(60, 5, 2))
    there = np.ones((60, 3), bool)
    there[::4, 2] = False
    kinds = labels if task == "classes" else labels - 1.0
    found = {"clear": clear, "noise": noise, "gaps": clear[:, :2]}
    return Views(
        "small",
        {k: v.astype(np.float32) for k, v in found.items()},
        kinds,
        "classes" if task == "classes" else "value",
        there,
    )


def trained(method: str, **changes: Any) -> Training:
    training = begin(
        views(), Recipe(method, **{"epochs": 3, "batch_size": 8, "dominant": "clear", **changes})
    )
    fit(training)
    return training


def same(first: Training, second: Training) -> bool:
    a, b = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a) and first.history == second.history


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_repeats_bit_for_bit(method: str) -> None:
    first = trained(method)
    assert same(first, trained(method))
    assert not same(first, trained(method, seed=1))
    losses = [row["loss"] for row in first.history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["balanced-hide", "normalised", "literal", "agm", "ogm-ge"])
def test_an_interrupted_training_ends_as_one_that_was_not(method: str, tmp_path: Path) -> None:
    recipe = Recipe(method, 4, 8, dominant="clear")
    whole, half = begin(views(), recipe), begin(views(), recipe)
    fit(whole)
    for _ in range(2):
        run_epoch(half)
    save(half, tmp_path)
    run_epoch(half)  # lost
    rest = resume(views(), recipe, tmp_path)
    fit(rest)
    assert same(whole, rest)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    training = trained("balanced")
    save(training, tmp_path)
    with pytest.raises(TrimtabError, match=r"trained with learning_rate = 0\.001, not 0\.1"):
        resume(views(), Recipe("balanced", 3, 8, 0.1, dominant="clear"), tmp_path)
    other = Views("other", views().views, views().labels)
    with pytest.raises(TrimtabError, match="is of 'small', other data"):
        resume(other, training.recipe, tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(TrimtabError, match="damaged"):
        resume(views(), training.recipe, tmp_path)


def test_the_guidance_analysis_counts_every_training_sample() -> None:
    training = trained("plain")
    row = training.history[-1]
    assert sum(row["dominant_counts"]) == len(training.train.labels)
    assert sum(row["mean_weights"]) == pytest.approx(1, abs=1e-6)
    assert row["target"] == []


def test_figures_are_those_of_single_samples() -> None:
    """Accuracy without a modality, sample by sample, with that view's content made irrelevant."""
    training = trained("balanced")
    model, part = training.model, training.test
    figures = evaluate(model, part, "classes")
    model.eval()
    right = 0
    for index in range(len(part.labels)):
        row = part.rows(torch.tensor([index]))
        assert row.present is not None
        present = row.present & torch.tensor([[False, True, True]])
        row.views[0][:] = 1e6  # must not be looked at
        right += int(model(row.views, present).argmax()) == int(row.labels)
    assert figures["without"][0] == pytest.approx(right / len(part.labels))
    assert figures["alone"][0] == accuracy_of(outputs_with(model, part, [0])[0], part.labels, "classes")
    assert sum(figures["shapley_shares"]) == pytest.approx(1)
    assert sum(figures["dominant_counts"]) == len(part.labels)


def test_values_are_judged_by_their_sign() -> None:
    outputs, labels = torch.tensor([[0.2], [-1.0], [0.4], [2.0]]), torch.tensor([1.0, -2.0, 0.0, -1.0])
    assert accuracy_of(outputs, labels, "value") == pytest.approx(2 / 3)  # 0 is neither
    training = begin(views("value"), Recipe("balanced-hide", 2, 8, dominant="clear"))
    fit(training)
    assert training.data.outputs == 1
    with pytest.raises(TrimtabError, match="agm is defined for classes"):
        begin(views("value"), Recipe("agm"))


def test_compare_uses_the_same_halves_and_keeps_its_runs(tmp_path: Path) -> None:
    plan = Plan(("plain", "balanced", "agm"), seeds=3, epochs=2, grid_seeds=1, long_epochs=3)
    said: list[tuple[int, int]] = []
    found = compare([views()], plan, Store(tmp_path), lambda done, total, _: said.append((done, total)))
    assert said == [(index, len(said)) for index in range(len(said))]
    plain = found["data"][0]["methods"]["plain"]
    assert tuple(plain["accuracy_difference"]) == (0, 0, 0)
    assert found["long"]["methods"]["literal"]["epoch"] == [1, 2, 3]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == len(said) - 1  # the grid's standard setting is a run of `balanced`
    again = compare([views()], plan, Store(tmp_path))
    assert json.dumps(again) == json.dumps(found)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    compare(
        [views(seed=0)], Plan(("plain",), seeds=1, epochs=2, grid_seeds=0, long_epochs=0), Store(tmp_path)
    )
    with pytest.raises(TrimtabError, match="must include plain"):
        Plan(("balanced",))
    with pytest.raises(TrimtabError, match="Did you mean 'balanced'"):
        Plan(("plain", "balancd"))


def test_a_collapsed_gate_comes_back() -> None:
    """From 99.4 % to the target within 500 steps, and it stays there."""
    complete = Views("complete", views().views, views().labels)
    found = recover(complete, "clear", Recipe("plain", 2, 8), most_steps=300)
    assert found.start[0] == pytest.approx(0.994, abs=0.002)
    assert found.steps is not None and found.steps <= 200
    looks = [(10, [0.7, 0.3]), (20, [0.5, 0.5]), *((n, [0.71, 0.29]) for n in range(30, 130, 10))]
    assert settled(looks, [0.7, 0.3]) == 30
    assert settled(looks[:-1], [0.7, 0.3]) is None


# --- the commands -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    data = views()
    Path("data").mkdir()
    for name, view in data.views.items():
        np.save(f"data/{name}.npy", view)
    np.save("data/labels.npy", data.labels)
    return tmp_path


def lines() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))


def test_train_writes_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "fusion",
        "train",
        "data",
        "--epochs",
        "3",
        "--batch-size",
        "8",
        "--dominant",
        "clear",
        "--out",
        "run",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Epoch 3 guidance analysis" in said and "modality bias    clear" in said
    assert "page: open run/index.html" in said
    rows = lines()
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["target/clear"]) == pytest.approx(0.7)
    assert list(Path("run/tensorboard").iterdir())
    assert "balanced-hide" in Path("run/index.html").read_text()
    assert main(command) == 2
    assert "--resume goes on from it, --fresh begins again" in capsys.readouterr().err
    assert main([*command, "--epochs", "5", "--resume", "--quiet"]) == 0
    assert len(lines()) == 5
    assert main([*command, "--fresh", "--quiet"]) == 0
    assert len(lines()) == 3
    assert capsys.readouterr().out == ""


def test_compare_prints_a_table_and_makes_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "fusion",
        "compare",
        "data",
        "--seeds",
        "2",
        "--epochs",
        "2",
        "--grid-seeds",
        "1",
        "--long-epochs",
        "3",
    ]
    assert main([*command, "--out", "cmp"]) == 0
    said = capsys.readouterr().out
    assert "dominant: " in said and "balanced-hide keeps mean weights within" in said.replace("\n", " ")
    text = Path("cmp/index.html").read_text()
    for word in ("Does it last?", "Rates and ratios", "0.218", "aggressive", "literal"):
        assert word in text
    assert main([*command, "--out", "cmp", "--json", "--methods", "plain"]) == 0
    assert list(json.loads(capsys.readouterr().out)["data"][0]["methods"]) == ["plain"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nothing"], "unknown data set 'nothing'"),
        (["train", "data", "--method", "ogm"], "Did you mean 'ogm-ge'"),
        (["train", "data", "--epochs", "0"], "epochs and batch size must be 1 or more"),
        (["train", "data", "--dominant", "cler"], "Did you mean 'clear'"),
        (["train", "data", "--method", "literal"], "need to be told the dominant modality"),
        (["train", "data", "--resume"], "no checkpoint in"),
        (["train", "data", "--ratio", "0.5"], "at most 1/3"),
        (["compare", "data", "--methods", "balanced"], "must include plain"),
        (["compare", "data", "--seeds", "0"], "seeds and epochs must be 1 or more"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fusion", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
