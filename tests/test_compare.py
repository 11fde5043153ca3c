"""Comparisons: pairing, verdicts, interruption, files and the page."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

import trimtab.simulation
from trimtab.comparison import choose_routers, compare
from trimtab.errors import TrimtabError
from trimtab.report.compare_folder import save_comparison
from trimtab.report.words import headline, notices, verdict_sentence

SCENARIO = {
    "name": "small",
    "description": "Short <answers> & long prompts",
    "workload": {
        "arrivals": {"kind": "poisson", "qps": 30},
        "lengths": {"kind": "uniform", "min_tokens": 200, "max_tokens": 2000, "prefill_to_decode": 8},
        "num_requests": 400,
    },
    "replicas": [{"count": 3}],
    "slo": {"ttft_ms": 400},
}
ROUTERS = ["random", "round-robin", "least-outstanding"]


@pytest.fixture(scope="module")
def small():
    return compare(SCENARIO, ROUTERS, [0, 1, 2])


def test_table_is_complete(small):
    assert small.routers == tuple(ROUTERS)
    assert small.baseline == "round-robin"
    assert small.complete
    for metric, row in small.table.items():
        assert tuple(row) == small.routers
        for router, estimate in row.items():
            assert estimate.value.value == pytest.approx(np.mean(estimate.per_seed)), (metric, router)
            assert len(estimate.per_seed) == 3


def test_means_are_those_of_the_runs(small):
    result = trimtab.simulation.simulate(SCENARIO, router="random", seed=1)
    assert small.table["p99_ttft_ms"]["random"].per_seed[1] == pytest.approx(result.summary()["p99_ttft_ms"])


def test_routers_saw_the_same_requests(small):
    for seed in small.seeds:
        assert len({digest.lengths for digest in small.digests if digest.seed == seed}) == 1
        assert len({digest.arrivals for digest in small.digests if digest.seed == seed}) == 1


def test_verdicts_follow_from_the_intervals(small):
    for metric, verdict in small.verdicts.items():
        row = small.table[metric]
        assert verdict.best in verdict.tied
        unbeaten = {name for name in small.routers if not row[name].to_best.excludes_zero}
        assert set(verdict.tied) == unbeaten
        assert (verdict.winner is not None) == (unbeaten == {verdict.best})


def test_a_router_against_itself_is_a_tie():
    """Two routers that do the same differ by nothing: every metric is a tie, at every seed."""

    def first(view):
        return 0

    def also_first(view):
        return 0

    small = {**SCENARIO, "workload": {**SCENARIO["workload"], "num_requests": 60}}
    found = compare(small, [first, also_first], [0, 1])
    assert all(verdict.winner is None for verdict in found.verdicts.values())
    assert all(row["also_first"].to_best.value == 0 for row in found.table.values())
    assert headline(found)[0] == "Nothing separates these routers on this traffic."


def test_a_clear_winner_is_named():
    """All on one replica against turns: nobody needs an interval to see that, and it must say so."""

    def packed(view):
        return 0

    small = {**SCENARIO, "workload": {**SCENARIO["workload"], "num_requests": 200}}
    found = compare(small, [packed, "round-robin"], [0, 1, 2])
    assert found.verdicts["mean_e2el_ms"].winner == "round-robin"
    estimate = found.table["mean_e2el_ms"]["packed"]
    assert estimate.to_best.low > 0
    assert estimate.to_best.value == pytest.approx(
        np.exp(
            np.mean(np.log(estimate.per_seed))
            - np.mean(np.log(found.table["mean_e2el_ms"]["round-robin"].per_seed))
        )
        - 1
    )
    assert "round-robin" in headline(found)[0]


def test_same_seeds_same_comparison(small):
    again = compare(SCENARIO, ROUTERS, [0, 1, 2], workers=1)
    assert again.table == small.table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"routers": ["random"]}, "two routers or more"),
        ({"routers": ["random", "rr", "round-robin"]}, "given twice"),
        ({"routers": ["random", "rond-robin"]}, "Did you mean 'round-robin'"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"seeds": [-1, 1]}, "0 or more"),
        ({"routers": ["random", "round-robin"], "baseline": "least-kv"}, "not among the compared"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(TrimtabError, match=message) as caught:
        compare(SCENARIO, **{"routers": ROUTERS, **arguments})
    assert "\n" not in str(caught.value)


def test_all_leaves_out_what_is_not_made_for_comparison():
    chosen = choose_routers("all")
    assert len(chosen) >= 8
    assert "replay" not in chosen
    assert list(choose_routers("random, rr")) == ["random", "round-robin"]


def test_errors_in_a_run_come_through():
    broken = {**SCENARIO, "replicas": [{"model": "no-such-model", "count": 2}]}
    with pytest.raises(TrimtabError, match="no-such-model"):
        compare(broken, ROUTERS, [0])


def test_progress_counts_to_the_end():
    seen = []
    compare(SCENARIO, ROUTERS[:2], [0, 1], progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4]
    assert {total for _, total, _ in seen} == {4}


def interrupted(after: int):
    def progress(done, total, label):
        if done == after:
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_keeps_whole_seeds():
    threads = threading.active_count()
    found = compare(SCENARIO, ROUTERS, [0, 1, 2], progress=interrupted(7), workers=1)
    assert found.seeds == (0, 1)
    assert not found.complete
    assert any("Interrupted" in said for said in notices(found))
    assert threading.active_count() == threads


def test_ctrl_c_before_a_whole_seed_raises():
    with pytest.raises(KeyboardInterrupt):
        compare(SCENARIO, ROUTERS, [0, 1], progress=interrupted(1), workers=1)


def test_one_seed_earns_a_warning():
    found = compare(SCENARIO, ROUTERS[:2], [5])
    assert "1 seed:" in notices(found)[0]
    assert np.isnan(found.table["output_throughput"]["random"].value.low)
    assert np.isfinite(found.table["mean_ttft_ms"]["random"].value.low)


def test_trace_beside_the_scenario_is_found(tmp_path, monkeypatch):
    rows = "\n".join(f"{i / 10},{100 + i},{20}" for i in range(60))
    (tmp_path / "trace.csv").write_text(f"arrived_at,num_prefill_tokens,num_decode_tokens\n{rows}\n")
    scenario = tmp_path / "mine.yaml"
    scenario.write_text(
        "workload:\n  trace: {path: trace.csv}\n  arrivals: {kind: trace}\n  lengths: {kind: trace}\n"
        "replicas: {count: 2}\n"
    )
    monkeypatch.chdir("/")
    assert compare(scenario, ROUTERS[:2], [0]).table["mean_ttft_ms"]["random"].value.value > 0


# --- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    return save_comparison(small, tmp_path_factory.mktemp("compare") / "out")


def test_folder(folder, small):
    assert {path.name for path in folder.iterdir()} == {
        "index.html",
        "table.csv",
        "comparison.json",
        "scenario.yaml",
    }
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(small.table) * len(ROUTERS)
    contents = json.loads((folder / "comparison.json").read_text())
    assert len(contents["runs"]) == 9
    assert contents["headline"]
    assert save_comparison(small, folder) == folder


def test_page_is_self_contained(folder):
    page = (folder / "index.html").read_text()
    assert len(page) < 500_000
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "Short &lt;answers&gt; &amp; long prompts" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))
    assert len(data["routers"]) == 3
    for values in data["curves"]["values"].values():
        assert all(len(curve) == len(data["curves"]["shares"]) for curve in values)


def test_page_has_the_figures_without_scripts(folder, small):
    page = (folder / "index.html").read_text()
    assert page.count('<th scope="row">') == 3
    assert headline(small)[0].replace("'", "&#x27;") in page
    assert len(re.findall(r"<h1>", page)) == 1


def test_every_metric_has_a_sentence(small):
    from trimtab.report.digest import METRICS

    for metric in METRICS:
        if metric.key in small.table:
            said = verdict_sentence(small, metric)
            assert said.startswith(metric.title)
            assert "nan" not in said


def test_importing_is_light():
    code = (
        "import sys, trimtab.comparison, trimtab.report.html, trimtab.report.run_folder;"
        "import trimtab.report.plots;"
        "print([m for m in ('matplotlib', 'pyarrow', 'pandas', 'numba', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
