"""``trimtab workload``: what a person sees."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from trimtab.cli.workload import app
from trimtab.errors import TrimtabError
from trimtab.workload import load_mix


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture
def small_trace(tmp_path):
    rng = np.random.default_rng(0)
    rows = zip(np.cumsum(rng.random(400)), rng.integers(1, 99, 400), rng.integers(1, 9, 400), strict=True)
    path = tmp_path / "small.csv"
    path.write_text("t,in,out\n" + "".join(f"{t:.6f},{p},{d}\n" for t, p, d in rows))
    return path


COLUMNS = ("--column", "arrived_at=t", "--column", "prefill=in", "--column", "decode=out")


def test_fit_writes_a_mix_and_prints_its_errors(small_trace, tmp_path):
    out = tmp_path / "mine.json"
    printed = run("fit", small_trace, "--out", out, "--source", "made up", *COLUMNS)
    assert "mine: fitted against real" in printed
    assert "KS, prompt" in printed
    assert "400 requests" in printed
    assert load_mix(str(out)).source == "made up"
    assert load_mix(str(out)).requests == 400
    assert [path.name for path in tmp_path.glob("mine*")] == ["mine.json"]


def test_show_a_trace_a_mix_and_a_bundled_mix(small_trace, tmp_path):
    printed = run("show", small_trace, *COLUMNS)
    assert "400 requests" in printed
    assert "requests/s" in printed
    assert "p99" in printed
    printed = run("show", "azure-code-2023")
    assert "fitted mix" in printed
    assert "CC-BY" in printed
    assert "8,819" in printed
    assert "no arrival times" in run("show", "arxiv-summarization")


def test_show_counts_failed_requests(tmp_path):
    path = tmp_path / "b.csv"
    path.write_text("Timestamp,Model,Request tokens,Response tokens\n5,G,1,2\n6,G,1,0\n9,G,1,2\n")
    assert "1 failed requests" in run("show", path)


def test_errors_reach_the_caller(small_trace, tmp_path):
    for arguments, message in (
        (("show", "azure-cov-2023"), "Did you mean 'azure-conv-2023'"),
        (("show", tmp_path / "none.csv"), "No such file"),
        (("fit", small_trace, "--out", tmp_path / "x.txt"), "must end in .json"),
        (("fit", small_trace, "--out", tmp_path / "no" / "x.json"), "there is no folder"),
        (("fit", small_trace, "--out", tmp_path / "x.json"), "no known trace"),
        (("fit", small_trace, "--out", tmp_path / "x.json", "--column", "prefill"), "KEY=NAME"),
    ):
        with pytest.raises(TrimtabError, match=message):
            run(*arguments)
    assert not (tmp_path / "x.json").exists()
