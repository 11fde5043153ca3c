"""Length laws against their formulas and against the lengths of reference runs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab import scenario
from trimtab.errors import TrimtabError
from trimtab.workload import lengths
from trimtab.workload.build import build_requests
from trimtab.workload.trace import Trace, read_trace


def drawn(law, count=50_000, seed=0, **rest):
    rows = build_requests(scenario.Workload(lengths=law, num_requests=count, **rest), seed)
    return rows["prefill_tokens"], rows["decode_tokens"]


def test_fixed():
    prefill, decode = drawn(scenario.FixedLengths(prefill=7, decode=3), 10)
    assert prefill.tolist() == [7] * 10
    assert decode.tolist() == [3] * 10


def test_split_is_vidur_s(case):
    """Vidur's totals come from Python's generator (seed 42: gap, length, gap, ...); our split of them."""
    rows = case("b_4rep_vllm_uniform_round_robin_qps20")
    source = random.Random(42)
    totals = []
    for _ in range(len(rows)):
        source.random()
        totals.append(source.uniform(256, 2048))
    prefill, decode = lengths.split_total(np.array(totals), 4.0)
    assert np.array_equal(prefill, rows["num_prefill_tokens"])
    assert np.array_equal(decode, rows["num_decode_tokens"])


def test_uniform_totals():
    prefill, decode = drawn(scenario.UniformLengths(min_tokens=1000, max_tokens=2000, prefill_to_decode=4))
    total = prefill + decode
    assert 999 <= total.min() < 1010
    assert 1990 < total.max() <= 2000
    assert total.mean() == pytest.approx(1499.5, abs=4)
    assert (prefill / decode).mean() == pytest.approx(4, abs=0.02)


@pytest.mark.parametrize("scramble", [False, True])
def test_zipf_probabilities(scramble):
    law = scenario.ZipfLengths(
        theta=0.9, scramble=scramble, min_tokens=100, max_tokens=119, prefill_to_decode=1
    )
    uniforms = (np.arange(200_000) + 0.5) / 200_000
    totals, counts = np.unique(lengths.zipf_totals(law, uniforms), return_counts=True)
    expected = np.arange(1, 21) ** -0.9
    assert totals.tolist() == list(range(100, 120))
    shares = np.sort(counts / 200_000)[::-1] if scramble else counts / 200_000
    assert np.allclose(shares, expected / expected.sum(), atol=2e-5)
    assert (np.argmax(counts) == 0) != scramble


def test_trace_lengths_in_order_shuffled_and_with_replacement(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("prefill,decode\n" + "".join(f"{i * 10},{i}\n" for i in range(1, 101)))
    trace = scenario.Trace(path=str(path))
    ordered, _ = drawn(scenario.TraceLengths(), 5, trace=trace)
    assert ordered.tolist() == [10, 20, 30, 40, 50]
    prefill, decode = drawn(scenario.TraceLengths(shuffle=True), 100, trace=trace)
    assert sorted(prefill) == [i * 10 for i in range(1, 101)]
    assert not np.array_equal(prefill, np.sort(prefill))
    assert np.array_equal(prefill, decode * 10)
    prefill, decode = drawn(scenario.EmpiricalLengths(decode_scale=0.5), 5000, trace=trace)
    assert len(np.unique(prefill)) == 100
    assert np.array_equal(decode, np.maximum(prefill // 20, 1))
    with pytest.raises(TrimtabError, match=r"101 requests but t\.csv has 100 rows"):
        drawn(scenario.TraceLengths(), 101, trace=trace)
    with pytest.raises(TrimtabError, match="need a trace"):
        drawn(scenario.TraceLengths(), 5)


@pytest.mark.parametrize(
    ("name", "limit"), [("a_llama3_8b_sarathi_conv", 16384), ("c_llama2_70b_tp4pp2_sarathi", 4096)]
)
def test_proportional_cap_is_vidur_s(case, trace_file, name, limit):
    """Vidur caps the trace and then shuffles it with pandas, which is RandomState(42).choice."""
    rows = case(name)
    trace = read_trace(trace_file("azure_conv_2023"))
    workload = scenario.Workload(max_tokens=limit, cap="proportional")
    prefill, decode = lengths.cap(trace.prefill, trace.decode, workload)
    order = np.random.RandomState(42).choice(len(prefill), size=len(prefill), replace=False)[: len(rows)]
    assert np.array_equal(prefill[order], rows["num_prefill_tokens"])
    assert np.array_equal(decode[order], rows["num_decode_tokens"])


tokens = st.lists(st.integers(0, 100_000), min_size=1, max_size=30)


@given(
    prefill=tokens,
    limit=st.integers(2, 5000),
    cap=st.sampled_from(["prefill", "proportional"]),
    data=st.data(),
)
def test_cap_holds_and_changes_nothing_else(prefill, limit, cap, data):
    asked_prefill = np.array(prefill, np.int32)
    asked_decode = np.array([data.draw(st.integers(0, 10_000)) for _ in prefill], np.int32)
    workload = scenario.Workload(max_tokens=limit, cap=cap)
    held_prefill, held_decode = lengths.cap(asked_prefill, asked_decode, workload)
    assert held_prefill.min() >= 1
    assert held_decode.min() >= 1
    assert (held_prefill + held_decode).max() <= limit
    fits = np.maximum(asked_prefill, 1) + np.maximum(asked_decode, 1) <= limit
    assert np.array_equal(held_prefill[fits], np.maximum(asked_prefill, 1)[fits])
    assert np.array_equal(held_decode[fits], np.maximum(asked_decode, 1)[fits])


def test_prefill_cap_leaves_the_output():
    workload = scenario.Workload(max_tokens=100)
    prefill, decode = lengths.cap(np.array([300, 300]), np.array([40, 140]), workload)
    assert prefill.tolist() == [60, 1]
    assert decode.tolist() == [40, 99]


def test_bad_ranges_are_refused():
    with pytest.raises(TrimtabError, match="max_tokens=5 is below min_tokens=10"):
        drawn(scenario.UniformLengths(min_tokens=10, max_tokens=5), 3)
    with pytest.raises(TrimtabError, match="at least 2"):
        drawn(scenario.FixedLengths(), 3, max_tokens=1)


def test_unused_trace_arrays_are_left_alone():
    trace = Trace("t", None, np.array([0, 5], np.int32), np.array([0, 9], np.int32))
    lengths.cap(trace.prefill, trace.decode, scenario.Workload(max_tokens=3))
    assert trace.prefill.tolist() == [0, 5]
    assert trace.decode.tolist() == [0, 9]
