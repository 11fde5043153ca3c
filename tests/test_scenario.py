"""Scenarios: what loads, what an override reaches, what a mistake says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import TrimtabError
from trimtab.scenario import Scenario, bundled_scenarios, load_scenario


def message(source: Any, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(TrimtabError) as error:
        load_scenario(source, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", bundled_scenarios())
def test_bundled(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert 20 < len(scenario.description) < 110
    assert scenario.slo.ttft_ms
    assert Scenario.model_validate(scenario.model_dump(mode="json")) == scenario


def test_defaults_are_a_scenario() -> None:
    assert load_scenario({}).num_replicas == 1


def test_short_forms() -> None:
    scenario = load_scenario({"replicas": {"count": 3}, "router": "random", "slo": None})
    assert scenario.num_replicas == 3
    assert scenario.router.name == "random"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"workload": {"arrivals": {"kind": "gamma", "qps": -1}}},
            "workload.arrivals.qps: must be greater than 0, got -1",
        ),
        (
            {"workload": {"arrivals": {"kind": "gama", "qps": 1}}},
            "unknown workload.arrivals.kind 'gama'; allowed: burst, diurnal, gamma, poisson, static, "
            "step, trace. "
            "Did you mean 'gamma'?",
        ),
        (
            {"workload": {"arrivals": {"qps": 1}}},
            "'workload.arrivals' needs a kind; allowed: static, poisson,",
        ),
        ({"workload": {"arrivals": {"kind": "gamma"}}}, "'workload.arrivals.qps' is required"),
        (
            {"workload": {"arrivals": {"kind": "gamma", "qsp": 2}}},
            "unknown key 'workload.arrivals.qsp'; allowed there: cv, kind, qps. Did you mean 'qps'?",
        ),
        ({"qps": 4}, "Did you mean 'workload.arrivals.qps'?"),
        ({"workload": {"prefill": 4}}, "Did you mean 'workload.lengths.prefill'?"),
        ({"replicas": [{"tp": "two"}]}, "replicas.0.tp: must be a valid integer, got 'two'"),
        ({"replicas": [{}, {"tpp": 2}]}, "unknown key 'replicas.1.tpp'; allowed there: autoscale, count,"),
        ({"replicas": []}, "replicas: must have at least 1 item"),
        ({"replicas": 5}, "replicas: must be a valid list, got 5"),
        (
            {"replicas": [{"scheduler": {"policy": "prio"}}]},
            "unknown replicas.0.scheduler.policy 'prio'; allowed: fcfs, priority. Did you mean 'priority'?",
        ),
        ({"workload": {"arrivals": 7}}, "workload.arrivals: must be a mapping of keys, got 7"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, got -1"),
        ({"slo": {"ttft_ms": float("nan")}}, "slo.ttft_ms: must be a finite number, got nan"),
        ({"workload": {"arrivals": {"kind": "poisson", "qps": float("inf")}}}, "finite number, got inf"),
        ({"router": [1]}, "router: must be a mapping of keys, got a list"),
        (
            {"workload": {"num_requests": 0}},
            "workload.num_requests: must be greater than or equal to 1, got 0",
        ),
        ({"workload": {"trace": {"pth": "x"}}}, "Did you mean 'path'?"),
    ],
)
def test_mistakes_say_where_what_and_what_else(data: dict[str, Any], said: str) -> None:
    assert said in message(data)


def test_unknown_name() -> None:
    said = message("azure-con")
    assert "allowed: arxiv-summarization, autoscaled, azure-code, azure-conv" in said
    assert "Did you mean 'azure-conv'?" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "is not valid YAML at line 1"),
        ("- 1\n- 2", "must hold a mapping of scenario keys, got list"),
        ("", "must hold a mapping of scenario keys, got NoneType"),
        ("seed: 1\nseeds: 2", "unknown key 'seeds'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert said in message(path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "nope.yaml")
    assert "Is a directory" in message(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not valid YAML" in message(tmp_path / "x.yaml")


def test_overrides_reach_groups_and_make_sections() -> None:
    base = {"seed": 1, "replicas": [{"count": 1}, {"count": 2}]}
    both = load_scenario(base, {"replicas.scheduler.token_budget": 4096})
    assert [group.scheduler.token_budget for group in both.replicas] == [4096, 4096]
    first = load_scenario(base, {"replicas.0.tp": 2})
    assert [group.tp for group in first.replicas] == [2, 1]
    assert load_scenario({}, {"slo.ttft_ms": 10, "router": "random"}).slo.ttft_ms == 10
    assert load_scenario({"router": "random"}, {"router.choices": 3}).router.name == "random"
    assert "there are only 2 entries" in message(base, {"replicas.2.tp": 2})
    assert "use a mapping there" in message(base, {"seed.x": 2})


def test_loading_leaves_the_source_alone() -> None:
    data = {"replicas": [{"count": 1}]}
    load_scenario(data, {"replicas.count": 5})
    assert data == {"replicas": [{"count": 1}]}
    scenario = load_scenario(data)
    load_scenario(scenario, {"replicas.count": 5})
    assert scenario.num_replicas == 1


def test_files_are_found_beside_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traffic.csv").write_text("x")
    (tmp_path / "times__add.csv").write_text("x")
    data = {
        "workload": {"trace": {"path": "traffic.csv"}},
        "replicas": [
            {"model": "llama-3-8b", "exectime": {"kind": "tables", "path": "times"}},
            {"model": "m.json"},
        ],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    scenario = load_scenario(tmp_path / "mine.yaml")
    assert scenario.workload.trace is not None
    assert scenario.workload.trace.path == str(tmp_path / "traffic.csv")
    assert scenario.replicas[0].exectime.path == str(tmp_path / "times")
    assert [group.model for group in scenario.replicas] == ["llama-3-8b", "m.json"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "mine.yaml").rename(elsewhere / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    here = load_scenario("elsewhere/mine.yaml").workload.trace
    assert here is not None
    assert here.path == str(tmp_path / "traffic.csv")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 99), qps=st.floats(0.01, 1e6))
def test_yaml_round_trip_keeps_the_digest(seed: int, count: int, qps: float) -> None:
    scenario = load_scenario(
        "azure-conv", {"seed": seed, "replicas.count": count, "workload.arrivals.qps": qps}
    )
    again = load_scenario(yaml.safe_load(yaml.safe_dump(scenario.model_dump(mode="json"))))
    assert again == scenario
    assert again.digest() == scenario.digest()


def test_digest_follows_what_matters() -> None:
    base = load_scenario("azure-conv")
    assert load_scenario(base, {"name": "x", "description": "y"}).digest() == base.digest()
    assert load_scenario(base, {"seed": 2}).digest() != base.digest()


def test_schema_is_json_and_names_every_kind() -> None:
    text = json.dumps(Scenario.model_json_schema())
    for word in ("diurnal", "azure-conv-2023", "watermark", "kv_reservation_tokens"):
        assert word in text


def test_another_kind_drops_the_keys_of_the_old_one() -> None:
    arrivals = load_scenario("azure-conv", {"workload.arrivals.kind": "static"}).workload.arrivals
    assert arrivals.kind == "static"
    assert arrivals.qps is None
    kept = load_scenario("azure-conv", {"workload.arrivals.kind": "poisson"}).workload.arrivals
    assert kept.qps == load_scenario("azure-conv").workload.arrivals.qps


def test_a_key_of_another_kind_is_not_suggested_to_itself() -> None:
    said = message({"workload": {"arrivals": {"kind": "trace", "qps": 2}}})
    assert said.startswith("scenario: unknown key 'workload.arrivals.qps'; allowed there: kind, time_scale.")
    assert "Did you mean 'workload.arrivals.qps'" not in said
