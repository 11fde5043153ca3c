"""`trimtab profile` as it is run: to the end, killed, interrupted, refused."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.exectime.profile.points import ORDER, Point, cpu_grid, points
from trimtab.exectime.profile.shapes import TINY, shard_of
from trimtab.exectime.profile_schema import COLUMNS, read_profile

torch = pytest.importorskip("torch", reason="profiling is optional: pip install 'trimtab[profile]'")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

COMMAND = [sys.executable, "-c", "import sys; from trimtab.cli import main; sys.exit(main())", "profile"]
TIMES = ("median_ms", "min_ms", "repeats")


def shapes_in(path: Path) -> list[tuple[str, ...]]:
    """The rows without their times."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [tuple(row[name] for name in COLUMNS if name not in TIMES) for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted profile of the tiny model."""
    path = tmp_path_factory.mktemp("whole") / "profile.csv"
    assert main(["profile", "--cpu", "--quiet", "--out", str(path)]) == 0
    return path


def test_a_whole_profile(whole: Path) -> None:
    profile = read_profile(whole)
    listed = points(shard_of(TINY, 1), cpu_grid(), 10_000, graphs=False)
    assert len(profile) == len(listed)
    absent = {"moe_router", "moe_grouped", "all_reduce", "all_to_all", "send_recv"}
    assert set(profile.words["operator"]) == set(ORDER) - absent
    assert (profile.numbers["min_ms"] <= profile.numbers["median_ms"]).all()
    assert (profile.numbers["repeats"] == cpu_grid().repeats).all()
    assert set(profile.words["device"]) == {"cpu"}


def test_a_mixture_and_its_shard(mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.csv"
    call = ["profile", "--cpu", "--model", str(mixture), "--tp", "2", "--out", str(out)]
    assert main([*call, "--operators", "moe_router,moe_grouped,lm_head"]) == 0
    profile = read_profile(out)
    assert set(profile.words["operator"]) == {"moe_router", "moe_grouped", "lm_head"}
    grouped = profile.where(profile.words["operator"] == "moe_grouped")
    assert set(grouped.numbers["n"]) == {16}
    assert set(profile.numbers["tp"]) == {2}
    assert "10 points measured on cpu" in capsys.readouterr().err
    assert main(call) == 0  # the rest
    said = capsys.readouterr().err
    assert "10 were there" in said
    assert "not measured: all_reduce, all_to_all, send_recv; that takes 2 GPUs" in said


def test_an_operator_that_torch_refuses_does_not_stop_the_others(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Experts of an odd width: torch's grouped product wants rows of whole 16 bytes."""
    mixture.write_text(
        mixture.read_text().replace('"moe_intermediate_size": 32', '"moe_intermediate_size": 33')
    )
    out = tmp_path / "profile.csv"
    assert main(["profile", "--cpu", "--model", str(mixture), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "could not be measured: moe_grouped (" in said
    measured = set(read_profile(out).words["operator"])
    assert "moe_grouped" not in measured
    assert {"moe_router", "lm_head", "cpu_overhead"} <= measured


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends and process.poll() is None:
        if path.is_file() and path.read_text().count("\n") > count:
            return
        time.sleep(0.002)


def test_killed_and_resumed_it_holds_the_same_points(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.csv"
    process = subprocess.Popen([*COMMAND, "--cpu", "--out", str(out)], stderr=subprocess.PIPE, text=True)
    wait_for_lines(out, 5, process)
    process.kill()
    process.communicate()
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-1]) + lines[-1][:20])  # as if the last line had been cut, too
    before = shapes_in(out)
    assert main(["profile", "--cpu", "--quiet", "--out", str(out)]) == 0
    assert shapes_in(out) == shapes_in(whole)
    assert before[:-1] == shapes_in(out)[: len(before) - 1]


def test_interrupted_it_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "profile.csv"
    process = subprocess.Popen([*COMMAND, "--cpu", "--out", str(out)], stderr=subprocess.PIPE, text=True)
    wait_for_lines(out, 2, process)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate()
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    read_profile(out)


def test_done_means_nothing_to_do(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = whole.read_text()
    assert main(["profile", "--cpu", "--out", str(whole)]) == 0
    assert whole.read_text() == text
    assert "0 points measured on cpu, 60 were there" in capsys.readouterr().err


@without_gpu
def test_no_gpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.csv"
    assert main(["profile", "--model", "llama-3-8b", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "run this on a machine with one" in said
    assert "--cpu" in said
    assert not out.exists()


def test_no_torch_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["profile", "--model", "llama-3-8b"]) == 2
    assert capsys.readouterr().err == "error: profiling needs torch: pip install 'trimtab[profile]'\n"


def test_an_old_torch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.1+cu128")
    assert main(["profile", "--cpu"]) == 2
    assert "needs torch 2.10 or later, here is 2.9.1+cu128" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tp", "1"], "give a --model (see `trimtab models`), or --cpu"),
        (["--cpu", "--operators", "lm_haed"], "Did you mean 'lm_head'?"),
        (["--cpu", "--tp", "3"], "tp=3 is not possible for tiny"),
        (["--cpu", "--model", "lama-3-8b"], "Did you mean 'llama-3-8b'?"),
        (["--cpu", "--out", "/"], "Is a directory"),
    ],
)
def test_wrong_inputs(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_collectives_between_processes() -> None:
    """With gloo on the CPU; on GPUs the same code runs over nccl."""
    from trimtab.exectime.profile.collectives import measure_collectives

    wanted = [
        Point(name, 4, 2, m=4, n=64, bytes=512.0, graph=False)
        for name in ("send_recv", "all_reduce", "all_to_all")
    ]
    seen = []
    measure_collectives(wanted, "gloo", 3, lambda point, sample: seen.append((point, sample)))
    assert [point for point, _ in seen] == wanted
    assert all(0 < sample.min_ms <= sample.median_ms for _, sample in seen)


@with_gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "profile.csv"
    call = ["profile", "--model", "llama-3-8b", "--tp", "8", "--quick", "--out", str(out), "--quiet"]
    assert main(call) == 0
    profile = read_profile(out)
    assert set(profile.numbers["graph"]) == {0, 1}
    down = profile.where((profile.words["operator"] == "mlp_down_proj") & (profile.numbers["graph"] == 1))
    # Reading the weights takes at least as long as the fastest memory there is.
    assert (down.numbers["median_ms"] > 1000 * down.numbers["bytes"] / 20e12).all()
    assert down.numbers["median_ms"].max() > 3 * down.numbers["median_ms"].min()
