"""The collapse study: it runs, takes up what it did, measures recovery right, and nothing collapses in it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `learn` is not installed")
pytest.importorskip("safetensors", reason="the extra `learn` is not installed")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def study() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import collapse_study
    finally:
        sys.path.remove(str(BENCHMARKS))
    return collapse_study


@pytest.fixture(scope="module")
def collapse(study: Any) -> Any:
    return sys.modules["_collapse"]


def test_the_whole_study_in_small(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["collapse_study", "--quick", "--out", str(tmp_path)])
    assert study.main() == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["trainings"] == 2 * len(study.VARIANTS)
    for preset in ("original", "optimized", "lossfree"):
        assert 1.0 <= figures[f"busiest_share_ratio_{preset}"] <= study.LIMIT, preset
    assert set(figures["heuristics"]) == set(study.RIVALS)
    assert figures["heuristics"]["least-outstanding"]["p99_ttft"] == 1.0
    assert figures["heuristics"]["random"]["p99_ttft"] > 1.0
    assert len(figures["effects"]) == len(study.STRATEGIES) + len(study.BIASED) + 1
    for name in ("presets", "strategies", "ends"):
        assert (tmp_path / f"collapse-{name}.png").read_bytes().startswith(b"\x89PNG")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-best.safetensors")}
    assert study.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_training_is_the_same_again(collapse: Any, tmp_path: Path) -> None:
    optimized = collapse.VARIANTS[1]
    folders = [tmp_path / name for name in "ab"]
    found = [collapse.outcome(optimized, 3, True, folder, lambda _: None) for folder in folders]
    assert found[0] == found[1]
    assert found[0] != collapse.outcome(optimized, 4, True, tmp_path, lambda _: None)


def test_a_router_that_collapses_is_seen(collapse: Any, tmp_path: Path) -> None:
    """One that prefers the longest queue: its share is far above the limit, and it never recovers."""
    from trimtab.learn.policy import Scorer, save_policy
    from trimtab.routers.policy_file import Policy

    scorer = Scorer(4)
    scorer.lean_on_heuristic(-20.0)
    path = tmp_path / "worst.safetensors"
    save_policy(Policy(scorer.flat(), 4, {}), path)
    found = collapse.judge("learned", True, path)
    assert min(found["share"]) > 3.0
    assert found["recovery_s"] == [collapse.RECOVERY_SECONDS - collapse.SKEW] * 2


def test_recovery_is_the_moment_when_a_tenth_is_left(collapse: Any) -> None:
    """100 requests pile up on replica 0 in three seconds; one leaves every tenth of a second from then on,
    and each other replica holds five throughout: the excess of 95 falls to 9.5 after 86 departures."""
    pile = np.zeros(115, [("replica", "i8"), ("arrival", "f8"), ("finished", "f8")])
    pile["arrival"][:100] = 1.0
    pile["finished"][:100] = collapse.SKEW + 0.1 * np.arange(1, 101) - 0.05
    pile["replica"][100:] = np.repeat([1, 2, 3], 5)
    pile["finished"][100:] = np.nan
    assert collapse.recovery(pile) == pytest.approx(8.6, abs=0.11)
    pile["finished"][:100] = math.inf
    assert collapse.recovery(pile) == collapse.RECOVERY_SECONDS - collapse.SKEW


def test_a_strategy_taken_back_is_the_originals(study: Any, collapse: Any) -> None:
    """Each of the four differs from the optimized table in nothing but parameters that both tables name."""
    variants = {variant.name: variant for variant in collapse.VARIANTS}
    original, optimized = (
        collapse.config_of(variants[name], 0, False).as_dict() for name in ("original", "optimized")
    )
    taken: set[str] = set()
    for name in study.STRATEGIES:
        mine = collapse.config_of(variants[name], 0, False).as_dict()
        for section in ("clone", "ppo", "reward"):
            for key, value in mine[section].items():
                if value != optimized[section][key]:
                    assert value == original[section][key], (name, key)
                    taken.add(f"{section}.{key}")
    apart = {
        f"{section}.{key}"
        for section in ("clone", "ppo", "reward")
        for key, value in original[section].items()
        if value != optimized[section][key]
    }
    assert taken == apart
