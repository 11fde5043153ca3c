"""A run folder is whole or absent, reads back as it was, and its files are what they claim."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import yaml

from trimtab.errors import TrimtabError
from trimtab.report.atomic import replacing
from trimtab.report.run_folder import load, plain, save
from trimtab.report.trace import write_trace
from trimtab.result import REQUEST_COLUMNS
from trimtab.scenario import Scenario


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    return save(result, tmp_path_factory.mktemp("runs") / "one")


def test_everything_is_there(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "scenario.yaml",
        "summary.json",
        "run.json",
        "requests.parquet",
        "iterations.parquet",
        "samples.parquet",
        "replicas.parquet",
        "replicas.csv",
        "itl.parquet",
        "trace.json",
        "plots",
        "index.html",
    }
    for picture in (folder / "plots").iterdir():
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "plots").iterdir())) == 3


def test_reads_back_as_it_was(folder, result):
    back = load(folder)
    for name in REQUEST_COLUMNS:
        assert np.array_equal(back.requests[name], result.requests[name]), name
    for name in ("replicas", "iterations", "samples", "sample_times", "itl_counts"):
        assert np.array_equal(getattr(back, name), getattr(result, name)), name
    assert back.groups == result.groups
    assert back.scenario == result.scenario
    assert plain(back.summary()) == plain(result.summary())


def test_scenario_can_be_run_again(folder, result):
    assert Scenario.model_validate(yaml.safe_load((folder / "scenario.yaml").read_text())) == result.scenario


def test_summary_has_the_names_of_vllm(folder):
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("completed", "request_throughput", "request_goodput", "output_throughput", "p99_ttft_ms"):
        assert isinstance(summary[key], (int, float))


def test_requests_parquet_is_readable_by_anyone(folder, result):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(folder / "requests.parquet")
    assert set(table["status"].to_pylist()) == {"finished"}
    ttft = 1e3 * (result.requests["first_token"] - result.requests["arrival"])
    assert np.allclose(table["ttft_ms"].to_numpy(), ttft)


def test_own_folder_is_replaced(result, tmp_path):
    target = save(result, tmp_path / "run", plots=False, trace=False)
    (target / "stale.txt").write_text("old")
    save(result, target, plots=False, trace=False)
    assert not (target / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_empty_folder_is_taken(result, tmp_path):
    (tmp_path / "run").mkdir()
    assert (save(result, tmp_path / "run", plots=False, trace=False) / "summary.json").is_file()


def test_foreign_folder_is_left_alone(result, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrimtabError, match=r"holds no summary\.json"):
        save(result, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_in_the_way(result, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(TrimtabError, match="is not a folder"):
        save(result, tmp_path / "run")


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_nothing_and_keeps_the_old(tmp_path, failure):
    target = tmp_path / "run"
    with replacing(target, "marker") as draft:
        (draft / "marker").write_text("old")

    def fail_halfway():
        with replacing(target, "marker") as draft:
            (draft / "marker").write_text("new")
            raise failure

    with pytest.raises(failure):
        fail_halfway()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (target / "marker").read_text() == "old"


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TrimtabError, match="cannot write"),
        replacing(tmp_path / "file" / "run", "marker"),
    ):
        pass


def test_folder_is_readable_by_others(folder):
    assert os.stat(folder).st_mode & 0o755 == 0o755


def test_load_says_what_is_wrong(result, tmp_path):
    with pytest.raises(TrimtabError, match="not a run folder"):
        load(tmp_path)
    target = save(result, tmp_path / "run", plots=False, trace=False)
    (target / "requests.parquet").write_bytes(b"nonsense")
    with pytest.raises(TrimtabError, match="not a Parquet file"):
        load(target)
    (target / "requests.parquet").unlink()
    with pytest.raises(TrimtabError, match="cannot read"):
        load(target)
    (target / "run.json").write_text('{"format": 99}')
    with pytest.raises(TrimtabError, match="format 99"):
        load(target)


def test_trace_is_what_perfetto_reads(folder, result):
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    iterations = [event for event in events if event["ph"] == "X"]
    assert len(iterations) == len(result.iterations)
    assert all(event["dur"] > 0 and event["args"]["sequences"] > 0 for event in iterations)
    begins = [(e["id"], e["name"]) for e in events if e["ph"] == "b"]
    ends = [(e["id"], e["name"]) for e in events if e["ph"] == "e"]
    assert sorted(begins) == sorted(ends)
    assert len({identity for identity, _ in begins}) == 2000
    assert {event["pid"] for event in events} == set(range(4))
    by_track: dict[tuple[int, int], float] = {}
    for event in iterations:  # slices of one track must not overlap
        key = event["pid"], event["tid"]
        assert event["ts"] >= by_track.get(key, 0.0) - 1e-3
        by_track[key] = event["ts"] + event["dur"]


def test_long_traces_are_cut(make_result, tmp_path, monkeypatch):
    import trimtab.report.trace

    monkeypatch.setattr(trimtab.report.trace, "MAX_ITERATIONS", 100)
    monkeypatch.setattr(trimtab.report.trace, "MAX_REQUESTS", 50)
    write_trace(make_result(500), tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 100
    horizon = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X")
    assert all(event.get("ts", 0) <= horizon + 1e-3 for event in events)
