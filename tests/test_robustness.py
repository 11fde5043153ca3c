"""The robustness matrix: its cells, loads, storage and what it says."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

import pytest

import trimtab.robustness as robustness
from trimtab.cli import main
from trimtab.comparison import compare
from trimtab.errors import TrimtabError
from trimtab.report.robustness_html import MARKER, save_suite, standings, suite_page
from trimtab.robustness import BASELINE, CELLS, Cell, find_saturation, run_suite, scenario_of, suite
from trimtab.scenario import Scenario

ROUTERS = ["round-robin", BASELINE, "sticky-session"]
FEW = (Cell("uniform", "poisson", 80, "plain", "fresh"), Cell("mixed", "gamma", 80, "sessions", "1s"))
REQUESTS = 300


def run(folder: Any, **rest: Any) -> dict[str, Any]:
    return run_suite(folder, ROUTERS, (0, 1), REQUESTS, **{"cells": FEW, **rest})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run(tmp_path_factory.mktemp("suite"))


def test_the_suite_covers_every_factor():
    assert len([cell for cell in CELLS if not cell.failure]) >= 24
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    for name, least in (("fleet", 2), ("arrivals", 3), ("load", 3), ("prompts", 3), ("signals", 3)):
        assert len({getattr(cell, name) for cell in suite()}) == least, name
    assert any(cell.failure for cell in suite()) == ("faults" in Scenario.model_fields)


def test_names_say_what_a_cell_is():
    assert Cell("mixed", "gamma", 80, "sessions", "1s").name == "mixed/gamma/80/sessions/1s"
    assert Cell("mixed", "gamma", 80, "plain", "1s", failure=True).name.endswith("/failure")


@pytest.mark.parametrize("cell", suite(), ids=lambda cell: cell.name)
def test_every_cell_is_a_scenario(cell):
    scenario = scenario_of(cell, 50.0, 1000)
    assert scenario.num_replicas <= 16
    assert scenario.signals.refresh_s == {"fresh": 0, "1s": 1, "15s": 15}[cell.signals]
    assert scenario.replicas[0].scheduler.prefix_caching


@pytest.mark.parametrize("arrivals", ["poisson", "gamma", "burst"])
def test_every_kind_of_arrivals_has_the_load_that_it_says(arrivals):
    """Requests per second over the run, also where bursts raise the mean above the base rate."""
    from trimtab.workload import build_traffic

    scenario = scenario_of(Cell("uniform", arrivals, 80, "plain", "fresh"), 50.0, 20_000)
    times = build_traffic(scenario.workload, 0).requests["arrival"]
    assert len(times) / times.max() == pytest.approx(40, rel=0.05)


def test_saturation_is_where_the_queue_begins_to_grow():
    """Arrivals well below it wait little; above it the wait grows with the length of the run."""
    full = find_saturation("uniform", "plain")

    def wait(load: int, requests: int) -> float:
        from trimtab.simulation import simulate

        scenario = scenario_of(Cell("uniform", "poisson", load, "plain", "fresh"), full, requests)
        return float(simulate(scenario).summary()["mean_ttft_ms"])

    assert wait(80, 4000) < 500
    assert wait(130, 16_000) > 1.5 * wait(130, 8000) > 1000


def test_figures_are_those_of_a_comparison(found):
    cell = found["cells"][0]
    scenario = scenario_of(FEW[0], found["saturation"]["uniform/plain"], REQUESTS)
    direct = compare(scenario, ROUTERS, (0, 1), baseline=BASELINE)
    for router in ROUTERS:
        row, ttft = cell["routers"][router], direct.table["p99_ttft_ms"][router]
        assert 1e3 * row["p99_ttft_s"] == pytest.approx(ttft.value.value)
        assert row["ratio"][0] == pytest.approx(1 + ttft.to_baseline.value)
        assert row["goodput"] == pytest.approx(direct.table["request_goodput"][router].value.value)
        assert row["low"] <= row["p99_ttft_s"] <= row["high"]


def test_the_baseline_is_always_there(found):
    assert list(robustness.choose("random")) == [BASELINE, "random"]
    assert list(robustness.choose("lor,random")) == [BASELINE, "random"]
    for cell in found["cells"]:
        assert cell["routers"][BASELINE]["ratio"] == [1, 1, 1]


def test_finished_cells_are_not_run_again(tmp_path, monkeypatch):
    first = run(tmp_path)
    runs = []
    monkeypatch.setattr(robustness, "run_digest", lambda *job: runs.append(job))
    assert run(tmp_path) == first
    assert not runs


def test_other_seeds_and_damaged_files_are_run(tmp_path, monkeypatch):
    run(tmp_path)
    stored = sorted((tmp_path / "cells").glob("*.json"))
    assert len(stored) == len(FEW)
    stored[0].write_text("{")
    real, runs = robustness.run_digest, []
    monkeypatch.setattr(robustness, "run_digest", lambda *job: runs.append(job) or real(*job))
    assert run(tmp_path)["complete"]
    assert len(runs) == len(ROUTERS) * 2
    run_suite(tmp_path, ROUTERS, (5,), REQUESTS, cells=FEW)
    assert len(runs) == len(ROUTERS) * (2 + len(FEW))


def test_interrupted_it_keeps_what_is_whole(tmp_path):
    def stop(done, total, label):
        if done > len(ROUTERS) * 2:
            raise KeyboardInterrupt

    part = run(tmp_path, progress=stop, workers=1)
    assert not part["complete"]
    assert [cell["name"] for cell in part["cells"]] == [FEW[0].name]
    save_suite(part, tmp_path)
    assert "Interrupted" in (tmp_path / "index.html").read_text()
    assert run(tmp_path)["complete"]


def test_folder(found, tmp_path):
    save_suite(found, tmp_path)
    contents = json.loads((tmp_path / MARKER).read_text())
    assert [cell["name"] for cell in contents["cells"]] == [cell.name for cell in FEW]
    for cell in contents["cells"]:
        for row in cell["routers"].values():
            assert {"p99_ttft_s", "goodput", "low", "high"} <= set(row)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == len(FEW) * len(ROUTERS)
    assert not list(tmp_path.glob(".*"))


def test_page_needs_nothing_else(found):
    text = suite_page(found)
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1].replace("\\u003c", "<"))
    assert {router["name"] for router in data["routers"]} == set(ROUTERS)
    assert text.count('<td class="square') == len(FEW) * len(ROUTERS)
    assert data["cells"][1]["factors"] == ["mixed", "gamma", "80", "sessions", "1s"]


def test_standings_are_in_order(found):
    rows = standings(found)
    assert [row.mean_ratio for row in rows] == sorted(row.mean_ratio for row in rows)
    own = next(row for row in rows if row.router == BASELINE)
    assert (own.mean_ratio, own.worst_ratio) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "robust"], "unknown suite 'robust'; allowed: robustness"),
        (["azure-conv", "--suite", "robustness"], "leave out 'azure-conv'"),
        (["--suite", "robustness", "--qps", "3"], "--qps does not go with --suite"),
        (["--suite", "robustness", "--routers", "lar"], "unknown router 'lar'"),
        (["--suite", "robustness", "--requests", "0"], "--requests must be 1 or more"),
        ([], "give a SCENARIO"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_bad_seeds():
    with pytest.raises(TrimtabError, match="seeds must be different"):
        run_suite("nowhere", ROUTERS, (1, 1))


def test_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "suite", lambda: FEW)
    out = ["--requests", "200", "--seeds", "1", "--out", str(tmp_path / "out")]
    assert main(["compare", "--suite", "robustness", "--routers", "rr,lor", *out]) == 0
    shown = capsys.readouterr().out
    for cell in FEW:
        assert cell.name in shown
    assert (tmp_path / "out" / "index.html").is_file()
    assert main(["compare", "--suite", "robustness", "--routers", "rr,lor", "--json", *out]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]
