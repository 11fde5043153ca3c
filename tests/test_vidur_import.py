"""Vidur's command lines and config.json as scenarios: READMEs' examples, reference cases, every flag."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import TrimtabError
from trimtab.scenario import load_scenario
from trimtab.vidur import from_vidur, split_command
from trimtab.vidur_flags import BY_NAME, CHOICES, FLAGS, SECTIONS, Fate, Flag

SHARED = Path(os.environ.get("TRIMTAB_SHARED", Path(__file__).parents[2] / "shared"))
CASES = sorted((SHARED / "data" / "vidur" / "cases").glob("*/config.json"))

README = r"""
python -m vidur.main  \
--replica_config_device a100 \
--replica_config_model_name meta-llama/Meta-Llama-3-8B \
--cluster_config_num_replicas 1 \
--replica_config_tensor_parallel_size 1 \
--replica_config_num_pipeline_stages 1 \
--request_generator_config_type synthetic \
--synthetic_request_generator_config_num_requests 512  \
--length_generator_config_type trace \
--trace_request_length_generator_config_max_tokens 16384 \
--trace_request_length_generator_config_trace_file ./data/processed_traces/splitwise_conv.csv \
--interval_generator_config_type poisson \
--poisson_request_interval_generator_config_qps 6.45 \
--replica_scheduler_config_type sarathi  \
--sarathi_scheduler_config_batch_size_cap 512  \
--sarathi_scheduler_config_chunk_size 512 \
--random_forrest_execution_time_predictor_config_prediction_max_prefill_chunk_size 16384 \
--random_forrest_execution_time_predictor_config_prediction_max_batch_size 512 \
--random_forrest_execution_time_predictor_config_prediction_max_tokens_per_request 16384
"""
POWERSHELL = """
python -m vidur.main `
  --cluster_config_num_replicas 4 `
  --global_scheduler_config_type ppoonline `
  --p_p_o_global_scheduler_online_config_debug_dump_global_state `
  --p_p_o_global_scheduler_online_config_max_queue_requests_per_replica 8 `  #控制拼接state的req数量
  --p_p_o_global_scheduler_online_config_lr 0.0003 `
  --p_p_o_global_scheduler_online_config_gamma 0.95 `
  --p_p_o_global_scheduler_online_config_reward_latency_weight 1.5 `
  --p_p_o_global_scheduler_online_config_balance_penalty_weight 0 `
  --p_p_o_global_scheduler_online_config_entropy_coef 0.002 ` #控制探索衰减
  --synthetic_request_generator_config_num_requests 500 `
  --interval_generator_config_type poisson `
  --poisson_request_interval_generator_config_qps 2 `
  --metrics_config_subsamples 200000 `
  *> .\\run.log

所有可调超参见\\vidur\\vidur\\config\\config.py
"""
WARM_START = r"""
python -m vidur.main \
  --global_scheduler_config_type ppo_modular \
  --p_p_o_global_scheduler_modular_config_enable_warm_start \
  --p_p_o_global_scheduler_modular_config_pretrained_actor_path pretrained_actor.pt
"""


def command(*flags: str) -> str:
    return " ".join(["python -m vidur.main", *flags])


def test_readme_example() -> None:
    translation = from_vidur(README)
    assert translation.problems == []
    assert translation.scenario["workload"] == {
        "arrivals": {"kind": "poisson", "qps": 6.45, "cap": 3.0},
        "lengths": {"kind": "trace", "shuffle": True},
        "trace": {"path": "data/processed_traces/splitwise_conv.csv", "format": "vidur"},
        "max_tokens": 16384,
        "cap": "proportional",
        "num_requests": 512,
    }
    (group,) = translation.scenario["replicas"]
    assert group["model"] == "llama-3-8b"
    assert group["scheduler"] == {
        "name": "sarathi",
        "max_num_seqs": 512,
        "block_size": 16,
        "num_blocks": 29696,
        "token_budget": 512,
        "watermark": 0.01,
    }
    assert group["exectime"]["max_tokens"] == 16384
    load_scenario(translation.scenario)


def test_bare_command_is_vidurs_defaults() -> None:
    scenario = load_scenario(from_vidur("python -m vidur.main").scenario)
    assert scenario.replicas[0].model == "llama-2-7b"
    assert scenario.replicas[0].scheduler.name == "sarathi"
    assert scenario.workload.arrivals.model_dump() == {"kind": "poisson", "qps": 0.5, "cap": 3.0}
    assert scenario.workload.num_requests == 128
    assert scenario.router.name == "round-robin"
    assert scenario.seed == 42


def test_powershell_example_names_every_setting_of_the_learned_router() -> None:
    translation = from_vidur(POWERSHELL)
    learned = [line.split()[0] for line in POWERSHELL.splitlines() if "--p_p_o_" in line]
    assert len(learned) == 7
    for flag in learned:
        assert sum(problem.startswith((f"{flag} ", f"{flag}:")) for problem in translation.problems) == 1
    assert any("ppoonline" in problem for problem in translation.problems)
    assert len(translation.problems) == 8
    assert any("metrics_config_subsamples" in note for note in translation.notes)
    scenario = load_scenario(translation.scenario)
    assert (scenario.num_replicas, scenario.workload.num_requests) == (4, 500)
    assert scenario.workload.arrivals.qps == 2


def test_warm_start_example() -> None:
    problems = from_vidur(WARM_START).problems
    assert len(problems) == 3
    assert any("pretrained_actor.pt" in problem for problem in problems)


@pytest.mark.parametrize("config", CASES, ids=lambda path: path.parent.name)
def test_reference_cases(config: Path) -> None:
    """The memory rule gives Vidur's own number of blocks, and the rest is the configuration."""
    translation = from_vidur(str(config))
    assert translation.problems == []
    scenario = load_scenario(translation.scenario)
    theirs, summary = json.loads(config.read_text()), json.loads(config.with_name("summary.json").read_text())
    group = scenario.replicas[0]
    assert group.scheduler.num_blocks == summary["num_blocks"]
    assert group.scheduler.name == theirs["cluster_config"]["replica_scheduler_config"]["name"]
    assert scenario.num_replicas == theirs["cluster_config"]["num_replicas"]
    assert scenario.workload.num_requests == summary["num_requests"]
    if group.scheduler.kv_reservation_tokens:
        assert group.scheduler.max_num_seqs == summary["max_batch_size"]


def test_cases_are_there() -> None:
    if not SHARED.is_dir():
        pytest.skip("no reference data; set TRIMTAB_SHARED")
    assert len(CASES) >= 9


def nondefault(flag: Flag) -> str:
    """A value that is not the default but valid."""
    special = {
        "model_name": "microsoft/phi-2",
        "device": "h100",
        "network_device": "a100_dgx",
        "tensor_parallel_size": "2",
        "num_pipeline_stages": "2",
        "memory_margin_fraction": "0.2",
        "watermark_blocks_fraction": "0.05",
        "max_tokens": "8192",
        "num_blocks": "777",
        "duration": "60",
        "trace_file": "elsewhere.csv",
    }
    if flag.field in special:
        return special[flag.field]
    if flag.field.endswith("_input_file"):
        return str(flag.default).replace("./data", "/other")
    if flag.type is bool:
        return "true" if flag.default is False else "false"
    if isinstance(flag.default, list):
        return "7"
    return str(flag.type(flag.default * 2 + 3))


def at(scenario: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for part in path.split("."):
        scenario = scenario[0] if isinstance(scenario, list) else scenario
        scenario = scenario.get(part) if isinstance(scenario, dict) else None
    return scenario


def selecting(flag: Flag) -> list[str]:
    """The choices under which a flag matters."""
    section = SECTIONS[flag.section]
    chosen = [f"--{name} {section.choice}" for name, (path, _, _) in CHOICES.items() if path == section.path]
    return chosen if section.choice else []


@pytest.mark.parametrize(
    "flag", [flag for flag in FLAGS if flag.fate is Fate.PLACED], ids=lambda flag: flag.name
)
def test_translated_flags_land_where_the_table_says(flag: Flag) -> None:
    """The docs' table is the code's table; this holds the table to what happens."""
    before = from_vidur(command(*selecting(flag))).scenario
    given = [f"--{flag.name} {nondefault(flag)}"]
    if flag.field.endswith("_input_file"):  # all profiles live under one folder
        files = [
            each for each in FLAGS if each.section == flag.section and each.field.endswith("_input_file")
        ]
        given = [f"--{each.name} {nondefault(each)}" for each in files]
    if flag.field == "batch_size_cap":
        given = [f"--{flag.name} 3"]  # below Vidur's memory slots, which cap it for two schedulers
    after = from_vidur(command(*selecting(flag), *given))
    assert after.problems == []
    assert at(after.scenario, flag.ours) != at(before, flag.ours), (before, after.scenario)
    load_scenario(after.scenario)


@pytest.mark.parametrize(
    "flag", [flag for flag in FLAGS if flag.fate is Fate.MISSING], ids=lambda flag: flag.name
)
def test_flags_without_counterpart_are_problems(flag: Flag) -> None:
    given = "x" if flag.type is str else nondefault(flag)
    problems = from_vidur(command(*selecting(flag), f"--{flag.name} {given}")).problems
    assert any(problem.startswith(f"--{flag.name} ") for problem in problems)


@pytest.mark.parametrize(
    "flag", [flag for flag in FLAGS if flag.fate is Fate.IDLE], ids=lambda flag: flag.name
)
def test_idle_flags_change_nothing(flag: Flag) -> None:
    value = "x" if flag.default is None else "7" if isinstance(flag.default, list) else str(flag.default)
    before = from_vidur(command(*selecting(flag)))
    after = from_vidur(command(*selecting(flag), f"--{flag.name} {value}"))
    assert after.scenario == before.scenario
    assert after.problems == before.problems
    assert any(flag.name in note for note in after.notes)


def test_every_place_is_a_key_of_a_scenario() -> None:
    everything = load_scenario({"workload": {"trace": {"path": "x"}}}).model_dump()
    kinds = {"workload.lengths.", "workload.arrivals."}
    for flag in FLAGS:
        if flag.ours and not any(flag.ours.startswith(kind) for kind in kinds):
            parent, _, key = flag.ours.rpartition(".")
            section = at(everything, parent) if parent else everything
            section = section[0] if isinstance(section, list) else section
            assert key in section, flag


def test_lor_is_vidurs_lor_and_says_so() -> None:
    translation = from_vidur(command("--global_scheduler_config_type lor"))
    assert translation.scenario["router"] == {"name": "vidur-lor"}
    assert any("least-outstanding" in note for note in translation.notes)


def test_misspelt_flags_are_named_with_a_hint() -> None:
    (problem,) = from_vidur(command("--cluster_config_num_replica 4")).problems
    assert problem == (
        "--cluster_config_num_replica 4: unknown flag Did you mean 'cluster_config_num_replicas'?"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--cluster_config_num_replicas four", "expected int"),
        ("--cluster_config_num_replicas", "expected one value"),
        ("--cluster_config_num_replicas 4 5", "expected one value"),
        ("--replica_scheduler_config_type canary", "allowed: vllm, sarathi"),
        ("--interval_generator_config_type trace", "Azure Functions"),
        ("--length_generator_config_type pareto", "allowed: fixed, trace"),
        ("stray --seed 1", "'stray' is no flag"),
        ("--execution_time_predictor_config_type dummy", "allowed: random_forrest"),
    ],
)
def test_problems(flags: str, said: str) -> None:
    problems = from_vidur(command(flags)).problems
    assert any(said in problem for problem in problems), problems


def test_flags_of_a_class_that_is_not_chosen_are_noted() -> None:
    notes = from_vidur(command("--vllm_scheduler_config_batch_size_cap 64")).notes
    assert any("has no effect: sarathi is chosen there, not vllm" in note for note in notes)


def test_equals_signs_negations_and_lists() -> None:
    depths = "--random_forrest_execution_time_predictor_config_max_depth 8 32"
    text = command("--seed=7 --no-metrics_config_store_plots", depths)
    translation = from_vidur(text)
    assert translation.problems == []
    assert translation.scenario["seed"] == 7
    assert translation.scenario["replicas"][0]["exectime"]["max_depth"] == 16


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PYTHONHASHSEED=0 python3 -m vidur.main --seed 1 > log.txt 2>&1", ["--seed", "1"]),
        ("python -m vidur.main --seed 1 | tee log --x", ["--seed", "1"]),
        ("vidur.main \\\n  --seed 1 \\\n  --time_limit 5 # minutes", ["--seed", "1", "--time_limit", "5"]),
        ("$ python -m vidur.main --seed 1\nprose about --flags", ["--seed", "1"]),
        ("--seed 1\n--time_limit 5", ["--seed", "1", "--time_limit", "5"]),
        ("python -m vidur.main --replica_config_model_name 'a b'", ["--replica_config_model_name", "a b"]),
    ],
)
def test_splitting(text: str, words: list[str]) -> None:
    assert split_command(text) == words


def test_files_and_what_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text("#!/bin/sh\n" + README)
    assert from_vidur(str(path)).scenario == from_vidur(README).scenario
    for bad, said in (
        ("nonsense", "no Vidur command line, and no file"),
        ('{"a": 1}', "no cluster_config"),
        ('{"a": ', "not valid JSON: line 1"),
        (README + README, "more than one Vidur command"),
        ("python -m vidur.main --replica_config_device 'a100", "quote that is not closed"),
        (command("--replica_config_device tpu"), "unknown device 'tpu'"),
        (command("--replica_config_model_name gpt-5"), "unknown model .*'gpt-5'"),
    ):
        with pytest.raises(TrimtabError, match=said):
            from_vidur(bad)


def test_unknown_keys_of_a_config_are_named() -> None:
    config = {"cluster_config": {"num_replicas": 2, "autoscaler": {"x": 1}}, "novel": 3}
    problems = from_vidur(json.dumps(config)).problems
    assert problems == ["cluster_config.autoscaler: unknown key", "novel: unknown key"]


def test_trace_replay(tmp_path: Path) -> None:
    flags = (
        "--request_generator_config_type trace_replay --trace_request_generator_config_time_scale_factor 0.5"
    )
    translation = from_vidur(command(flags), root=str(tmp_path))
    workload = translation.scenario["workload"]
    assert workload["arrivals"] == {"kind": "trace", "time_scale": 0.5}
    assert workload["trace"]["path"] == str(tmp_path / "data/processed_traces/splitwise_conv.csv")
    assert workload["cap"] == "prefill"
    load_scenario(translation.scenario)


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(FLAGS)
