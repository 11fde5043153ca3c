"""The command line as a person uses it: what is printed, written and returned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trimtab.cli import main
from trimtab.scenario import bundled_scenarios, load_scenario

SMALL = ["azure-conv", "--requests", "200"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_simulate_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *SMALL, "--no-plots"]) == 0
    printed = capsys.readouterr()
    assert "Successful requests:                     200" in printed.out
    (folder,) = (tmp_path / "runs").iterdir()
    scenario = load_scenario("azure-conv", {"workload.num_requests": 200, "workload.duration_s": None})
    assert folder.name == f"azure-conv-{scenario.digest()}"
    assert str(folder.relative_to(tmp_path)) in printed.err
    assert {"summary.json", "requests.parquet", "scenario.yaml", "index.html", "trace.json"} <= set(
        entries(folder)
    )


def test_json_is_the_summary_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *SMALL, "--json", "--no-plots", "--out", "run"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert printed.err == ""
    assert figures["completed"] == 200
    assert figures == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *SMALL, "-q", "--no-plots", "--out", "run"]) == 0
    assert capsys.readouterr() == ("", "")


def test_daily_flags_reach_the_scenario(tmp_path: Path) -> None:
    flags = "--model qwen2.5-7b --device h100 --replicas 2 --tp 2 --scheduler sarathi"
    flags += " --qps 5 --router random --seed 9"
    arguments = [
        *SMALL,
        *flags.split(),
        "--set",
        "slo={ttft_ms: 77}",
        "--set",
        "replicas.scheduler.token_budget=333",
    ]
    assert main(["simulate", *arguments, "-q", "--no-plots", "--out", "run"]) == 0
    scenario = load_scenario(tmp_path / "run" / "scenario.yaml")
    (group,) = scenario.replicas
    assert (group.model, group.device, group.count, group.tp) == ("qwen2.5-7b", "h100", 2, 2)
    assert (group.scheduler.name, group.scheduler.token_budget) == ("sarathi", 333)
    assert (scenario.router.name, scenario.seed, scenario.slo.ttft_ms) == ("random", 9, 77)
    assert scenario.slo.tpot_ms is None
    assert (scenario.workload.arrivals.qps, scenario.workload.num_requests) == (5, 200)


def test_a_run_is_replaced_and_rebuilt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["simulate", *SMALL, "-q", "--no-plots", "--out", "run"]) == 0
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "index.html").unlink()
    assert main(["report", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before
    assert (tmp_path / "run" / "index.html").is_file()
    assert (tmp_path / "run" / "plots").is_dir()


def test_compare_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *SMALL, "--routers", "rr,lor,random", "--seeds", "2", "--out", "cmp"]) == 0
    printed = capsys.readouterr()
    for name in ("round-robin", "least-outstanding", "random", "TTFT p99"):
        assert name in printed.out
    assert "cmp/index.html" in printed.err
    data = json.loads((tmp_path / "cmp" / "comparison.json").read_text())
    assert data["routers"] == ["round-robin", "least-outstanding", "random"]
    assert data["seeds"] == [1, 2]


def test_interrupt_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.simulation.simulate", interrupted)
    assert main(["simulate", *SMALL]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was left half-written\n"
    assert entries(tmp_path) == []


@pytest.mark.parametrize("name", bundled_scenarios())
def test_every_bundled_scenario_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", name, "--requests", "60", "--json", "--no-plots", "--out", "run"]) == 0
    assert json.loads(capsys.readouterr().out)["completed"] == 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("simulat", "No such command 'simulat'"),
        ("simulate", "Missing argument"),
        ("simulate azure-conv --bogus 1", "No such option"),
        ("simulate azure-conv --qps x", "--qps"),
        ("simulate azure-con", "unknown scenario 'azure-con'"),
        ("simulate nope.yaml", "cannot read scenario 'nope.yaml'"),
        ("simulate azure-conv --router rnadom", "unknown router 'rnadom'"),
        ("simulate azure-conv --scheduler vlm", "unknown scheduler 'vlm'"),
        ("simulate azure-conv --model gpt-5", "'gpt-5'"),
        ("simulate azure-conv --device tpu", "unknown device 'tpu'"),
        ("simulate azure-conv --qps -3", "workload.arrivals.qps: must be greater than 0"),
        ("simulate azure-conv --qps nan", "finite"),
        ("simulate azure-conv --requests 0", "workload.num_requests"),
        ("simulate azure-conv --tp 3", "tp=3 is not possible"),
        ("simulate azure-conv --pp 7", "pp=7 does not divide"),
        ("simulate azure-conv --model llama-3-70b", "does not fit on a100-80"),
        ("simulate azure-conv --set replicas.scheduler.num_blocks=20", "room for"),
        ("simulate azure-conv --set nonsense", "PATH=VALUE"),
        ("simulate azure-conv --set a=[1", "not a YAML value"),
        ("simulate azure-conv --set sloo.ttft_ms=5", "unknown key 'sloo'"),
        ("simulate mixed-fleet --replicas 3", "3 groups"),
        ("simulate closed-loop --qps 3", "workload.users"),
        (
            "simulate azure-conv --set workload.trace.path=none.csv --set workload.lengths.kind=trace",
            "none.csv",
        ),
        ("simulate azure-conv --out file", "file"),
        ("compare azure-conv --out file", "file"),
        ("compare azure-conv --routers rr", "two routers"),
        ("compare azure-conv --routers rr,rr", "twice"),
        ("compare azure-conv --routers rr,nope", "unknown router 'nope'"),
        ("compare azure-conv --seeds 0", "--seeds must be 1 or more"),
        ("compare azure-conv --workers 0", "--workers must be 1 or more"),
        ("report nowhere", "not a run folder"),
        ("scenario show nope", "unknown scenario 'nope'"),
        ("scenario from-vidur nope", "no Vidur command line"),
        ("scenario from-vidur --novel=1", "--novel"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert entries(tmp_path) == ["file"], "something was left behind"
    assert (tmp_path / "file").read_text() == "mine"


def test_bad_traces_name_line_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n1,five,5\n")
    lengths = ["--set", "workload.lengths={kind: trace}", "--set", "workload.trace.path=t.csv"]
    assert main(["simulate", "azure-conv", *lengths]) == 2
    said = capsys.readouterr().err
    assert "line 3" in said
    assert "num_prefill_tokens" in said


def test_wandb_is_asked_for_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["simulate", *SMALL, "--wandb", "project"]) == 2
    assert "pip install 'trimtab[wandb]'" in capsys.readouterr().err
    assert entries(tmp_path) == []


def test_wandb_gets_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    class Run:
        def log(self, summary: dict[str, float]) -> None:
            seen["completed"] = summary["completed"]

        def finish(self) -> None:
            seen["finished"] = True

    class Wandb:
        @staticmethod
        def init(**settings: object) -> Run:
            seen.update(settings)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    assert main(["simulate", *SMALL, "-q", "--no-plots", "--out", "run", "--wandb", "mine"]) == 0
    assert (seen["project"], seen["completed"], seen["finished"]) == ("mine", 200, True)


@pytest.mark.parametrize("command", ["routers", "schedulers", "models", "devices"])
def test_catalogues(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main([command]) == 0
    printed = capsys.readouterr().out
    assert len(rows) > 4
    assert all(row["name"] in printed for row in rows)


def test_schema_version_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Scenario"
    assert main(["version"]) == 0
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split()[::2] == ["trimtab", "trimtab"]
    for arguments in ([], ["--help"], ["scenario"], ["simulate", "--help"]):
        assert main(arguments) == 0
        assert "Usage: trimtab" in capsys.readouterr().out


def test_show_is_a_scenario_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--full"]):
        assert main(["scenario", "show", "mixed-fleet", *flags]) == 0
        (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
        assert load_scenario(tmp_path / "mine.yaml").digest() == load_scenario("mixed-fleet").digest()
    assert main(["scenario", "list"]) == 0
    assert all(name in capsys.readouterr().out for name in ["mixed-fleet"])


def test_from_vidur(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "python -m vidur.main --cluster_config_num_replicas 3 --p_p_o_x_lr 1"
    assert main(["scenario", "from-vidur", command, "--out", "v.yaml"]) == 2
    assert "--p_p_o_x_lr 1: unknown flag" in capsys.readouterr().err
    assert entries(tmp_path) == []
    assert main(["scenario", "from-vidur", command, "--partial", "--out", "v.yaml"]) == 0
    assert "left out: --p_p_o_x_lr 1" in capsys.readouterr().err
    assert "# left out: --p_p_o_x_lr 1" in (tmp_path / "v.yaml").read_text()
    assert load_scenario("v.yaml").num_replicas == 3
    assert entries(tmp_path) == ["v.yaml"]
    settings = "--set replicas.exectime.kind=roofline --requests 50 --no-plots -q --out run"
    assert main(["simulate", "v.yaml", *settings.split()]) == 0


def test_from_vidur_prints_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "from-vidur", "python -m vidur.main"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["router"] == {"name": "round-robin"}


def test_a_closed_pipe_is_no_traceback() -> None:
    code = "from trimtab.cli import main; raise SystemExit(main(['schema']))"
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    errors = program.stderr.read()
    program.stderr.close()
    assert program.wait() == 1
    assert errors == b""
