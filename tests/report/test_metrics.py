"""Summaries against outside figures, against plain NumPy, and against their own documentation."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtab as tt
from trimtab.engine import dtypes
from trimtab.engine.dtypes import Status
from trimtab.report.definitions import FAMILIES, REPLICA_COLUMNS, SCALARS, all_keys, define
from trimtab.report.load import binned_mean, evenness
from trimtab.report.metrics import (
    itl_centres_ms,
    meets_slo,
    replica_rows,
    request_columns,
    statistics,
    summarize,
)
from trimtab.report.series import time_series

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
VIDUR = {
    "ttft_s": "ttft_ms",
    "e2e_s": "e2el_ms",
    "tpot_s": "decode_normalized_ms",
    "scheduling_delay_s": "scheduling_delay_ms",
}
# The 23 of its docs/metrics.md.
VIDURS_LIST = (
    "request_inter_arrival_delay_histogram",
    "request_num_tokens_histogram",
    "request_num_restarts_histogram",
    "request_e2e_time_cdf",
    "request_e2e_time_normalised_cdf",
    "request_execution_plus_preemption_times_cdf",
    "request_scheduling_delay_cdf",
    "request_execution_time_cdf",
    "request_preempted_time_cdf",
    "decode_token_execution_plus_preemption_times",
    "batch_num_tokens_cdf",
    "batch_sizes_cdf",
    "prefill_time_e2e_cdf",
    "prefill_time_execution_plus_preemption_cdf",
    "prefill_time_execution_plus_preemption_normalized_cdf",
    "decode_time_execution_plus_preemption_normalized_cdf",
    "request_completions_time_series",
    "prefill_completions_time_series",
    "decode_completions_time_series",
    "memory_usage_weighted_mean",
    "busy_time_percent_weighted_mean",
    "mfu_weighted_mean",
    "request_arrivals_time_series",
)


def test_vidur_cases(vidur_cases, read_case):
    """Same request tables, same percentiles: the definitions agree with Vidur's."""
    for path in vidur_cases:
        result, expected = read_case(path)
        summary = summarize(result)
        for theirs, ours in VIDUR.items():
            for name, seconds in expected[theirs].items():
                assert summary[f"{name}_{ours}"] == pytest.approx(1e3 * seconds, rel=1e-12), (
                    path,
                    ours,
                    name,
                )
        assert summary["preemptions"] == expected["restarts"]
        first = float(result.requests["arrival"].min())
        assert summary["duration"] == pytest.approx(expected["makespan_s"] - first)
        counts = {str(i): int(n) for i, n in enumerate(replica_rows(result)["requests"]) if n}
        assert counts == expected["requests_per_replica"]


def test_keys_are_those_of_definitions(result):
    assert list(summarize(result)) == all_keys()
    assert all(define(key).meaning for key in all_keys())


def test_page_defines_every_key_and_no_other():
    text = PAGE.read_text()
    rows = re.findall(r"^\| `([^`]+)` \|.*$", text.split("## Vidur's names")[0], re.MULTILINE)
    documented = set(itertools.chain.from_iterable(_expand(row) for row in rows))
    assert documented == set(all_keys()) | set(REPLICA_COLUMNS)


def test_page_says_what_the_code_says():
    text = PAGE.read_text()
    for definition in [*FAMILIES.values(), *SCALARS.values(), *REPLICA_COLUMNS.values()]:
        assert f"| {definition.unit} | {definition.meaning} |" in text
    for family in FAMILIES.values():
        assert family.vidur in text


def test_page_covers_vidurs_list():
    table = PAGE.read_text().split("## Vidur's names")[1]
    assert [name for name in VIDURS_LIST if name not in table] == []


def _expand(row: str) -> list[str]:
    parts = re.split(r"\{([^}]*)\}", row)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(combination) for combination in itertools.product(*choices)]


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_statistics_are_numpys(values):
    array = np.array(values)
    found = statistics(array)
    for name, share in (("p50", 0.5), ("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert found[name] == pytest.approx(np.quantile(array, share), rel=1e-9, abs=1e-9)
    assert found["mean"] == pytest.approx(array.mean())
    assert found["std"] == pytest.approx(array.std())


def test_itl_quantiles_come_from_the_histogram(make_result):
    rng = np.random.default_rng(0)
    gaps = rng.lognormal(-4, 0.6, 100_000)
    counts = np.zeros(dtypes.ITL_BINS, np.int64)
    np.add.at(counts, (np.log(gaps / dtypes.ITL_LOWEST) / np.log(dtypes.ITL_GAMMA)).astype(int), 1)
    summary = summarize(dataclasses.replace(make_result(50), itl_counts=counts))
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert summary[f"{name}_itl_ms"] == pytest.approx(1e3 * np.quantile(gaps, share), rel=2e-3)
    assert summary["mean_itl_ms"] == pytest.approx(1e3 * gaps.mean(), rel=1e-3)
    assert summary["std_itl_ms"] == pytest.approx(1e3 * gaps.std(), rel=5e-3)
    assert len(itl_centres_ms()) == dtypes.ITL_BINS


def test_tpot_leaves_the_first_token_out(result):
    table = result.requests
    row = table[table["decode_tokens"] > 1][0]
    expected = 1e3 * (row["finished"] - row["first_token"]) / (row["decode_tokens"] - 1)
    assert request_columns(result)["tpot_ms"][0] == pytest.approx(expected)


def test_one_token_outputs_have_no_tpot(make_result):
    result = make_result(40)
    result.requests["decode_tokens"] = 1
    summary = summarize(result)
    assert np.isnan(summary["p99_tpot_ms"])
    assert np.isfinite(summary["p99_ttft_ms"])


def test_failed_requests_have_no_latency_and_miss_the_slo(make_result):
    result = make_result(200, slo={"ttft_ms": 1e6})
    good = summarize(result)
    assert good["slo_attainment"] == 1.0
    result.requests["status"][:20] = Status.REJECTED
    result.requests["status"][20:30] = Status.RUNNING
    result.requests["finished"][:30] = np.nan
    summary = summarize(result)
    assert (summary["failed"], summary["rejected"], summary["completed"]) == (30, 20, 170)
    assert summary["slo_attainment"] == pytest.approx(170 / 200)
    assert summary["request_goodput"] == pytest.approx(170 / summary["duration"])
    assert np.isfinite(summary["p99_e2el_ms"])


def test_goodput_is_unknown_without_bounds(make_result):
    assert np.isnan(summarize(make_result(40))["request_goodput"])


@pytest.mark.parametrize("bound", ["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"])
def test_each_bound_is_held(make_result, bound):
    free = make_result(300)
    column = request_columns(free)[{"e2e_ms": "e2el_ms", "itl_ms": "tpot_ms"}.get(bound, bound)]
    limit = float(np.quantile(column, 0.5))
    good = meets_slo(make_result(300, slo={bound: limit}))
    several = free.requests["decode_tokens"] > 1
    counted = good[several] if bound in ("tpot_ms", "itl_ms") else good
    assert counted.mean() == pytest.approx(0.5, abs=0.01)


def test_no_request_at_all(make_result):
    result = make_result(40)
    result.requests["status"] = Status.PENDING
    result.requests["arrival"] = np.inf
    summary = summarize(result)
    assert summary["completed"] == 0
    assert np.isnan(summary["p99_ttft_ms"])


def test_time_means(make_result):
    result = make_result(400, slots=6, qps=20)
    summary = summarize(result)
    waits = request_columns(result)["scheduling_delay_ms"].sum() / 1e3
    assert summary["mean_queue_length"] == pytest.approx(waits / summary["duration"] / 4)
    assert summary["kv_utilization"] < summary["kv_peak"] <= 1


def test_mfu_by_hand(make_result):
    result = make_result(100)
    replicas, group = result.replicas, result.groups[0]
    tokens = replicas["prefill_done"].sum() + replicas["decode_done"].sum()
    flops = 2.0 * tokens * group.params_per_device
    flops += group.attention_flops_per_pair * replicas["attention_pairs"].sum()
    assert summarize(result)["mfu"] == pytest.approx(flops / replicas["busy"].sum() / group.peak_flops)


def test_mfu_counts_every_pipeline_stage(make_result):
    """Two stages, each with half the parameters and busy as long as one was: the same utilisation."""
    result = make_result(100)
    before = summarize(result)
    group = result.groups[0]
    half = dataclasses.replace(
        group,
        pp=2,
        params_per_device=group.params_per_device / 2,
        attention_flops_per_pair=group.attention_flops_per_pair / 2,
    )
    after = summarize(dataclasses.replace(result, groups=(half,)))
    assert after["mfu"] == pytest.approx(before["mfu"])
    assert after["busy_share"] == pytest.approx(before["busy_share"] / 2)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_evenness_is_what_it_says(load):
    found = evenness(np.array(load))
    if sum(load) == 0:
        assert np.isnan(found["jain"])
        return
    array = np.array(load, dtype=float)
    assert found["cv"] == pytest.approx(array.std() / array.mean(), abs=1e-7)
    assert found["jain"] == pytest.approx(array.sum() ** 2 / (len(array) * (array**2).sum()))
    assert found["max_over_mean"] == pytest.approx(array.max() / array.mean())
    assert 1 / len(array) - 1e-12 <= found["jain"] <= 1 + 1e-12


def test_binned_mean_holds_over_empty_bins():
    times = np.array([0.5, 1.5, 7.5])
    found = binned_mean(times, np.array([1.0, 3.0, 9.0]), np.array([0.0, 2.0, 4.0, 6.0, 8.0]))
    assert found.tolist() == [2.0, 3.0, 3.0, 9.0]


def test_series_conserve_requests_and_tokens(result):
    series = time_series(result, 60)
    width = series["time"][1] - series["time"][0]
    table = result.requests
    assert series["arrivals"].sum() * width == pytest.approx(len(table))
    assert series["completions"].sum() * width == pytest.approx(len(table))
    assert series["prefill_tokens"].sum() * width == pytest.approx(table["prefill_tokens"].sum(), rel=1e-6)
    tokens = (table["decode_tokens"] - 1).sum()
    assert series["decode_tokens"].sum() * width == pytest.approx(tokens, rel=1e-6)


def test_a_million_requests_in_two_seconds(make_table, finish_result, scenario):
    table = make_table(1_000_000)
    result = finish_result(table, 64, scenario)
    begin = time.process_time()
    summarize(result)
    assert time.process_time() - begin < 2.0


def test_summary_is_json_ready(result):
    from trimtab.report.run_folder import plain

    json.dumps(plain(result.summary()), allow_nan=False)


def test_hits_are_a_share_of_all_prompt_tokens_of_several_replicas() -> None:
    workload = {"num_requests": 400, "prefixes": {"groups": 4, "tokens": 1024}, "max_tokens": 8192}
    replicas = {"count": 3, "scheduler": {"name": "vllm_v1", "prefix_caching": True}}
    result = tt.simulate({"workload": workload, "replicas": replicas})
    hits = int(result.requests["hit_tokens"].sum())
    assert 0.2 < result.summary()["prefix_hit_rate"] < 0.8
    assert result.summary()["prefix_hit_rate"] == pytest.approx(
        hits / result.requests["prefill_tokens"].sum(), rel=0.01
    )
    uncached = tt.simulate({"workload": workload, "replicas": {"count": 3}})
    assert math.isnan(uncached.summary()["prefix_hit_rate"])
