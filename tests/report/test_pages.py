"""Pages and pictures of ordinary and odd runs: nothing breaks, nothing says nan, scripts run."""

from __future__ import annotations

import dataclasses
import doctest
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import trimtab.report.canvas
import trimtab.report.definitions
from trimtab.engine import dtypes
from trimtab.engine.dtypes import Status
from trimtab.plan.regret import Decision
from trimtab.report.html import compare_page, rounded, run_page
from trimtab.report.plots import write_plots
from trimtab.report.words import between, listing, number

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(params=["ordinary", "nothing finished", "one request", "no iterations", "many replicas"])
def odd_result(request, make_result, finish_result, make_table, scenario):
    if request.param == "nothing finished":
        result = make_result(40)
        result.requests["status"] = Status.RUNNING
        return result
    if request.param == "one request":
        return make_result(1, num_replicas=1)
    if request.param == "no iterations":
        return dataclasses.replace(make_result(100), iterations=np.zeros(0, dtypes.ITERATION))
    if request.param == "many replicas":
        return finish_result(make_table(3000, 100), 100, scenario)
    return make_result(300)


def test_odd_runs_have_a_page_and_pictures(odd_result, tmp_path):
    page = run_page(odd_result, odd_result.summary())
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"(?s)<script>.*?</script>", "", page))
    assert len(page) < 500_000
    assert len(write_plots(odd_result, tmp_path)) == 3


def test_names_cannot_break_out_of_the_page(make_result):
    evil = "</script><script>alert(1)</script>"
    result = make_result(30)
    scenario = result.scenario.model_copy(update={"name": evil, "description": evil})
    page = run_page(dataclasses.replace(result, scenario=scenario), result.summary())
    assert evil not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to run the page's scripts")
@pytest.mark.parametrize("kind", ["run", "compare"])
def test_scripts_run_to_the_end(kind, result, comparison, tmp_path):
    judged = [Decision(request=1, time_s=0.5, chosen=0, best=1, regret_s=0.25)]
    page = run_page(result, result.summary(), judged) if kind == "run" else compare_page(comparison)
    watch = "<script>window.onerror = (m) => { document.title = 'broken: ' + m; };</script>"
    path = tmp_path / "page.html"
    path.write_text(page.replace("<head>", "<head>" + watch))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += [
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=2000",
    ]
    done = subprocess.run(
        [*command, f"file://{path}"], capture_output=True, text=True, timeout=60, check=True
    )
    dom = done.stdout
    assert "<title>broken" not in dom
    expected = (
        ["curves", "flow", "queue", "tokens", "memory", "regret", "batches"]
        if kind == "run"
        else ["curves", "dots"]
    )
    for name in expected:
        inside = dom.split(f'id="{name}"')[1][:4000]
        assert "<svg" in inside, name
    if kind == "run":
        assert (
            len(re.findall("request [0-9]+ at ", dom.split('id="slowest"')[1].split("</details>")[0])) == 10
        )


def test_numbers_are_read_easily():
    assert number(412.6, "ms") == "413 ms"
    assert number(1234.0, "ms") == "1.23 s"
    assert number(0.0312, "ms/token") == "0.0312 ms/token"
    assert number(0.9314, "share") == "93.1 %"
    assert number(21.07, "requests/s") == "21.1 req/s"
    assert number(12345.6) == "12,346"
    assert number(float("nan"), "ms") == "-"
    assert number(1e-12, "ms") == "0 ms"
    assert between(430.0, 452.0, "ms") == "430 to 452 ms"
    assert between(930.0, 1452.0, "ms") == "930 ms to 1.45 s"
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_rounding_keeps_four_figures_and_drops_what_json_lacks():
    found = rounded({"a": np.array([1.23456, np.nan, 2.0]), "b": (np.int64(3), "x", None, True)})
    assert json.dumps(found) == '{"a": [1.235, null, 2], "b": [3, "x", null, true]}'


@pytest.mark.parametrize("module", [trimtab.report.canvas, trimtab.report.definitions])
def test_docstring_examples(module):
    tried = doctest.testmod(module)
    assert tried.attempted > 0
    assert tried.failed == 0
