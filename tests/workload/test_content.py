"""What prompts share: traces with hashes, conversations, shared prefixes, and that paths make sense."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import scenario
from trimtab.engine.dtypes import NONE
from trimtab.errors import TrimtabError
from trimtab.scenario import Prefixes, Sessions, load_scenario
from trimtab.workload import Traffic, build_traffic

UNIFORM = scenario.UniformLengths(min_tokens=50, max_tokens=500, prefill_to_decode=3)


def workload(**parts):
    return scenario.Workload(**{"lengths": UNIFORM, "num_requests": 300, **parts})


def paths_of(traffic: Traffic) -> list[list[tuple[int, int]]]:
    """(node, tokens) of each request's prompt."""
    found = []
    for row in traffic.requests:
        steps = slice(row["path_at"], row["path_at"] + row["path_len"])
        pairs = zip(traffic.path_node[steps].tolist(), traffic.path_tokens[steps].tolist(), strict=True)
        found.append(list(pairs))
    return found


def check(traffic: Traffic) -> None:
    """The contract: one parent per node, left at one token by all who go on, and no more than the prompt."""
    parent: dict[int, int] = {}
    left_at: dict[int, int] = {}
    for row, path in zip(traffic.requests, paths_of(traffic), strict=True):
        assert sum(tokens for _, tokens in path) <= row["prefill_tokens"]
        before = NONE
        for position, (node, tokens) in enumerate(path):
            assert 0 <= node < traffic.num_nodes
            assert tokens > 0
            assert parent.setdefault(node, before) == before
            if position < len(path) - 1:
                assert left_at.setdefault(node, tokens) == tokens
            before = node
        assert not row["grows"] or sum(tokens for _, tokens in path) == row["prefill_tokens"]


# --- traces with hashes -------------------------------------------------------------------------


@pytest.fixture
def mooncake(tmp_path):
    """A trace of (prompt, hash_ids) rows, answers of 3 tokens, one a second."""

    def write(*rows: tuple[int, list[int]], **parts) -> scenario.Workload:
        lines = [
            json.dumps({"timestamp": 1000 * at, "input_length": n, "output_length": 3, "hash_ids": ids})
            for at, (n, ids) in enumerate(rows)
        ]
        path = Path(tmp_path, "t.jsonl")
        path.write_text("\n".join(lines))
        hash_tokens = parts.pop("hash_tokens", 512)
        trace = scenario.Trace(path=str(path), hash_tokens=hash_tokens)
        parts = {"lengths": scenario.TraceLengths(), "num_requests": None, **parts}
        return scenario.Workload(trace=trace, **parts)

    return write


def test_equal_hashes_are_equal_nodes(mooncake):
    traffic = build_traffic(mooncake((1100, [70, 71, 72]), (700, [70, 71]), (1024, [70, 75])), 0)
    assert paths_of(traffic) == [
        [(0, 512), (1, 512), (2, 76)],
        [(0, 512), (1, 188)],
        [(0, 512), (3, 512)],
    ]
    assert traffic.num_nodes == 4
    check(traffic)


def test_hashes_far_apart_and_another_block_size(mooncake):
    big = 2**62
    traffic = build_traffic(mooncake((20, [-big, big]), (16, [-big]), hash_tokens=16), 0)
    assert paths_of(traffic) == [[(0, 16), (1, 4)], [(0, 16)]]


def test_a_hash_without_its_past_is_another_node(mooncake):
    """Hashes of the content alone: 9 after 1 is not 9 after 2, nor 9 after 9."""
    rows = [(1536, [1, 9, 9]), (1024, [2, 9]), (1024, [1, 9])]
    traffic = build_traffic(mooncake(*rows), 0)
    (a, b, c), (d, e), (f, g) = ([node for node, _ in path] for path in paths_of(traffic))
    assert (a, b) == (f, g)
    assert len({a, b, c, d, e}) == traffic.num_nodes == 5
    check(traffic)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=20))
def test_two_prompts_share_what_their_hashes_share(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("content") / "t.jsonl"
    lines = [
        {"timestamp": 0, "input_length": 512 * len(ids), "output_length": 1, "hash_ids": ids} for ids in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    asked = scenario.Workload(trace=scenario.Trace(path=str(path)), lengths=scenario.TraceLengths())
    traffic = build_traffic(asked.model_copy(update={"num_requests": len(rows)}), 0)
    check(traffic)
    paths = [[node for node, _ in path] for path in paths_of(traffic)]
    for one, ids in zip(paths, rows, strict=True):
        for other, others in zip(paths, rows, strict=True):
            for depth in range(1, min(len(ids), len(others)) + 1):
                assert (one[:depth] == other[:depth]) == (ids[:depth] == others[:depth])


def test_a_capped_or_scaled_prompt_keeps_its_first_tokens(mooncake):
    rows = [(1100, [0, 1, 2]), (512, [0])]
    assert paths_of(build_traffic(mooncake(*rows, max_tokens=603), 0)) == [[(0, 512), (1, 88)], [(0, 512)]]
    longer = mooncake(*rows, lengths=scenario.TraceLengths(prefill_scale=2.0))
    assert paths_of(build_traffic(longer, 0))[1] == [(0, 512)]
    shuffled = mooncake(*rows, lengths=scenario.TraceLengths(shuffle=True))
    for row, path in zip(
        build_traffic(shuffled, 3).requests, paths_of(build_traffic(shuffled, 3)), strict=True
    ):
        assert sum(tokens for _, tokens in path) == row["prefill_tokens"]


def test_prompts_drawn_with_replacement_share_nothing(mooncake):
    drawn = mooncake((512, [0]), lengths=scenario.EmpiricalLengths(), num_requests=10)
    assert paths_of(build_traffic(drawn, 0)) == [[]] * 10


def test_hashes_that_do_not_cover_the_prompt_name_the_row(mooncake):
    with pytest.raises(TrimtabError, match=r"t.jsonl: row 2: 1 hash_ids for a prompt of 513 .* wanted 2"):
        build_traffic(mooncake((512, [0]), (513, [0])), 0)
    with pytest.raises(TrimtabError, match=r"row 1: 2 hash_ids for a prompt of 512 .* wanted 1"):
        build_traffic(mooncake((512, [0, 1])), 0)
    with pytest.raises(TrimtabError, match="hash_ids"):
        build_traffic(mooncake((512, [0]), prefixes=Prefixes()), 0)


# --- conversations ------------------------------------------------------------------------------

MANY = {"num_requests": 20_000, "arrivals": scenario.PoissonArrivals(qps=10.0)}


@settings(max_examples=40, deadline=None)
@given(
    turns=st.floats(1, 9),
    limit=st.integers(700, 5000),
    groups=st.integers(0, 3),
    count=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
def test_every_prompt_is_the_history_and_new_words(turns, limit, groups, count, seed):
    law = Sessions(turns=turns, think_s=2.0, max_context=limit)
    prefixes = Prefixes(groups=groups, tokens=100, share=0.5) if groups else None
    traffic = build_traffic(workload(num_requests=count, sessions=law, prefixes=prefixes), seed)
    rows, paths = traffic.requests, paths_of(traffic)
    check(traffic)
    assert len(rows) == count
    assert np.all(rows["prefill_tokens"] + rows["decode_tokens"] <= limit)
    timed = np.isfinite(rows["arrival"])
    assert np.array_equal(timed, rows["turn"] == 0)
    assert np.all(np.diff(timed.astype(int)) <= 0)
    assert np.all(np.diff(rows["arrival"][timed]) >= 0)
    assert rows["session"][timed].tolist() == list(range(timed.sum()))
    for row, following in enumerate(rows["next_turn"].tolist()):
        if following == NONE:
            assert rows["think"][row] == 0
            continue
        assert rows["session"][following] == rows["session"][row]
        assert rows["turn"][following] == rows["turn"][row] + 1
        history = rows["prefill_tokens"][row] + rows["decode_tokens"][row]
        assert rows["prefill_tokens"][following] > history
        assert [node for node, _ in paths[following]] == [node for node, _ in paths[row]]
        assert rows["grows"][row] == 1
    assert (rows["next_turn"] != NONE).sum() == count - timed.sum()


def test_turns_thinking_and_rates_are_those_asked_for():
    rows = build_traffic(
        workload(**MANY, sessions=Sessions(turns=4, think_s=7.0, max_context=10**6)), 0
    ).requests
    starts = rows["arrival"][np.isfinite(rows["arrival"])]
    assert len(rows) / len(starts) == pytest.approx(4.0, rel=0.05)
    assert len(rows) / starts[-1] == pytest.approx(10.0, rel=0.05)
    assert rows["think"][rows["next_turn"] != NONE].mean() == pytest.approx(7.0, rel=0.05)
    gaps = np.diff(starts)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)


def test_the_rate_holds_where_the_context_ends_sessions():
    rows = build_traffic(workload(**MANY, sessions=Sessions(turns=8, max_context=1500)), 0).requests
    starts = rows["arrival"][np.isfinite(rows["arrival"])]
    assert len(rows) / len(starts) < 5
    assert len(rows) / starts[-1] == pytest.approx(10.0, rel=0.05)


def test_fixed_turns_and_a_duration():
    law = Sessions(turns=3, law="fixed", max_context=10**6)
    rows = build_traffic(
        workload(sessions=law, arrivals=scenario.StaticArrivals(qps=6.0), duration_s=50.0), 0
    ).requests
    assert len(rows) == 300
    assert rows["arrival"][:100].tolist() == pytest.approx((np.arange(100) / 2).tolist())
    step = scenario.StepArrivals(steps=[(0.0, 30.0), (100.0, 0.0)])
    rows = build_traffic(workload(sessions=law, arrivals=step, duration_s=300.0), 0).requests
    assert len(rows) == pytest.approx(3000, rel=0.15)


def test_of_the_arrivals_of_a_trace_every_fifth_starts_a_session(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrived_at,prefill,decode\n" + "".join(f"{at},5,2\n" for at in range(100)))
    asked = workload(
        num_requests=None,
        trace=scenario.Trace(path=str(path)),
        arrivals=scenario.TraceArrivals(),
        lengths=scenario.TraceLengths(),
        sessions=Sessions(turns=5, law="fixed"),
    )
    rows = build_traffic(asked, 0).requests
    assert len(rows) == 100
    assert rows["arrival"][:20].tolist() == list(range(0, 100, 5))


def test_a_longer_workload_has_the_same_sessions():
    one, other = (
        build_traffic(workload(num_requests=count, sessions=Sessions(max_context=2000)), 4).requests
        for count in (200, 300)
    )
    for table in (one, other):
        table.sort(order=["session", "turn"])
    for column in ("prefill_tokens", "decode_tokens"):
        assert np.array_equal(one[column], other[column][:200]), column


def test_contradictions_are_named():
    for parts, words in (
        ({"users": 3, "sessions": Sessions()}, "drop one of the two"),
        ({"requests_per_session": 3, "sessions": Sessions()}, r"workload.sessions.turns"),
        ({"sessions": Sessions(turns=2.5, law="fixed")}, r"turns=2.5 with law fixed; give a whole number"),
        ({"prefixes": Prefixes(tokens=(9, 5))}, r"tokens=\[9, 5\]"),
        ({"prefixes": Prefixes(tokens=99), "max_tokens": 100}, "at most 98 or raise max_tokens"),
        (
            {"prefixes": Prefixes(tokens=99), "sessions": Sessions(max_context=50)},
            "at most 48 or raise sessions",
        ),
    ):
        with pytest.raises(TrimtabError, match=words):
            build_traffic(workload(**parts), 0)
    with pytest.raises(TrimtabError, match=r"workload\.sessions\.turns"):
        load_scenario({"workload": {"sessions": {"turns": 0.5}}})
    with pytest.raises(TrimtabError, match=r"workload\.prefixes\.share"):
        load_scenario({"workload": {"prefixes": {"share": 1.5}}})


# --- shared prefixes ----------------------------------------------------------------------------


def test_prefixes_come_before_the_drawn_prompt():
    plain = build_traffic(workload(), 0).requests
    traffic = build_traffic(workload(prefixes=Prefixes(groups=5, tokens=(100, 200), share=0.7)), 0)
    check(traffic)
    rows, paths = traffic.requests, paths_of(traffic)
    ahead = np.array([sum(tokens for _, tokens in path) for path in paths])
    assert np.array_equal(rows["prefill_tokens"], plain["prefill_tokens"] + ahead)
    assert np.array_equal(rows["decode_tokens"], plain["decode_tokens"])
    assert np.array_equal(rows["arrival"], plain["arrival"])
    assert np.all(rows["target"] == rows["prefill_tokens"])
    lengths = {path[0][0]: path[0][1] for path in paths if path}
    assert len(lengths) == 5
    assert all(100 <= tokens <= 200 for tokens in lengths.values())


def test_popularity_is_zipf():
    law = Prefixes(groups=4, tokens=10, zipf=1.0, share=0.5)
    traffic = build_traffic(workload(num_requests=50_000, prefixes=law), 0)
    counts = np.bincount(traffic.path_node, minlength=4)
    expected = 25_000 / np.array([1, 2, 3, 4]) / (25 / 12)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_the_cap_leaves_the_prefix_alone():
    law = Prefixes(groups=3, tokens=300)
    traffic = build_traffic(workload(prefixes=law, max_tokens=400), 0)
    rows = traffic.requests
    assert np.all(rows["prefill_tokens"] + rows["decode_tokens"] <= 400)
    assert (rows["prefill_tokens"] + rows["decode_tokens"]).max() == 400
    assert set(traffic.path_tokens.tolist()) == {300}


@pytest.mark.parametrize(
    "parts",
    [{"sessions": Sessions()}, {"prefixes": Prefixes()}, {"sessions": Sessions(), "prefixes": Prefixes()}],
)
def test_a_million_requests_in_three_seconds(parts):
    start = time.process_time()
    traffic = build_traffic(scenario.Workload(num_requests=1_000_000, **parts), 0)
    assert len(traffic.requests) == 1_000_000
    assert time.process_time() - start < 3


def test_a_million_hashes_in_a_second():
    """Twenty hashes a prompt, in a tree: the conversion alone."""
    from trimtab.engine.dtypes import REQUEST
    from trimtab.workload.content import hashed
    from trimtab.workload.trace import Trace

    count, depth = 50_000, 20
    rng = np.random.default_rng(0)
    first = np.sort(rng.integers(0, count // 8, count))
    values = first[:, None] * depth + np.arange(depth)
    tokens = np.full(count, 512 * depth, np.int32)
    trace = Trace("t", None, tokens, tokens, None, np.arange(count + 1) * depth, values.ravel())
    table = np.zeros(count, REQUEST)
    table["prefill_tokens"] = tokens
    start = time.process_time()
    traffic = hashed(table, trace, np.arange(count), 512)
    assert time.process_time() - start < 1
    assert len(traffic.path_node) == count * depth
