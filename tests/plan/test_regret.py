"""Regret against brute force: whole runs in which one request went elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import trimtab as tt
from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.plan.regret import HORIZON_S, regrets, summary
from trimtab.report.html import run_page
from trimtab.result import Result

SMALL = {"workload.num_requests": 400, "workload.arrivals.qps": 20, "replicas.count": 3}


def waiting(assignment: list[int], request: int, now: float) -> float:
    """Seconds until first tokens, of a whole run with that assignment."""
    overrides = {**SMALL, "router.name": "replay", "router.assignment": assignment}
    table = tt.simulate("azure-conv", overrides=overrides).requests
    until = now + HORIZON_S
    came = (table["arrival"] >= table["arrival"][request]) & (table["arrival"] <= until)
    return float((np.minimum(table["first_token"], until) - table["arrival"])[came].sum())


def run(router: str) -> Result:
    return tt.simulate("azure-conv", overrides=SMALL, router=router)


@pytest.mark.parametrize("router", ["round-robin", "learned"])
def test_regret_is_what_whole_runs_say(router: str) -> None:
    result = run(router)
    assignment = [int(replica) for replica in result.requests["replica"]]
    found = regrets(result, 6)
    assert len(found) >= 5
    for each in found:
        costs = []
        for replica in range(3):
            other = list(assignment)
            other[each.request] = replica
            costs.append(waiting(other, each.request, each.time_s))
        assert each.chosen == assignment[each.request]
        assert each.regret_s == pytest.approx(costs[each.chosen] - min(costs), abs=1e-6)
        assert costs[each.best] == pytest.approx(min(costs), abs=1e-6)


def test_without_a_choice_there_is_no_regret() -> None:
    result = tt.simulate("azure-conv", overrides={**SMALL, "replicas.count": 1})
    assert summary(regrets(result, 10))["most_s"] == 0.0


def test_what_has_no_single_decision_is_refused() -> None:
    with pytest.raises(TrimtabError, match="there are two"):
        regrets(tt.simulate("disaggregated", overrides={"workload.num_requests": 50}), 3)
    overrides = {**SMALL, "admission.max_outstanding_per_replica": 2}
    with pytest.raises(TrimtabError, match="routed exactly once"):
        regrets(tt.simulate("azure-conv", overrides=overrides), 3)


def test_the_report_judges_decisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "run")
    assert main(["simulate", "azure-conv", "--requests", "300", "--out", folder, "-q", "--no-plots"]) == 0
    capsys.readouterr()
    assert main(["report", folder, "--regret", "5"]) == 0
    assert "against the best choice in hindsight: mean" in capsys.readouterr().out
    judged = (tmp_path / "run" / "regret.csv").read_text()
    assert len(judged.splitlines()) >= 5
    page = (tmp_path / "run" / "index.html").read_text()
    assert "What did the routing cost?" in page
    assert main(["report", folder, "--regret", "0"]) == 2

    assert main(["report", folder, "-q"]) == 0  # what was judged stays with the run
    assert (tmp_path / "run" / "regret.csv").read_text() == judged
    assert (tmp_path / "run" / "index.html").read_text() == page
    (tmp_path / "run" / "regret.csv").write_text("request,regret\n1,2\n")
    capsys.readouterr()
    assert main(["report", folder, "-q"]) == 2
    assert "regret.csv is not a table of request, time_s" in capsys.readouterr().err


def test_the_page_tells_the_costliest_decisions() -> None:
    """Dearest first, only those that another replica would have been better for."""
    result = run("round-robin")
    found = regrets(result, 40)
    dear = sorted((each for each in found if each.regret_s > 0), key=lambda each: -each.regret_s)[:10]
    assert dear
    page = run_page(result, result.summary(), found)
    assert re.findall(r'<th scope="row">request (\d+)', page) == [str(each.request) for each in dear]
    data = json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))
    assert data["regret"]["request"] == [each.request for each in found]
    assert data["regret"]["regret"] == pytest.approx([1e3 * each.regret_s for each in found], rel=1e-3)
    plain = run_page(result, result.summary())
    assert "What did the routing cost?" not in plain
    assert json.loads(re.search(r'id="data">(.*?)</script>', plain).group(1))["regret"] is None
