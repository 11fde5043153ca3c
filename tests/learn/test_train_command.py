"""``trimtab train`` as a person uses it: what it writes, says, asks and refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch", reason="the extra `learn` is not installed")
pytest.importorskip("safetensors", reason="the extra `learn` is not installed")

from learning import SMALL, tiny

from trimtab.cli import main
from trimtab.learn import held_out, ppo

QUICK = ["--steps-per-policy", "64", "--epochs", "2", "--batch-size", "32", "--save-every", "1"]
QUICK += [
    word
    for name, value in SMALL.items()
    if name not in ("ppo.updates", "clone.steps_per_policy", "clone.epochs", "clone.batch_size")
    for word in ("--set", f"{name}={json.dumps(value)}")
]


EVOLUTION = {"generations": 2, "pool": 2, "courses": 2, "pairs": 2}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(held_out, "NUM_SCENARIOS", 2)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny().model_dump(mode="json", exclude_unset=True)))


def train(*more: str) -> int:
    updates = [] if "--updates" in more else ["--updates", "4"]
    return main(["train", "tiny.yaml", "--out", "run", *QUICK, *updates, *more])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def entries(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_from_nothing_to_a_policy_that_compares(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--updates", "2") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "least-outstanding: same choice" in said.err
    assert "of least-pending-prefill's on held-out scenarios" in said.err
    assert (
        "against others: trimtab compare tiny.yaml --routers learned,lmetric,least-pending-prefill "
        "--set router.policy=run/policy.safetensors"
    ) in said.err
    assert {"training.json", "demonstrations.npz", "cloned.json", "policy.safetensors", "policy.json",
            "metrics.csv", "tensorboard", "checkpoints"} <= entries("run")  # fmt: skip
    about = json.loads(Path("run/policy.json").read_text())
    assert about["config"]["ppo"]["updates"] == 2
    assert about["scenario"]["name"] == "tiny"
    flags = ["--set", "router.policy=run/policy.safetensors", "--seeds", "1", "--out", "compared"]
    assert main(["compare", "tiny.yaml", "--routers", "learned,random", *flags]) == 0


def test_the_executor_changes_no_bit() -> None:
    """The same evolution in threads and on processes."""
    from safetensors.numpy import load_file

    evolution = [word for name, value in EVOLUTION.items() for word in ("--set", f"evolve.{name}={value}")]
    assert train("-q", *evolution) == 0
    threads = load_file("run/evolution.safetensors")  # its bytes also hold names, in no fixed order
    Path("run/evolution.safetensors").unlink()
    assert train("-q", *evolution, "--resume", "--executor", "processes", "--workers", "2") == 0
    processes = load_file("run/evolution.safetensors")
    assert threads.keys() == processes.keys() == {"values", "first", "second", "history"}
    assert all(processes[name].tobytes() == table.tobytes() for name, table in threads.items())


def test_a_start_that_finds_a_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("-q") == 0
    before = Path("run/checkpoints/latest.safetensors").read_bytes()
    assert capsys.readouterr() == ("", "")
    assert train() == 2
    assert "--resume goes on from it, --fresh begins again" in capsys.readouterr().err
    assert train("--resume") == 0
    said = capsys.readouterr().err
    assert "going on after update 4 of 4" in said
    assert "same choice" not in said  # the warm start is skipped
    for answer, code, words in [
        ("q\n", 0, ()),
        ("what\ny\n", 0, ("going on after",)),
        ("n\n", 0, ("same choice",)),
    ]:
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert train() == code
        said = capsys.readouterr().err
        assert "of update 4" in said
        assert all(word in said for word in words)
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 5
    assert train("--fresh") == 0
    assert "are there" not in capsys.readouterr().err
    again = Path("run/checkpoints/latest.safetensors").read_bytes()
    assert len(again) == pytest.approx(len(before), rel=0.05)


def test_damage_offers_the_previous_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("-q") == 0
    latest = Path("run/checkpoints/latest.safetensors")
    latest.write_bytes(latest.read_bytes()[:-9])
    assert train("--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is damaged, or is none; the previous one, of update 3, is whole: --resume --from previous" in said
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert train() == 0
    said = capsys.readouterr().err
    assert "previous.safetensors, of update 3" in said
    assert "going on after update 3 of 4" in said
    latest.write_bytes(b"")
    assert train("--resume", "--from", "previous", "-q") == 0
    assert train("--resume", "-q") == 0


def test_interrupted_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = ppo._loss

    def interrupted(learner: Any, *rest: Any) -> Any:
        if learner.update == 2:
            raise KeyboardInterrupt
        return loss(learner, *rest)

    monkeypatch.setattr(ppo, "_loss", interrupted)
    assert train() == 130
    said = capsys.readouterr().err
    assert "saved after update 2 in run; the same command with --resume goes on from there" in said
    monkeypatch.setattr(ppo, "_loss", loss)
    assert train("--resume", "-q") == 0


def test_stages_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--until", "demonstrations") == 0
    assert "the same command without --until goes on from there" in capsys.readouterr().err
    assert train("--until", "cloning") == 0
    said = capsys.readouterr().err
    assert "demonstrations of least-outstanding are there" in said
    assert "cloned.safetensors" in entries("run")
    assert "checkpoints" not in entries("run")


def test_without_teachers(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--updates", "1", "--set", "clone.teachers=[]") == 0
    assert "no teachers: PPO begins where the policy does" in capsys.readouterr().err
    assert not {"cloned.json", "demonstrations.npz"} & entries("run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--preset", "optimised"],
            "unknown preset 'optimised'; allowed: lossfree, optimized, original.",
        ),
        (["--set", "ppo.update=3"], "Did you mean 'ppo.updates'?"),
        (["--set", "ppo.updates=many"], "ppo.updates must be int, as its default "),
        (["--updates", "0"], "ppo.updates must be 1 or more, got 0"),
        (["--epochs", "-1"], "clone.epochs must be 1 or more, got -1"),
        (["--save-every", "0"], "--save-every must be 1 or more, got 0"),
        (["--seed", "-1"], "seed must be 0 or more, got -1"),
        (["--set", "clone.teachers=lmetrc"], "unknown teacher 'lmetrc'"),
        (["--set", "reward.form=dleta"], "Did you mean 'delta'?"),
        (["--set", "ppo.min_temperature=0.0"], "ppo.min_temperature must be above 0"),
        (["--until", "clonng"], "unknown stage 'clonng'; allowed: cloning, demonstrations, evolution, ppo."),
        (["--resume"], "no checkpoint in run/checkpoints; leave --resume out to begin"),
        (["--from", "latst"], "unknown checkpoint 'latst'; allowed: best, latest, previous."),
        (["--from", "best"], "no best checkpoint in run/checkpoints; there: none"),
        (["--executor", "dask"], "unknown executor 'dask'; allowed: processes, ray."),
        (["--address", "10.0.0.1:6379"], "--address 10.0.0.1:6379 needs --executor ray"),
        (["--workers", "0"], "--workers must be 1 or more, got 0"),
        (["--from", "best", "--fresh"], "--from says where to go on, --fresh to begin again"),
    ],
)
def test_wrong_input_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny.yaml", "--out", "run", *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("run").exists()


def test_foreign_things_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "azure-cnv", "--out", "run"]) == 2
    assert "Did you mean 'azure-conv'?" in capsys.readouterr().err
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("")
    assert main(["train", "--out", "mine"]) == 2
    assert "mine exists and holds no training.json" in capsys.readouterr().err
    assert train("-q", "--updates", "1") == 0
    assert train("--resume", "--updates", "3") == 2
    assert "was trained with ppo.updates = 1, not 3" in capsys.readouterr().err


def test_without_wandb_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train("--wandb", "routers") == 2
    assert "pip install 'trimtab[wandb]'" in capsys.readouterr().err


def test_wandb_gets_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[int] = []

    class Run:
        def log(self, facts: dict[str, float], step: int) -> None:
            assert facts["charts/decisions"] > 0
            logged.append(step)

        def finish(self) -> None:
            logged.append(-1)

    class Package:
        @staticmethod
        def init(**_: Any) -> Run:
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Package)
    assert train("-q", "--wandb", "routers") == 0
    assert logged == [1, 2, 3, 4, -1]


def test_without_torch_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert train() == 2
    assert "trimtab train needs torch: pip install 'trimtab[learn]'" in capsys.readouterr().err
