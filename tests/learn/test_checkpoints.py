"""Training goes on bit for bit, and does not go on from what is damaged or foreign."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra `learn` is not installed")
pytest.importorskip("safetensors", reason="the extra `learn` is not installed")

from learning import always, no_bar, small_run, tiny  # noqa: E402

from trimtab.errors import TrimtabError  # noqa: E402
from trimtab.learn import held_out, ppo  # noqa: E402
from trimtab.learn.checkpoints import Best, Checkpoints  # noqa: E402
from trimtab.learn.policy import Scorer  # noqa: E402
from trimtab.learn.ppo import Learner, new_learner, train_update  # noqa: E402
from trimtab.learn.train import Run, Screen, train  # noqa: E402
from trimtab.routers.policy_file import load_policy  # noqa: E402

TESTS = Path(__file__).parents[1]
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from learning import no_bar, small_run
from trimtab.learn import held_out, ppo
from trimtab.learn.train import Screen, train

held_out.NUM_SCENARIOS = 2
loss, calls = ppo._loss, []
def dying(learner, *rest):
    if learner.update == 2:
        calls.append(1)
        if len(calls) == 2:  # the first step of the third update is done
            os.kill(os.getpid(), signal.SIGKILL)
    return loss(learner, *rest)
ppo._loss = dying
train(small_run(Path(sys.argv[1])), Screen(no_bar, print))
"""


@pytest.fixture(autouse=True)
def _few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "NUM_SCENARIOS", 2)


def quiet(notes: list[str] | None = None) -> Screen:
    return Screen(no_bar, [].append if notes is None else notes.append)


def state_of(run: Run, name: str = "latest") -> Learner:
    return run.checkpoints.load(name, run.config, always(tiny()))[0]


def assert_same(one: Learner, other: Learner) -> None:
    for module in ("scorer", "critic", "reference"):
        theirs = getattr(other, module).state_dict()
        for name, value in getattr(one, module).state_dict().items():
            assert torch.equal(value, theirs[name]), f"{module}.{name}"
    for index, state in one.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other.optimizer.state_dict()["state"][index][name])
    for number in ("update", "temperature", "kl_coef", "reward_scale", "decisions_seen"):
        assert getattr(one, number) == getattr(other, number), number
    timeless = [
        [{**facts, "time/sps": 0, "time/sps_simulated": 0} for facts in each.history] for each in (one, other)
    ]
    assert json.dumps(timeless[0]) == json.dumps(timeless[1])


def timeless(history: list[dict[str, float]]) -> str:
    kept = [{name: value for name, value in facts.items() if "time/" not in name} for facts in history]
    return json.dumps(kept)


def test_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(TESTS)]
    dead = subprocess.run(command, capture_output=True, text=True, check=False)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    whole, killed = small_run(tmp_path / "whole"), small_run(tmp_path / "killed")
    assert state_of(killed).update == 2
    train(whole, quiet())
    notes: list[str] = []
    written = train(killed, quiet(notes), resume="latest")
    assert notes[0] == "going on after update 2 of 4"
    assert state_of(whole).update == 4
    assert_same(state_of(whole), state_of(killed))
    assert_same(state_of(whole, "best"), state_of(killed, "best"))
    assert (load_policy(written).values == load_policy(whole.path("policy.safetensors")).values).all()
    rows = [run.path("metrics.csv").read_text().splitlines() for run in (whole, killed)]
    assert [line.split(",")[0] for line in rows[0]] == ["update", "1", "2", "3", "4"]
    assert [line.split(",")[:10] for line in rows[0]] == [line.split(",")[:10] for line in rows[1]]


def test_interrupted_in_the_middle_saves_the_update_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(**{**vars(small_run(tmp_path / "run")), "save_every": 100})
    loss = ppo._loss

    def interrupted(learner: Learner, *rest: Any) -> Any:
        if learner.update == 3:
            raise KeyboardInterrupt
        return loss(learner, *rest)

    monkeypatch.setattr(ppo, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(run, quiet())
    assert state_of(run).update == 3
    monkeypatch.setattr(ppo, "_loss", loss)
    train(run, quiet(), resume="latest")
    whole = Run(**{**vars(small_run(tmp_path / "whole")), "save_every": 100})
    train(whole, quiet())
    assert_same(state_of(whole), state_of(run))


def test_stages_are_taken_up(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    assert train(run, quiet(), until="demonstrations").name == "demonstrations.npz"
    notes: list[str] = []
    cloned = train(run, quiet(notes), until="cloning")
    assert notes[0] == "demonstrations of least-outstanding are there"
    assert notes[1].startswith("least-outstanding: same choice")
    assert load_policy(cloned).about["agreement"][0]["teacher"] == "least-outstanding"
    notes.clear()
    train(run, quiet(notes))
    assert "the clone is there" in notes
    learner = state_of(run, "latest")
    assert (learner.reference.flat() == load_policy(cloned).values).all()


def test_evolution_follows_and_the_better_policy_is_published(tmp_path: Path) -> None:
    few = {"evolve__generations": 2, "evolve__pool": 2, "evolve__courses": 2, "evolve__pairs": 2}
    run = small_run(tmp_path, **few)
    assert train(run, quiet(), until="ppo") == run.path("policy.safetensors")
    notes: list[str] = []
    train(run, quiet(notes), resume="latest")
    (line,) = [line for line in notes if line.startswith("evolution: ")]
    about = load_policy(run.path("policy.safetensors")).about
    best = run.checkpoints.load("best", run.config, always(tiny()))[1].value
    assert about["stage"] == ("evolution" if float(line.split()[1]) < round(best, 3) else "ppo")


# --- the file -----------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Checkpoints, Learner]:
    run = small_run(tmp_path)
    learner = new_learner(run.config, Scorer(run.config.hidden), always(tiny()))
    train_update(learner)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.write(checkpoints.pack(learner, Best()))
    train_update(learner)
    checkpoints.write(checkpoints.pack(learner, Best(0.5, 1)))
    return checkpoints, learner


def test_all_that_changes_is_kept(trained: tuple[Checkpoints, Learner]) -> None:
    checkpoints, learner = trained
    again, best = checkpoints.load("latest", learner.config, learner.draw)
    assert_same(learner, again)
    assert best == Best(0.5, 1)
    assert checkpoints.present() == ["latest", "previous"]
    kept = {"scorer", "critic", "reference", "optimizer", "history", "update", "temperature", "kl_coef",
            "reward_scale", "decisions_seen"}  # fmt: skip
    given = {"config", "draw"}
    assert {each.name for each in fields(Learner)} == kept | given, "is the new field in the checkpoint?"


@pytest.mark.parametrize("where", [5, 100, -3])
def test_damage_is_noticed_and_the_previous_one_offered(
    trained: tuple[Checkpoints, Learner], where: int
) -> None:
    checkpoints, learner = trained
    content = bytearray(checkpoints.path("latest").read_bytes())
    content[where] ^= 1
    checkpoints.path("latest").write_bytes(bytes(content))
    with pytest.raises(TrimtabError, match=r"is damaged.*of update 1, is whole: --resume --from previous"):
        checkpoints.load("latest", learner.config, learner.draw)
    again, _ = checkpoints.load("previous", learner.config, learner.draw)
    assert again.update == 1
    checkpoints.path("previous").write_bytes(b"")
    with pytest.raises(TrimtabError, match="no other is whole: --fresh begins again"):
        checkpoints.load("latest", learner.config, learner.draw)


def test_foreign_checkpoints_are_refused(
    trained: tuple[Checkpoints, Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, learner = trained
    other = small_run(checkpoints.folder, ppo__clip_high=0.5).config
    with pytest.raises(TrimtabError, match=r"was trained with ppo\.clip_high = 0\.28, not 0\.5"):
        checkpoints.load("latest", other, learner.draw)
    with pytest.raises(TrimtabError, match="of another scenario"):
        Checkpoints(checkpoints.folder, "abc").load("latest", learner.config, learner.draw)
    monkeypatch.setattr("trimtab.learn.checkpoints.FEATURES", {"else": ("s", "something else")})
    with pytest.raises(TrimtabError, match="another version of trimtab"):
        checkpoints.load("latest", learner.config, learner.draw)


def test_a_kill_between_two_writes_leaves_one(trained: tuple[Checkpoints, Learner]) -> None:
    checkpoints, learner = trained
    checkpoints.path("latest").replace(checkpoints.path("previous"))
    assert checkpoints.present() == ["previous"]
    assert checkpoints.load("previous", learner.config, learner.draw)[0].update == 2


def test_threads_change_no_bit(tmp_path: Path) -> None:
    """Training computes on one thread whatever torch was set to, and sets it back."""
    before, seen, found = torch.get_num_threads(), [], []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run = small_run(tmp_path / str(threads), ppo__updates=1)
        written = train(run, Screen(no_bar, lambda _: seen.append(torch.get_num_threads())))
        assert torch.get_num_threads() == threads
        found.append(written.read_bytes())
    torch.set_num_threads(before)
    assert set(seen) == {1}
    assert found[0] == found[1]
