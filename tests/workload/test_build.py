"""The request table: its columns, its random streams, its closed loops and sessions."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import scenario
from trimtab.engine.dtypes import NONE, REQUEST
from trimtab.errors import TrimtabError
from trimtab.workload import build_requests

UNIFORM = scenario.UniformLengths(min_tokens=50, max_tokens=500, prefill_to_decode=3)


def workload(**parts):
    return scenario.Workload(**{"lengths": UNIFORM, "num_requests": 200, **parts})


def test_every_column_is_initialised():
    rows = build_requests(workload(), 3)
    assert rows.dtype == REQUEST
    assert len(rows) == 200
    assert np.all(np.diff(rows["arrival"]) >= 0)
    assert np.array_equal(rows["target"], rows["prefill_tokens"])
    for column in ("session", "next_turn", "replica", "next_waiting"):
        assert np.all(rows[column] == NONE), column
    for column in ("scheduled", "first_token", "finished"):
        assert np.all(np.isnan(rows[column])), column
    for column in ("turn", "think", "klass", "priority", "status", "preemptions", "execution", "processed"):
        assert np.all(rows[column] == 0), column
    assert np.allclose(rows["expected_decode"], rows["decode_tokens"].mean())
    for coin in ("coin_a", "coin_b"):
        assert rows[coin].min() >= 0
        assert rows[coin].max() < 1
        assert len(np.unique(rows[coin])) == 200
    assert not np.array_equal(rows["coin_a"], rows["coin_b"])


def test_same_seed_same_table_other_seed_other_table():
    one = build_requests(workload(), 5)
    assert one.tobytes() == build_requests(workload(), 5).tobytes()
    assert one.tobytes() != build_requests(workload(), 6).tobytes()


LAWS = [
    scenario.PoissonArrivals(qps=2.0),
    scenario.GammaArrivals(qps=9.0, cv=3.0),
    scenario.BurstArrivals(qps=5.0),
    scenario.DiurnalArrivals(qps=5.0, period_s=50.0),
]


@pytest.mark.parametrize("law", LAWS)
def test_arrivals_do_not_touch_lengths_and_coins(law):
    """Comparisons are paired: another rate meets the same requests."""
    one = build_requests(workload(arrivals=scenario.StaticArrivals()), 1)
    other = build_requests(workload(arrivals=law), 1)
    for column in ("prefill_tokens", "decode_tokens", "coin_a", "coin_b"):
        assert np.array_equal(one[column], other[column]), column


@settings(max_examples=30, deadline=None)
@given(
    law=st.sampled_from(LAWS),
    lengths=st.sampled_from([UNIFORM, scenario.ZipfLengths(), scenario.FittedLengths()]),
    short=st.integers(1, 50),
    more=st.integers(0, 50),
    seed=st.integers(0, 2**63),
)
def test_a_longer_workload_begins_with_the_shorter(law, lengths, short, more, seed):
    one = build_requests(workload(arrivals=law, lengths=lengths, num_requests=short), seed)
    other = build_requests(workload(arrivals=law, lengths=lengths, num_requests=short + more), seed)[:short]
    for column in ("arrival", "prefill_tokens", "decode_tokens", "coin_a", "coin_b"):
        assert np.array_equal(one[column], other[column]), column


def test_duration_wins_over_the_number():
    rows = build_requests(workload(arrivals=scenario.PoissonArrivals(qps=50.0), duration_s=20.0), 0)
    assert abs(len(rows) - 1000) < 150
    assert rows["arrival"][-1] < 20.0


def test_default_number(tmp_path):
    assert len(build_requests(workload(num_requests=None), 0)) == 1000
    path = tmp_path / "t.csv"
    path.write_text("arrived_at,prefill,decode\n0,5,1\n2,6,2\n3,7,3\n")
    trace = scenario.Trace(path="t.csv")
    replay = workload(
        num_requests=None, trace=trace, arrivals=scenario.TraceArrivals(), lengths=scenario.TraceLengths()
    )
    rows = build_requests(replay, 0, tmp_path)
    assert rows["arrival"].tolist() == [0, 2, 3]
    assert rows["prefill_tokens"].tolist() == [5, 6, 7]


def test_a_trace_that_nothing_uses_is_an_oversight():
    with pytest.raises(TrimtabError, match="is not used"):
        build_requests(workload(trace=scenario.Trace(path="t.csv")), 0)
    with pytest.raises(TrimtabError, match="arrivals of kind 'trace' need a trace"):
        build_requests(workload(arrivals=scenario.TraceArrivals()), 0)
    with pytest.raises(TrimtabError, match="cannot read trace"):
        build_requests(workload(trace=scenario.Trace(path="no.csv"), lengths=scenario.TraceLengths()), 0)


def test_a_million_requests_in_three_seconds():
    start = time.process_time()
    rows = build_requests(workload(lengths=scenario.FittedLengths(), num_requests=1_000_000), 0)
    assert len(rows) == 1_000_000
    assert time.process_time() - start < 3


# --- closed loops and sessions ------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(users=st.integers(1, 30), count=st.integers(1, 100), think=st.sampled_from([0.0, 2.5]))
def test_closed_loop_chains(users, count, think):
    rows = build_requests(workload(users=users, num_requests=count, think_s=think), 0)
    roots = min(users, count)
    assert np.all(np.isfinite(rows["arrival"][:roots]))
    assert np.all(np.isinf(rows["arrival"][roots:]))
    assert np.all(np.diff(rows["arrival"][:roots]) >= 0)
    visited = []
    sizes = []
    for root in range(roots):
        row, size = root, 0
        while row != NONE:
            visited.append(row)
            row, size = int(rows["next_turn"][row]), size + 1
        sizes.append(size)
    assert sorted(visited) == list(range(count))
    assert max(sizes) - min(sizes) <= 1
    assert np.all(rows["think"][rows["next_turn"] == NONE] == 0)
    if think == 0:
        assert np.all(rows["arrival"][:roots] == 0)
        assert np.all(rows["think"] == 0)


def test_think_times_are_exponential_with_the_mean():
    rows = build_requests(workload(users=10, num_requests=40_000, think_s=3.0), 0)
    think = rows["think"][rows["next_turn"] != NONE]
    assert think.mean() == pytest.approx(3.0, rel=0.03)
    assert think.std() == pytest.approx(3.0, rel=0.05)


def test_closed_loop_sessions_stay_with_their_user():
    rows = build_requests(workload(users=4, num_requests=40, requests_per_session=5), 0)
    for row in range(36):
        follower = rows["next_turn"][row]
        same = rows["session"][row] == rows["session"][follower]
        assert same == (rows["turn"][follower] != 0)
        if same:
            assert rows["turn"][follower] == rows["turn"][row] + 1
    assert np.all(np.unique(rows["session"], return_counts=True)[1] == 5)


def test_closed_loop_refuses_a_duration():
    with pytest.raises(TrimtabError, match="time_limit_s"):
        build_requests(workload(users=4, duration_s=10.0), 0)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 2000), each=st.integers(2, 9), seed=st.integers(0, 100))
def test_open_sessions(count, each, seed):
    rows = build_requests(workload(num_requests=count, requests_per_session=each), seed)
    sessions, counts = np.unique(rows["session"], return_counts=True)
    assert sessions.tolist() == list(range(-(-count // each)))
    assert np.all(counts[:-1] == each)
    for session in sessions[:5]:
        turns = rows["turn"][rows["session"] == session]
        assert turns.tolist() == list(range(len(turns)))
    stretch = np.arange(count) // (16 * each)  # sessions of a stretch are not met outside of it
    assert np.array_equal(rows["session"] // 16, stretch)


def test_sessions_of_a_trace(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrived_at,prefill,decode,session\n0,5,1,b\n2,6,2,a\n3,7,3,b\n4,7,3,\n")
    trace = scenario.Trace(path=str(path))
    replay = workload(
        num_requests=None, trace=trace, arrivals=scenario.TraceArrivals(), lengths=scenario.TraceLengths()
    )
    rows = build_requests(replay, 0)
    assert rows["session"].tolist() == [0, 1, 0, NONE]
    assert rows["turn"].tolist() == [0, 0, 1, 0]
