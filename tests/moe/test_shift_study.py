"""The study in small: interrupted and gone on with, and the benchmark's figures and picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trimtab.moe import shift
from trimtab.moe.shift import Stream, ground_of, run
from trimtab.moe.store import Parts
from trimtab.moe.text import Corpus
from trimtab.moe.training import Recipe, Trained

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "moe_shift.py"


def test_a_finished_part_is_not_served_again(
    trained: Trained, corpus: Corpus, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, parts = Stream(1, 3, 1, 2), Parts(tmp_path, "key")
    ground, texts = ground_of(trained, corpus, recipe, batches=1), stream.texts(corpus, recipe)
    first = run(["fixed", "ewma"], ground, texts, stream, parts)
    assert np.isnan(first["ewma"].divergence).tolist() == [True, True, False, False, True]
    assert first["fixed"].divergence[2:4] == pytest.approx(0.0, abs=1e-6)
    monkeypatch.setattr(shift, "serve", None)
    again = run(["fixed", "ewma"], ground, texts, stream, parts)
    assert np.array_equal(first["ewma"].loads, again["ewma"].loads)


@pytest.mark.slow
def test_the_quick_study_prints_its_figures(tmp_path: Path) -> None:
    picture = tmp_path / "shift.png"
    command = [sys.executable, str(BENCHMARK), "--quick", "--runs", str(tmp_path), "--plot", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["worked_max_violation"] == pytest.approx(4.6)
    assert found["excess_removed_global"] > 0.2 and found["curves"]["plain"][0]["removed_batch"] == 0.0
    assert picture.read_bytes().startswith(b"\x89PNG")
