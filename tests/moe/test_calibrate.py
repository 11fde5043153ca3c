"""trimtab moe calibrate and report, from checkpoint to checkpoint; real text, real model code."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from hugging_face import FAMILIES, tiny_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from trimtab.balance.measures import max_violation
from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.moe import apply_sidecar, attach
from trimtab.moe.calibration import Limit
from trimtab.moe.checkpoint import bias_names, differing, rounded, stored_tensors, values_of
from trimtab.moe.loads import read_report, short_names
from trimtab.moe.patched import Settings, calibrate_checkpoint
from trimtab.moe.routers import find_routers
from trimtab.moe.texts import text_files

CODE = Path(sysconfig.get_paths()["stdlib"]) / "email"  # some 400 kB of Python
QUICK = ["--length", "64", "--tokens", "8192"]
BIASED = [family for family, what in FAMILIES.items() if what.placement != "none"]


def run(*words: object) -> int:
    return main(["moe", *map(str, words)])


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32, **how: Any) -> Path:
    """A checkpoint whose first experts are preferred by every token."""
    model = tiny_model(family)
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__.endswith(("TopkRouter", "TopKRouter")):
                module.weight[:2] += 0.3 * module.weight.abs().mean(0)
    model.to(dtype).save_pretrained(folder, **how)
    return folder


def load_on_text(model: Any, start: int = 0) -> np.ndarray:
    """(layers, experts) on text that calibration did not see."""
    text = (CODE.parent / "argparse.py").read_bytes()[start : start + 4096]
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().reshape(-1, 64)
    with attach(model) as observed, torch.no_grad():
        model(input_ids=ids, use_cache=False)
        assert observed.load is not None
        return observed.load


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors by name, read by the safetensors package."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def metadata(folder: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found[file.name] = (opened.metadata(), list(opened.keys()))
    return found


def test_a_patched_checkpoint_is_balanced_and_otherwise_the_same(tmp_path: Path, capsys: Any) -> None:
    source = saved(tmp_path / "model", "deepseek_v3", max_shard_size="200KB")
    (source / "notes").mkdir()
    (source / "notes" / "README.md").write_text("kept")
    before = {path.name: path.read_bytes() for path in source.glob("*") if path.is_file()}
    out = tmp_path / "balanced"
    assert run("calibrate", "--model", source, "--text", CODE, "--out", out, *QUICK, "--max-kl", "1") == 0
    told = capsys.readouterr().out
    assert "3 bias tensors changed, all others equal byte for byte" in told
    old, new = tensors(source), tensors(out)
    assert list(old) == list(new)
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed == [f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in range(3)]
    assert all(old[name].dtype == new[name].dtype for name in old)
    assert metadata(source) == metadata(out)
    assert differing(source, out) == changed
    for name, content in before.items():
        assert (source / name).read_bytes() == content, "the original has changed"
        if not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == content
    assert (out / "notes" / "README.md").read_text() == "kept"
    trained, adapted = (
        load_on_text(AutoModelForCausalLM.from_pretrained(folder).eval()) for folder in (source, out)
    )
    assert max_violation(trained).mean() > 1.0
    assert max_violation(adapted).mean() < 0.6 * max_violation(trained).mean()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_hidden_or_binary_in_a_folder_is_no_text(tmp_path: Path) -> None:
    for name in (".git/objects/a.txt", "code/__pycache__/a.pyc", "code/a.py", "notes.md", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x\0y" if name.endswith("pyc") else b"text")
    assert text_files([tmp_path]) == [tmp_path / "code" / "a.py", tmp_path / "notes.md"]


def test_with_a_cap_biases_are_only_lowered(tmp_path: Path) -> None:
    source, out = saved(tmp_path / "model", "deepseek_v3"), tmp_path / "capped"
    capped = ["--cap", "1.2", "--max-kl", "1", "--max-loss", "1"]
    assert run("calibrate", "--model", source, "--text", CODE, "--out", out, *QUICK, *capped) == 0
    old, new = tensors(source), tensors(out)
    biases = [name for name in old if name.endswith("correction_bias")]
    assert all((new[name] <= old[name]).all() for name in biases)
    assert any((new[name] < old[name]).any() for name in biases)
    trained, adapted = (
        load_on_text(AutoModelForCausalLM.from_pretrained(folder).eval()) for folder in (source, out)
    )
    assert max_violation(adapted).mean() < 0.7 * max_violation(trained).mean()


def test_the_report_says_what_a_recount_says(tmp_path: Path, capsys: Any) -> None:
    source, out = saved(tmp_path / "model", "glm4_moe"), tmp_path / "out"
    assert run("calibrate", "--model", source, "--text", CODE, "--out", out, *QUICK, "--json") == 0
    words = json.loads(capsys.readouterr().out)
    loads = read_report(out)
    assert loads.before.sum(axis=1).tolist() == [2.0 * words["tokens"]["held_out"]] * 3
    assert words["chosen"]["maxvio_global"] == pytest.approx(float(max_violation(loads.after).mean()))
    assert words["curve"][0]["kl"] == 0.0 and words["curve"][0]["loss_increase"] == 0.0
    assert [point["strength"] for point in words["curve"]] == [i / 8 for i in range(9)]
    assert all(point["kl"] > 0 for point in words["curve"][1:])
    assert (out / "loads.png").read_bytes().startswith(b"\x89PNG")
    assert run("report", out, "--out", tmp_path / "again.png") == 0
    shown = capsys.readouterr().out
    assert "load of 8 experts per layer" in shown and "MaxVio" in shown
    assert (tmp_path / "again.png").is_file()
    assert run("report", out, "--layer", "1") == 0
    assert "model.layers.1.mlp.gate\n" in capsys.readouterr().out
    assert short_names(["gate"]) == ["gate"]
    assert run("place", out / "trimtab_moe.json", "--devices", "2") == 0  # the bias first, then the placement


def test_the_guard_holds(tmp_path: Path, capsys: Any) -> None:
    """A tight limit on KL gives less strength, none gives nothing, and NaN is no excuse."""
    source = saved(tmp_path / "model", "deepseek_v3")
    command = ["calibrate", "--model", source, "--text", CODE, *QUICK, "--json"]
    assert run(*command, "--out", tmp_path / "free", "--max-kl", "9", "--max-loss", "9") == 0
    free = json.loads(capsys.readouterr().out)
    middle = free["curve"][4]["kl"]
    assert run(*command, "--out", tmp_path / "tight", "--max-kl", middle, "--max-loss", "9") == 0
    tight = json.loads(capsys.readouterr().out)
    assert tight["chosen"]["strength"] < free["chosen"]["strength"]
    assert tight["chosen"]["kl"] <= middle
    assert run(*command, "--out", tmp_path / "none", "--max-kl", "0") == 2
    assert "nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", "dots1")
    for name in ("a", "b"):
        arguments = ("--text", CODE, "--out", tmp_path / name, *QUICK, "--quiet", "--max-kl", "1")
        assert run("calibrate", "--model", source, *arguments) == 0
    assert differing(tmp_path / "a", tmp_path / "b") == []


def test_an_interrupted_calibration_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Stopped while it finds the bias, again while it measures: the same result, and no step done thrice."""
    source = saved(tmp_path / "model", "glm4_moe")
    settings = Settings(length=64, tokens=24_576, limit=Limit(9.0, 9.0))
    steps: list[str] = []

    def run_to(folder: str, stage: str = "", number: int = 0) -> dict[str, Any]:
        steps.clear()

        def count(_done: int, _total: int, what: str) -> None:
            steps.append(what)
            if steps.count(stage) == number > 0:
                raise KeyboardInterrupt

        return calibrate_checkpoint(source, [CODE], tmp_path / folder, settings, count, save_every_s=0)

    whole = run_to("whole")
    assert (steps.count("finding the bias"), steps.count("measuring on held-out text")) == (10, 18)
    for stage, number in (("finding the bias", 7), ("measuring on held-out text", 11)):
        with pytest.raises(KeyboardInterrupt):
            run_to("out", stage, number)
        left = [path.name for path in tmp_path.iterdir() if "out" in path.name]
        assert left == [".out.calibrating.npz"]
    assert run_to("out") == whole
    # The second part of the held-out text is all that was left.
    assert (steps.count("finding the bias"), steps.count("measuring on held-out text")) == (0, 9)
    assert differing(tmp_path / "whole", tmp_path / "out") == []
    assert not (tmp_path / ".out.calibrating.npz").exists()


def test_a_model_without_a_bias_gets_a_sidecar(tmp_path: Path, capsys: Any) -> None:
    source, out = saved(tmp_path / "model", "mixtral"), tmp_path / "out"
    assert run("calibrate", "--model", source, "--text", CODE, "--out", out, *QUICK) == 0
    assert "mixtral has no bias" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {"trimtab_bias.safetensors", "trimtab_bias.json", "trimtab_moe.json", "loads.png"}
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    trained = load_on_text(model)
    with apply_sidecar(model, out) as applied, torch.no_grad():
        text = (CODE.parent / "argparse.py").read_bytes()[:4096]
        model(input_ids=torch.frombuffer(bytearray(text), dtype=torch.uint8).long().reshape(-1, 64))
        assert max_violation(applied.load).mean() < 0.6 * max_violation(trained).mean()
    other = tiny_model("qwen3_moe", num_hidden_layers=2)
    with pytest.raises(TrimtabError, match=r"for another model, a mixtral with 3 routers"):
        apply_sidecar(other, out)
    attach(other).detach()  # nothing was left attached


def test_a_half_precision_checkpoint_keeps_its_dtypes(tmp_path: Path) -> None:
    """What is measured is the rounded bias, and what is written is what was measured."""
    source, out = saved(tmp_path / "model", "afmoe", torch.bfloat16), tmp_path / "out"
    arguments = ("--text", CODE, "--out", out, *QUICK, "--quiet", "--max-kl", "9", "--max-loss", "9")
    assert run("calibrate", "--model", source, *arguments) == 0
    old, new = tensors(source), tensors(out)
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed == [f"model.layers.{i}.mlp.expert_bias" for i in (1, 2)]
    assert {new[name].dtype for name in changed} == {old[name].dtype for name in changed} == {torch.bfloat16}


def test_the_checkpoints_own_tokenizer_is_used(tmp_path: Path, capsys: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    source, out = saved(tmp_path / "model", "glm4_moe"), tmp_path / "out"
    inner = Tokenizer(models.BPE(unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=256, special_tokens=["?"], show_progress=False)
    inner.train([str(CODE / "message.py")], trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?").save_pretrained(source)
    assert run("calibrate", "--model", source, "--text", CODE, "--out", out, *QUICK, "--json") == 0
    assert json.loads(capsys.readouterr().out)["tokens"]["tokenizer"] != "bytes"


@pytest.mark.parametrize("family", BIASED)
def test_every_bias_is_found_in_its_checkpoint(family: str, tmp_path: Path) -> None:
    """Checkpoints name tensors otherwise than modules do (MiniMax-M2, ERNIE)."""
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    routers = find_routers(model)
    stored = stored_tensors(tmp_path)
    names = bias_names(stored, routers)
    assert len(set(names)) == len(routers)
    for router, name in zip(routers, names, strict=True):
        held = router.stored().detach().double().numpy().reshape(-1)
        np.testing.assert_array_equal(values_of(stored[name]), rounded(held, stored[name].dtype))


def test_bad_input_is_one_line(tmp_path: Path, capsys: Any) -> None:
    source = saved(tmp_path / "model", "glm4_moe")
    good = ["calibrate", "--model", source, "--text", CODE, "--out", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("too short")
    pickled = shutil.copytree(source, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.safetensor")
    broken = shutil.copytree(source, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no header")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    dense = tmp_path / "dense"
    from hugging_face import BASE
    from transformers import AutoConfig

    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **BASE)).save_pretrained(dense)
    cases = [
        ([*good[:3], "--out", tmp_path / "out"], "no text files to calibrate on"),
        ([*good, "--law", "sign", "--cap", "1.2"], "a cap is for the law 'quantile'"),
        ([*good, "--cap", "0.5"], "cap is a multiple of an expert's share, from 1 up"),
        ([*good[:3], "--text", tmp_path / "empty"], "no text files to calibrate on"),
        ([*good[:3], "--text", source / "model.safetensors"], "is a binary file; give text"),
        ([*good[:3], "--text", tmp_path / "absent"], "there is no such file or folder"),
        ([*good[:3], "--text", tmp_path / "short.txt"], "at least 2 are needed"),
        (["calibrate", "--model", tmp_path / "absent", "--text", CODE], "no folder with a config.json"),
        (["calibrate", "--model", pickled, "--text", CODE], "does not load"),
        (["calibrate", "--model", broken, "--text", CODE], "does not load"),
        (["calibrate", "--model", dense, "--text", CODE], "has no router"),
        ([*good, "--law", "quantle"], "unknown law 'quantle'"),
        ([*good, "--only", "*vision*"], "has no router under"),
        ([*good, "--passes", "0"], "passes must be at least 1"),
        ([*good[:5], "--out", source], "another folder than --model"),
        ([*good[:5], *QUICK, "--max-kl", "9", "--out", foreign], "is not replaced"),
    ]
    for command, message in cases:
        assert run(*command, "--quiet") == 2, command
        errors = capsys.readouterr().err.strip().splitlines()
        assert message in errors[-1], errors
        assert errors[-1].startswith("error: ")
    assert (foreign / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ["negative", "nan", "shape", "json", "absent"])
def test_bad_reports_are_one_line(bad: str, tmp_path: Path, capsys: Any) -> None:
    words: dict[str, Any] = {
        "routers": ["a", "b"],
        "loads_before": [[1.0, 2.0], [3.0, 4.0]],
        "loads": [[1.0, 2.0], [3.0, 4.0]],
    }
    messages = {
        "negative": "its lowest entry is -1",
        "nan": "its lowest entry is nan",
        "shape": "loads of shape (3, 2) for 2 routers",
        "json": "is no report",
        "absent": "is no report",
    }
    words["loads_before"][0][0] = {"negative": -1.0, "nan": float("nan")}.get(bad, 1.0)
    if bad == "shape":
        words["loads_before"].append([1.0, 1.0])
    if bad != "absent":
        (tmp_path / "trimtab_moe.json").write_text("{" if bad == "json" else json.dumps(words))
    assert run("report", tmp_path) == 2
    error = capsys.readouterr().err
    assert messages[bad] in error
    assert error.count("\n") == 1
