"""The example that trains: its stages run, the doctor reads its log, and its run did what it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from trimtab.rlhf.log_files import read_logs
from trimtab.rlhf.measure_ranges import early, late

pytest.importorskip("torch", reason="the extra `learn` is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "rlhf_cpu"
LOGS = Path(__file__).with_name("logs")


@pytest.mark.slow
def test_every_stage_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--quick", "--fault", "top_p", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nats per character" in done.stdout
    assert "of pairs right" in done.stdout
    logs = read_logs([tmp_path])
    assert logs.steps == 3
    assert min(point.value for point in logs.measures["vllm_kl"]) > 0.02
    assert logs.measures["kl"][0].value == pytest.approx(0.0, abs=1e-6)  # it begins as its own reference


def test_the_reward_rose_and_the_policy_stayed_near() -> None:
    measures = read_logs([LOGS / "healthy0-0.log"]).measures
    assert fmean(late(measures["reward"])) > fmean(early(measures["reward"])) + 0.5
    assert fmean(late(measures["judged"])) > 1.3 * measures["judged"][0].value
    assert max(late(measures["kl"])) < 0.1


def test_without_the_penalty_it_did_not() -> None:
    measures = read_logs([LOGS / "kl_target-0.log"]).measures
    assert fmean(late(measures["kl"])) > 1.0
