"""The story of one request: against its own row and a count of its neighbours, one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.cli import main
from trimtab.engine.dtypes import Status
from trimtab.errors import TrimtabError
from trimtab.report.one_request import request_lines, request_story
from trimtab.report.run_folder import save
from trimtab.result import Result
from trimtab.scenario import load_scenario
from trimtab.simulation import simulate


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(load_scenario("azure-conv", {"workload.num_requests": 400}))


@pytest.mark.parametrize("request_number", [0, 37, 399])
def test_phases_add_up_and_neighbours_are_counted(result: Result, request_number: int) -> None:
    story = request_story(result, request_number)
    row = result.requests[request_number]
    phases = story["phases_ms"]
    assert phases["queue"] + phases["prefill"] == pytest.approx(phases["ttft"])
    assert phases["ttft"] + phases["decode"] == pytest.approx(phases["e2el"])
    assert phases["e2el"] == pytest.approx(1e3 * (row["finished"] - row["arrival"]))
    shorter = [
        each["finished"] - each["arrival"] < row["finished"] - row["arrival"] for each in result.requests
    ]
    assert story["longer_than"]["e2el"] == pytest.approx(np.mean(shorter))
    waiting, running = [0] * len(result.replicas), [0] * len(result.replicas)
    for each in result.requests:
        if each["arrival"] < row["arrival"] < each["finished"]:
            (waiting if each["scheduled"] > row["arrival"] else running)[each["replica"]] += 1
    assert story["met"] == {"waiting": waiting, "running": running}


def test_one_that_was_never_served(result: Result) -> None:
    requests = result.requests.copy()
    requests["status"][5], requests["replica"][5] = Status.REJECTED, -1
    changed = Result(**{**vars(result), "requests": requests})
    lines = request_lines(request_story(changed, 5))
    assert lines[0].startswith("request 5, rejected")
    assert lines[1] == "least-outstanding sent it nowhere" and len(lines) == 2


def test_the_command(result: Result, tmp_path: Path, capsys: Any) -> None:
    folder = save(result, tmp_path / "run", plots=False)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(["report", str(folder), "--request", "37"]) == 0
    told = capsys.readouterr().out
    assert "least-outstanding sent it to replica" in told and "time to first token" in told
    assert main(["report", str(folder), "--request", "37", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"] == 37
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert main(["report", str(folder), "--request", "400"]) != 0
    assert capsys.readouterr().err.strip() == "error: --request 400: the run has requests 0 to 399"
    with pytest.raises(TrimtabError, match="0 to 399"):
        request_story(result, -1)
