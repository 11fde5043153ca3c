"""Sweeps: the store, workers that die, Ctrl-C, and Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.plan.executors import Processes, make_executor
from trimtab.plan.search import search, sweep
from trimtab.plan.space import Space, configurations, read_prices, read_space
from trimtab.plan.store import MOST_PARTS, Store, key_of
from trimtab.scenario import load_scenario

HERE = str(Path(__file__).parent)
SCENARIO = load_scenario("azure-conv", {"workload.arrivals.qps": 12})
LEVELS = "ttft:p99<1s,tpot:p99<50ms"
SPACE = Space(
    devices=("h100", "a100-80"), tp=(1,), schedulers=("vllm_v1",), token_budget=(4096,),
    max_num_seqs=(256,), routers=("least-outstanding",), disaggregated=((1, 1),),
)  # fmt: skip
HAS_RAY = importlib.util.find_spec("ray") is not None


class Here:
    """Computes points in this process."""

    def run(self, function: Callable[[Any], Any], payloads: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, payload in enumerate(payloads):
            yield index, function(payload)


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``points.py`` as a module that workers find too."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, *filter(None, sys.path)]))
    import points

    return points


# --- the store ----------------------------------------------------------------------------------


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.append([{"key": "a", "x": 1, "tried": [{"n": 1, "t": 0.5}]}, {"key": "b", "name": "two"}])
    store.append([{"key": "a", "x": 2}])
    assert Store(tmp_path / "store").read() == {"a": {"key": "a", "x": 2}, "b": {"key": "b", "name": "two"}}
    assert store.read({"b"}) == {"b": {"key": "b", "name": "two"}}
    assert store.delete({"a", "none"}) == 1 and list(store.read()) == ["b"]
    assert store.delete({"b"}) == 1 and store.read() == {} and store.parts() == []


def test_many_parts_become_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(MOST_PARTS + 5):
        store.append([{"key": str(number), "x": number}])
    assert len(store.parts()) < 10
    assert {row["x"] for row in store.read().values()} == set(range(MOST_PARTS + 5))


def test_a_file_that_was_never_finished_is_no_part(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append([{"key": "a"}])
    (tmp_path / ".000002-xyz.parquet.tmp").write_bytes(b"half")
    assert list(store.read()) == ["a"]


def test_stores_that_are_not_ours_are_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(TrimtabError, match=r"holds no store.json"):
        Store(tmp_path / "other")
    Store(tmp_path / "old")
    (tmp_path / "old" / "store.json").write_text(json.dumps({"format": 99, "trimtab": "9.9"}))
    with pytest.raises(TrimtabError, match=r"store of format 99 \(trimtab 9.9\)"):
        Store(tmp_path / "old")
    (tmp_path / "old" / "store.json").write_text("[")
    with pytest.raises(TrimtabError, match="is damaged"):
        Store(tmp_path / "old")


def test_keys_change_with_everything_in_the_payload() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len({key_of(each) for each in ({"a": 1}, {"a": 2}, {"a": "1"}, {})}) == 4


# --- executors ----------------------------------------------------------------------------------


def test_a_dead_worker_costs_one_point(points: Any, tmp_path: Path) -> None:
    marker = tmp_path / "dead"
    payloads = [{"number": n, "die": str(marker) if n == 5 else None} for n in range(12)]
    found = list(Processes(2).run(points.deadly, payloads))
    assert sorted(found) == [(n, {"square": n * n}) for n in range(12)]
    assert marker.exists()


def test_ctrl_c_ends_a_worker_without_a_word(
    points: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    payloads = [{"number": n, "die": str(tmp_path / "dead"), "by": signal.SIGINT} for n in range(3)]
    assert len(list(Processes(1).run(points.deadly, payloads))) == 3
    assert (tmp_path / "dead").exists()
    assert "Traceback" not in capfd.readouterr().err


def test_workers_stay_for_the_next_run(points: Any) -> None:
    """And one that was stopped midway leaves nothing behind for it."""
    executor = Processes(1)
    payloads = [{"number": n} for n in range(6)]
    first = {result["process"] for _, result in executor.run(points.square, payloads)}
    again = {result["process"] for _, result in executor.run(points.square, payloads)}
    assert first == again and len(first) == 1
    stopped = executor.run(points.square, payloads)
    next(stopped)
    stopped.close()
    assert sorted(index for index, _ in executor.run(points.square, payloads)) == list(range(6))


def test_a_point_that_kills_every_worker_ends_the_sweep(points: Any) -> None:
    with pytest.raises(TrimtabError, match="a worker died 3 times"):
        list(Processes(1).run(points.always_deadly, [{"number": 1}]))


def test_a_sweep_goes_on_where_ctrl_c_stopped_it(points: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    payloads = [{"number": n, "marker": str(tmp_path / "stopped")} for n in range(12)]
    with pytest.raises(KeyboardInterrupt):
        sweep(payloads, store, Here(), function=points.interrupted)
    assert len(store.read()) == 7
    rows, computed = sweep(payloads, store, Here(), function=points.interrupted)
    assert computed == 5 and [row["square"] for row in rows] == [n * n for n in range(12)]
    assert sweep(payloads, store, Here(), function=points.always_deadly)[1] == 0  # nothing runs twice


def test_addresses_and_names_that_lead_nowhere() -> None:
    with pytest.raises(TrimtabError, match="unknown executor 'rai'"):
        make_executor("rai")
    with pytest.raises(TrimtabError, match="needs --executor ray"):
        make_executor("processes", address="here:1")
    if HAS_RAY:
        with pytest.raises(TrimtabError, match=r"no Ray cluster answers at 127.0.0.1:1") as caught:
            make_executor("ray", address="127.0.0.1:1")
        assert "\n" not in str(caught.value)
        with pytest.raises(TrimtabError, match="must read HOST:PORT"):
            make_executor("ray", address="nowhere")


@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed (extra `ray`)")
def test_ray_computes_the_rows_of_a_local_run_though_a_worker_dies(points: Any, tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    scenarios = [each for _, each in configurations(SCENARIO, SPACE)]
    payloads = [
        {
            "choices": choices, "scenario": each.model_dump(mode="json", exclude_unset=True),
            "bounds": LEVELS, "rung": 0, "counts": [1], "requests": 500,
        }
        for choices, each in configurations(SCENARIO, SPACE)
    ]  # fmt: skip
    payloads[1]["die"] = str(tmp_path / "dead")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        executor = make_executor("ray", address=cluster.address)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        store = Store(tmp_path / "ray")
        far, computed = sweep(payloads, store, executor, function=points.sized_or_dead)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (tmp_path / "dead").exists() and computed == len(scenarios) == len(store.read())
    near, _ = sweep(payloads, Store(tmp_path / "near"), Here(), function=points.sized_or_dead)
    measured = ("cpu_s",)
    for one, other in zip(near, far, strict=True):
        assert {k: v for k, v in one.items() if k not in measured} == {
            k: v for k, v in other.items() if k not in measured
        }


# --- searching ----------------------------------------------------------------------------------


def test_a_search_finds_the_cheapest_and_runs_nothing_twice(tmp_path: Path) -> None:
    prices = read_prices(None)
    store = Store(tmp_path / "store")
    found = search(SCENARIO, LEVELS, SPACE, prices, store, Here())
    assert found.best is not None and found.fresh > len(found.rows) == 4
    reachable = [row for row in found.rows if row["status"] == "ok"]
    assert found.best["cost_per_hour"] == min(row["cost_per_hour"] for row in reachable)
    assert all(row["ideal"] <= row["low"] <= row["replicas"] <= row["high"] for row in reachable)
    again = search(SCENARIO, LEVELS, SPACE, prices, store, Here())
    assert again.fresh == 0 and again.rows == found.rows
    # other prices: another answer, and still nothing to simulate but what a cheaper device brings to the end
    dear = {name: price * (100 if name == found.best["device"] else 1) for name, price in prices.items()}
    other = search(SCENARIO, LEVELS, SPACE, dear, store, Here())
    assert other.fresh == 0 and other.best is not None and other.best["device"] != found.best["device"]


def test_the_commands_search_list_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "devices: [h100]\ntp: [1, 2]\nschedulers: [vllm_v1]\ntoken_budget: [4096]\nmax_num_seqs: [256]\n"
        "routers: [round-robin, least-outstanding]\ndisaggregated: []\n"
    )
    store, out = str(tmp_path / "store"), tmp_path / "out"
    arguments = ["search", "azure-conv", "--qps", "12", "--slo", LEVELS, "--space", str(space)]
    arguments += ["--store", store, "--out", str(out), "--workers", "1", "--requests", "500"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "Cheapest for 12 requests/s within ttft:p99<1000ms" in said and "Replicas there by router" in said
    data = json.loads((out / "search.json").read_text())
    assert data["configurations"] == 4 and data["best"]["device"] == "h100"
    names = {path.name for path in out.iterdir()}
    assert names == {"search.json", "index.html", "table.csv", "ttft_p90.png", "tpot_p99.png"}
    page = (out / "index.html").read_text()
    (out / "index.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "index.html").read_text() == page
    pytest.importorskip("duckdb")
    capsys.readouterr()
    assert main(["runs", store, "--where", "rung = 0 and tp = 2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 and {row["router"] for row in rows} == {"round-robin", "least-outstanding"}
    assert main(["runs", store, "--compare", ",".join(row["key"] for row in rows)]) == 0
    assert "router" in capsys.readouterr().out
    assert main(["runs", store, "--sql", "select count(*) as many from runs", "--json"]) == 0
    many = json.loads(capsys.readouterr().out)[0]["many"]
    assert main(["runs", store, "--delete", "--where", "rung = 0"]) == 0
    assert main(["runs", store, "--sql", "select count(*) as many from runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["many"] == many - 4
    assert main(["runs", store, "--where", "colour = 1"]) == 2
    assert "colour" in capsys.readouterr().err
    assert main(["runs", str(tmp_path / "none")]) == 2


def test_levels_that_nothing_meets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "{devices: [h100], tp: [1], schedulers: [vllm_v1], routers: [round-robin], disaggregated: []}"
    )
    arguments = ["search", "azure-conv", "--slo", "ttft:p99<5ms", "--space", str(space), "--workers", "1"]
    assert main([*arguments, "--store", str(tmp_path / "s"), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "no configuration of 4 is in reach; the nearest is h100" in error and "ttft p99 is" in error
    assert error.count("\n") == 1 and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("device: [h100]", "Did you mean 'devices'"),
        ("devices: h100", "must be a list"),
        ("devices: [h10]", "unknown device"),
        ("tp: [0]", "whole numbers from 1"),
        ("disaggregated: [[1]]", "pairs such as"),
        ("- h100", "must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_spaces_that_cannot_be(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(TrimtabError, match=says):
        read_space(tmp_path / "space.yaml")


def test_prices_are_data(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("h100: 9.5\n")
    assert read_prices(file) == {**read_prices(None), "h100": 9.5}
    file.write_text("h100: free\n")
    with pytest.raises(TrimtabError, match="price of h100 must be a number"):
        read_prices(file)
