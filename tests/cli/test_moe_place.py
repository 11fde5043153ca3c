"""``trimtab moe place`` as a person uses it: every file format, the table, the map, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from trimtab.cli import main
from trimtab.moe import Placement

LOADS = [[600, 560, 120, 120, 20, 10, 10, 10]]
EIGHT = ["--devices", "8", "--redundant", "8"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loads.json").write_text(json.dumps(LOADS))


def rows(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["moe", "place", *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_the_table_and_the_map(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["moe", "place", "loads.json", *EIGHT, "--out", "placed.json"]) == 0
    printed = capsys.readouterr().out
    assert "1 layer, 8 + 8 experts on 8 devices of 2 slots" in printed
    assert [line.split()[-3] for line in printed.splitlines()[2:5]] == ["3.200", "1.280", "1.085"]
    written = json.loads(Path("placed.json").read_text())
    assert set(written) == {"num_devices", "phy2log", "log2phy", "logcnt"}
    placement = Placement.from_phy2log(written["phy2log"], 8)
    assert float(placement.max_over_mean(LOADS)[0]) == pytest.approx(1.085, abs=1e-3)
    assert written["logcnt"] == placement.logcnt.tolist()
    assert not list(Path().glob("*.part"))


def test_every_format_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    array = np.array(LOADS)
    np.save("loads.npy", array)
    save_file({"loads": array, "steps": np.array([3])}, "loads.safetensors")
    save_file({"any": array.astype(np.float32)}, "one.safetensors")
    Path("loads.csv").write_text("\n".join(",".join(map(str, row)) for row in LOADS) + "\n")
    Path("recorded.json").write_text(json.dumps({"logical_count": LOADS}))
    expected = rows(["loads.json", *EIGHT], capsys)
    for name in ("loads.npy", "loads.safetensors", "one.safetensors", "loads.csv", "recorded.json"):
        assert rows([name, *EIGHT], capsys) == expected, name


def test_sglang_s_map_comes_back_as_the_placement_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["moe", "place", "loads.json", *EIGHT, "--out", "s.json", "--format", "sglang", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert list(json.loads(Path("s.json").read_text())) == ["physical_to_logical_map"]
    now, rule, ours = rows(["loads.json", *EIGHT, "--current", "s.json", "--moves", "2"], capsys)
    assert now["placement"] == "now"
    assert now["max_over_mean"] == ours["max_over_mean"] < rule["max_over_mean"]
    assert ours["moved"] == 0


def test_few_moves(capsys: pytest.CaptureFixture[str]) -> None:
    before, _, ours = rows(["loads.json", *EIGHT, "--moves", "3"], capsys)
    assert 0 < ours["moved"] <= 3
    assert ours["max_over_mean"] < before["max_over_mean"]


def test_times_and_splits(capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    np.save("z.npy", [generator.permutation(np.arange(1, 257) ** -0.8)])
    arguments = [
        "z.npy",
        "--devices",
        "8",
        "--redundant",
        "32",
        "--model",
        "deepseek-v3",
        "--split",
        "fewest",
    ]
    before, _, ours, fewest = rows(arguments, capsys)
    assert fewest["placement"] == "trimtab, fewest split"
    assert ours["ms_16384_tokens"] < before["ms_16384_tokens"]
    assert fewest["ms_256_tokens"] < ours["ms_256_tokens"]
    assert main(["moe", "place", *arguments, "--tokens", "64"]) == 0
    assert "ms, 64 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.json", *EIGHT], "No such file or directory: nope.json"),
        (["loads.txt", *EIGHT], "loads are read from .json, .csv, .npy, .safetensors, not .txt"),
        (["bad.json", *EIGHT], "bad.json: this is not JSON"),
        (["keys.json", *EIGHT], "keys.json: it has neither loads nor logical_count, but load"),
        (["short.csv", *EIGHT], "short.csv: line 2 has 1 numbers, the first 2"),
        (["words.csv", *EIGHT], "words.csv: loads must be numbers"),
        (["bad.npy", *EIGHT], "bad.npy: this is not an array"),
        (["bad.safetensors", *EIGHT], "bad.safetensors: this is not a safetensors file"),
        (
            ["loads.json", "--devices", "8", "--redundant", "7"],
            "the next number of redundant experts that can",
        ),
        (["loads.json", *EIGHT, "--split", "evn"], "unknown split 'evn'; allowed: balanced, even, fewest."),
        (["loads.json", *EIGHT, "--format", "vllm"], "unknown format 'vllm'; allowed: eplb, sglang."),
        (["loads.json", *EIGHT, "--out", "x.txt"], "must end in .json"),
        (["loads.json", *EIGHT, "--out", "no/x.json"], "there is no folder 'no'"),
        (["loads.json", *EIGHT, "--tokens", "5"], "--tokens needs a --model"),
        (["loads.json", *EIGHT, "--model", "deepseek-v3"], "deepseek-v3 has 256 experts; the loads have 8"),
        (["loads.json", *EIGHT, "--moves", "-1"], "moves must be 0 or more; given -1"),
        (["loads.json", *EIGHT, "--moves", "1", "--nodes", "3"], "8 devices cannot be shared evenly by 3"),
        (["loads.json", *EIGHT, "--current", "loads.json"], "loads.json: phy2log holds 10 to 600"),
        (
            ["loads.json", "--devices", "9", "--redundant", "1", "--nodes", "2"],
            "9 devices cannot be shared evenly",
        ),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("loads.txt").write_text("1")
    Path("bad.json").write_text("{")
    Path("keys.json").write_text('{"load": 1}')
    Path("short.csv").write_text("1,2\n3\n")
    Path("words.csv").write_text("a,b\n")
    Path("bad.npy").write_bytes(b"no")
    Path("bad.safetensors").write_bytes(b"no")
    assert main(["moe", "place", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not Path("x.json").exists()
