"""The benchmark runner: what it accepts and what RESULTS.md would say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_all", BENCHMARKS / "run_all.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_target_has_its_benchmark() -> None:
    for name in runner().TARGETS:
        assert (BENCHMARKS / f"{name}.py").is_file(), name


def test_unknown_names_are_refused() -> None:
    command = [sys.executable, str(BENCHMARKS / "run_all.py"), "milion"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown benchmark 'milion'; allowed: balance_laws")


def test_the_table_says_what_was_reached() -> None:
    run_all = runner()
    million = "\n".join(run_all.table("million", {"name": "million", "seconds": 61.5, "peak_gb": 1.25}))
    assert "| seconds | 61.5 | <= 60 | missed |" in million
    assert "| peak_gb | 1.25 | <= 2 | reached |" in million
    theory = "\n".join(run_all.table("queueing_theory", {"cases": 3, "inside": 3, "a": {"exact": 0.5}}))
    assert "| inside | 3 | >= 3 | reached |" in theory
    assert "| a | exact 0.5 |" in theory


def test_what_cannot_run_here_keeps_its_last_result(tmp_path: Path) -> None:
    run_all = runner()
    run_all.RESULTS = tmp_path / "RESULTS.md"
    skipped = {"name": "gpu_iterations", "skipped": "no CUDA GPU"}
    assert "| skipped | no CUDA GPU |  |  |" in run_all.section("gpu_iterations", skipped)
    old = run_all.table("gpu_iterations", {"ttft_error": 0.2}) + run_all.table("million", {"seconds": 50})
    run_all.RESULTS.write_text("# Results\n" + "\n".join(old) + "\n")
    kept = run_all.section("gpu_iterations", skipped)
    assert "| ttft_error | 0.2 | <= 0.15 | missed |" in kept
    assert not any("million" in line for line in kept)
    assert "| ttft_error | 0.1 | <= 0.15 | reached |" in run_all.section(
        "gpu_iterations", {"ttft_error": 0.1}
    )
