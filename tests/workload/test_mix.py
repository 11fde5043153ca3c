"""Fitted mixes: the line's promise, the bundled files against the real traces, damaged files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trimtab import scenario
from trimtab.errors import TrimtabError
from trimtab.workload import Trace, build_requests, load_mix, read_trace
from trimtab.workload.fit import _line, fit_error, fit_mix, ks_distance, spearman
from trimtab.workload.mix import BUNDLED, UNIT, bundled_mixes

FILES = {
    "arxiv-summarization": "arxiv_summarization",
    "azure-code-2023": "azure_code_2023",
    "azure-conv-2023": "azure_conv_2023",
}


def trace_of(prefill, decode, arrival=None):
    return Trace("t", arrival, np.array(prefill, np.int32), np.array(decode, np.int32))


@pytest.mark.parametrize("name", FILES)
def test_bundled_mixes_are_small_and_say_where_they_are_from(name):
    assert bundled_mixes() == sorted(FILES)
    path = BUNDLED / f"{name}.json"
    assert path.stat().st_size < 60_000
    source = load_mix(name).source
    assert "vidur (MIT)" in source
    assert "CC-BY" in source or not name.startswith("azure")


@pytest.mark.parametrize("name", FILES)
def test_bundled_mixes_fit_the_real_traces(name, trace_file):
    trace = read_trace(trace_file(FILES[name]))
    mix = load_mix(name)
    error = fit_error(mix, trace)
    assert max(error.ks_prefill, error.ks_decode) < 0.006
    assert error.ks_total < 0.01
    for real, fitted in (error.spearman, error.pearson_log):
        assert abs(real - fitted) < 0.01
    for real, fitted in (error.mean_prefill, error.mean_decode):
        assert fitted == pytest.approx(real, rel=0.01)
    rebuilt = fit_mix(trace, name, mix.source)
    assert np.array_equal(rebuilt.prefill.at, mix.prefill.at)
    assert np.array_equal(rebuilt.up_to, mix.up_to)


def test_spikes_survive(trace_file):
    """2.2 % of the conversation prompts have exactly 181 tokens, and so have the fitted ones."""
    real = np.mean(read_trace(trace_file("azure_conv_2023")).prefill == 181)
    rows = build_requests(scenario.Workload(num_requests=100_000), 0)
    assert np.mean(rows["prefill_tokens"] == 181) == pytest.approx(real, abs=0.002)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(st.integers(1, 20), st.integers(1, 100_000)), min_size=1, max_size=300),
    error=st.sampled_from([0.001, 0.01, 0.05]),
)
def test_a_line_keeps_its_promise(values, error):
    """Nowhere further from the counts than ``error`` (and the rounding to 1/UNIT)."""
    values = np.array(values)
    line = _line(values, error)
    distinct = np.unique(values)
    real = np.searchsorted(np.sort(values), distinct, side="right") / len(values)
    assert np.max(np.abs(np.interp(distinct, line.at, line.cumulative / UNIT) - real)) <= error + 1.1 / UNIT
    assert line.at[0] == distinct[0] - 1
    assert line.at[-1] == distinct[-1]


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=200))
def test_any_trace_can_be_fitted_saved_and_drawn(rows, tmp_path_factory):
    prefill, decode = np.array(rows).T
    mix = fit_mix(trace_of(prefill, decode), "any")
    path = tmp_path_factory.mktemp("mix") / "any.json"
    mix.save(path)
    one = mix.sample(np.random.default_rng(0), 500)
    other = load_mix(str(path)).sample(np.random.default_rng(0), 500)
    assert np.array_equal(one, other)
    assert set(one[0]) <= set(range(max(1, prefill.min()), max(1, prefill.max()) + 1))
    assert set(one[1]) <= set(range(max(1, decode.min()), max(1, decode.max()) + 1))


def test_joint_law_not_only_marginals():
    """Output tied to the prompt: independent marginals would have no correlation."""
    rng = np.random.default_rng(0)
    prefill = rng.integers(1, 2000, 20_000)
    decode = np.maximum(prefill // 10 + rng.integers(-5, 6, 20_000), 1)
    error = fit_error(fit_mix(trace_of(prefill, decode), "tied"), trace_of(prefill, decode))
    assert error.spearman[1] > 0.99
    assert error.ks_total < 0.01


def test_mean_of_a_line_is_that_of_its_draws():
    line = load_mix("azure-conv-2023").prefill
    drawn, _ = load_mix("azure-conv-2023").sample(np.random.default_rng(0), 400_000)
    assert line.mean() == pytest.approx(drawn.mean(), rel=0.005)


def test_arrival_facts():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.standard_exponential(50_000)) / 10
    facts = fit_mix(trace_of(np.ones(50_000), np.ones(50_000), times), "poisson").arrivals
    assert facts.rate_per_s == pytest.approx(10, rel=0.02)
    assert facts.gap_cv == pytest.approx(1, abs=0.02)
    assert facts.dispersion_60s == pytest.approx(1, abs=0.45)
    assert fit_mix(trace_of([1], [1]), "one").arrivals is None


def test_statistics_are_scipy_s():
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 20, 300), rng.integers(0, 25, 300)
    assert ks_distance(one, other) == pytest.approx(stats.ks_2samp(one, other).statistic)
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert spearman(one, np.ones(300)) == 0


def test_bad_mixes_are_refused(tmp_path):
    with pytest.raises(TrimtabError, match="Did you mean 'azure-conv-2023'"):
        load_mix("azure-conv-2024")
    with pytest.raises(TrimtabError, match="No such file"):
        load_mix("none.json", tmp_path)
    path = tmp_path / "m.json"
    good = json.loads((BUNDLED / "azure-code-2023.json").read_text())
    for damage, message in (
        ("{", "not valid JSON"),
        ("[]", "not a fitted mix"),
        (json.dumps({**good, "prefill": None}), "damaged"),
        (json.dumps({key: value for key, value in good.items() if key != "output"}), "damaged mix: .*output"),
        (json.dumps({**good, "output": good["output"][::-1]}), "must increase"),
        (json.dumps({**good, "prefill": {"at": [1, 5], "cumulative": [0, 7]}}), "from 0 to 100000"),
        (json.dumps({**good, "prefill": {"at": [5, 1], "cumulative": [0, UNIT]}}), "never fall"),
        (json.dumps({**good, "arrivals": {"rate": 1}}), "damaged"),
    ):
        path.write_text(damage)
        with pytest.raises(TrimtabError, match=message):
            load_mix(str(path))
