"""What the engine writes down: the histogram of token gaps, and load samples that thin themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle.parts import request_table
from strategies import plain_tables

import trimtab as tt
from trimtab.cluster import Fleet, prepare, run
from trimtab.engine.dtypes import ITL_BINS, ITL_GAMMA, ITL_LOWEST, Scheduler
from trimtab.engine.state import SAMPLE_CAPACITY, State
from trimtab.exectime.tables import ExecTables
from trimtab.routers import Router


def steady_tables(seconds: float) -> ExecTables:
    tables = plain_tables(fixed=seconds, per_token=0.0)
    return replace(tables, kv_write_s=np.zeros_like(tables.token_s))


def steady(seconds: float, outputs: list[int], count: int = 1, gap: float = 0.0) -> State:
    """Requests one after another (``gap`` s), on replicas whose iterations all take ``seconds``."""
    fleet = Fleet("steady", Scheduler.VLLM_V1, steady_tables(seconds), count, 100_000, 8, 4096)
    rows: list[dict[str, Any]] = [
        {"arrival": index * gap, "prefill_tokens": 5, "decode_tokens": tokens}
        for index, tokens in enumerate(outputs)
    ]
    return prepare(request_table(rows), [fleet], Router.ROUND_ROBIN)


def edges(slot: int) -> tuple[float, float]:
    return ITL_LOWEST * ITL_GAMMA**slot, ITL_LOWEST * ITL_GAMMA ** (slot + 1)


@pytest.mark.parametrize("seconds", [1.0001e-6, 3.7e-5, 0.001, 0.0123, 0.5, 1.0, 7.7, 900.0])
def test_gaps_fall_into_their_bin(seconds: float) -> None:
    """Known to 0.1 %: the middle of the bin is that close to any gap in it."""
    state = steady(seconds, [101])
    run(state)
    (slot,) = np.flatnonzero(state.itl)
    assert state.itl[slot] == 100
    low, high = edges(slot)
    assert low * (1 - 1e-9) <= seconds <= high * (1 + 1e-9)
    middle = (low * high) ** 0.5
    assert abs(middle / seconds - 1.0) <= 0.001


@pytest.mark.parametrize(("seconds", "slot"), [(1e-7, 0), (1e-6, 0), (1e9, ITL_BINS - 1)])
def test_gaps_beyond_the_bins_are_counted_at_the_ends(seconds: float, slot: int) -> None:
    state = steady(seconds, [11])
    run(state)
    assert state.itl[slot] == state.itl.sum() == 10


def test_bins_reach_from_microseconds_to_minutes() -> None:
    assert edges(0)[0] == 1e-6
    assert edges(ITL_BINS - 1)[1] > 900.0


def test_a_preempted_request_keeps_its_long_gap() -> None:
    """Two requests outgrow the cache together; the one sent back waits for the other to finish."""
    fleet = Fleet("tight", Scheduler.VLLM_V1, steady_tables(1.0), 1, 8, 8, 4096, block_size=4)
    rows = [{"arrival": 0.0, "prefill_tokens": 8, "decode_tokens": 16}] * 2
    state = prepare(request_table(rows), [fleet], Router.ROUND_ROBIN)
    run(state)
    assert state.requests["preemptions"].tolist() == [0, 1]
    times = state.requests["finished"] - state.requests["first_token"]
    waited = times[1] - 14.0  # fourteen gaps of one second, and the one in which it was recomputed
    assert waited > 2.0
    (single,) = np.flatnonzero(state.itl == 1)
    assert edges(single)[0] <= waited <= edges(single)[1]
    assert state.itl.sum() == 30


def test_samples_are_thinned_as_the_run_goes_on() -> None:
    """Always between half full and full, evenly spaced by a power of two times the first interval."""
    state = steady(0.25, [4] * 400, gap=0.9)
    run(state)
    count = int(state.control["samples"][0])
    times, every = state.sample_times[:count], float(state.control["sample_every"][0])
    assert SAMPLE_CAPACITY // 2 <= count <= SAMPLE_CAPACITY
    assert every == 0.01 * 2 ** round(np.log2(every / 0.01)) and every > 0.01
    np.testing.assert_allclose(times, np.arange(count) * every, rtol=1e-12)
    assert times[-1] <= state.requests["finished"].max() <= times[-1] + 2 * every


def test_samples_agree_with_the_requests() -> None:
    """Whoever is in the system at a sampled time is counted, thinned or not."""
    state = steady(0.25, [1, 7, 3, 30, 2] * 80, count=2, gap=0.6)
    run(state)
    count = int(state.control["samples"][0])
    assert state.control["sample_every"][0] > 0.01, "thinned at least once"
    table = state.requests
    for row in range(0, count, 7):
        now = state.sample_times[row]
        for replica in range(2):
            mine = table[table["replica"] == replica]
            running = (mine["scheduled"] <= now) & (now < mine["finished"])
            waiting = (mine["arrival"] <= now) & (now < mine["scheduled"])
            assert state.samples["running"][row, replica] == running.sum()
            assert state.samples["waiting"][row, replica] == waiting.sum()


def test_a_short_run_keeps_every_sample() -> None:
    state = steady(0.25, [4])
    run(state)
    assert state.control["sample_every"][0] == 0.01
    assert state.control["samples"][0] == 100


def test_iterations_beyond_the_limit_are_counted() -> None:
    overrides = {"workload.num_requests": 50}
    whole = tt.simulate("azure-conv", overrides=overrides)
    part = tt.simulate("azure-conv", overrides=overrides, max_iterations=100)
    assert len(part.iterations) == 100
    assert part.provenance["iterations"] == whole.provenance["iterations"] == len(whole.iterations)
    assert part.iterations.tolist() == whole.iterations[:100].tolist()
    assert part.requests["finished"].tolist() == whole.requests["finished"].tolist()
