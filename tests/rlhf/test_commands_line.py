"""`trimtab rlhf` as a person calls it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.rlhf.test_check import HYBRID, LARGE
from trimtab.cli import main


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlhf", "plan", "--actor", "llama-3-8b", "--prompts", "128", "--top", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    best = shown["plans"][0]
    assert len(shown["plans"]) == 2
    assert best["gpus"] == 8
    assert best["fits"] is True
    assert best["step_s"] <= shown["plans"][1]["step_s"]
    assert best["command"][:3] == ["python3", "-m", "openrlhf.cli.train_ppo_ray"]
    parts = best["memory_gib"]["all"]["train actor"]
    assert {"weights", "optimiser", "activations", "logits"} <= set(parts)
    assert shown["fitting"] <= shown["legal"] <= shown["considered"]


def test_plan_then_check_and_simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.sh"
    command = ["rlhf", "plan", "--actor", "llama-3-8b", "--prompts", "128", "--openrlhf", "0.9.7"]
    assert main([*command, "--script", str(path)]) == 0
    told = capsys.readouterr().out
    assert "1:1:1" in told
    assert "Command of plan 1" in told
    assert main(["rlhf", "check", str(path), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["runs"] is True
    assert checked["openrlhf"] == "0.9.7"
    assert checked["gpus"] == 8
    out = tmp_path / "step"
    assert main(["rlhf", "simulate", str(path), "--out", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((out / "step.json").read_text())
    assert (out / "timeline.png").read_bytes().startswith(b"\x89PNG")
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["tid"] for event in spans} == set(range(8))
    assert {"generation", "train actor", "train critic"} <= {event["name"] for event in spans}
    # nobody does two things at once
    for gpu in range(8):
        mine = sorted((event["ts"], event["ts"] + event["dur"]) for event in spans if event["tid"] == gpu)
        assert all(first[1] <= second[0] + 1 for first, second in pairwise(mine))


def test_check_says_that_it_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlhf", "check", LARGE, "--nodes", "6", "--openrlhf", "0.9.7"]) == 1
    told = capsys.readouterr().out
    assert "asks for 64 GPUs" in told
    assert "Mended, 48 GPUs" in told


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlhf", "plan", "--explain", "--kl_target"]) == 0
    told = capsys.readouterr().out
    assert "--algo.kl.target  (OpenRLHF 0.10.2 on)" in told
    assert "mean per token" in told
    assert main(["rlhf", "plan", "--explain", "algo.kl.target", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["default"] is None


def test_every_explanation_is_of_a_flag() -> None:
    from trimtab.rlhf.explain import _texts, explain
    from trimtab.rlhf.flags import all_flags

    for name in _texts():
        assert name in all_flags()
        assert explain(name).does


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan"], "give the model to train: --actor NAME"),
        (["plan", "--actor", "llama-3-9b"], "unknown model or config.json path 'llama-3-9b'"),
        (["plan", "--actor", "llama-3-8b", "--openrlhf", "0.7"], "allowed: 0.8.6 to 0.11.x"),
        (["plan", "--actor", "llama-3-8b", "--algorithm", "grpo", "--critic", "phi-2"], "grpo has no critic"),
        (["plan", "--explain", "zero_stag"], "Did you mean 'zero_stage'"),
        (["check", "nothing.sh"], "'nothing.sh' holds no flag and is no file"),
        (["simulate", f"{HYBRID} --ring_attn_size 3"], "the command would not run: --ring_attn_size 3"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlhf", *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
