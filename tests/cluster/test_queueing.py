"""Degenerate replicas are queues with known solutions: path by path, and in the mean."""

from __future__ import annotations

import heapq
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.cluster import prepare, run
from trimtab.engine.dtypes import Scheduler
from trimtab.engine.state import State
from trimtab.routers import Router

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "queueing_theory.py"


def load_benchmark() -> Any:
    """The module that the full measurement runs; it is a program, not part of a package."""
    spec = importlib.util.spec_from_file_location(BENCHMARK.stem, BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


queueing = load_benchmark()


def serve(table: Any, fleet: Any, ask: Any = None) -> State:
    state = prepare(table, [fleet], Router.OUTSIDE if ask else Router.ROUND_ROBIN, max_iterations=0)
    run(state, ask)
    return state


def waits_in_order(arrivals: np.ndarray, services: np.ndarray, servers: int) -> np.ndarray:
    """Waits of one first-come-first-served queue: Lindley's recursion, with a heap for more servers."""
    free = [0.0] * servers
    waits = []
    for arrival, service in zip(arrivals.tolist(), services.tolist(), strict=True):
        start = max(arrival, heapq.heappop(free))
        waits.append(start - arrival)
        heapq.heappush(free, start + service)
    return np.array(waits)


@pytest.mark.parametrize("scheduler", list(Scheduler), ids=lambda one: one.name.lower())
def test_one_sequence_at_a_time_is_a_queue_with_one_server(scheduler: Scheduler) -> None:
    """Every scheduler, every request: prompts and outputs of any length make the service time."""
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1.0, 3000))
    prompts, outputs = rng.integers(1, 40, 3000), rng.integers(1, 40, 3000)
    services = 0.022 * (prompts + outputs - 1)
    state = serve(
        queueing.requests(arrivals, prompts, outputs), queueing.replicas(0.022, scheduler=scheduler)
    )
    expected = waits_in_order(arrivals, services, 1)
    assert expected.mean() > 1.0
    table = state.requests
    np.testing.assert_allclose(table["scheduled"] - table["arrival"], expected, atol=1e-8)
    np.testing.assert_allclose(table["finished"] - table["scheduled"], services, atol=1e-8)


def test_a_router_that_sees_the_work_left_makes_one_queue_of_many_servers() -> None:
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.exponential(0.3, 3000))
    prompts = rng.geometric(0.01, 3000)
    ask = queueing.least_work_left(prompts * 0.01, 4)
    state = serve(queueing.requests(arrivals, prompts), queueing.replicas(0.01, count=4), ask)
    expected = waits_in_order(arrivals, prompts * 0.01, 4)
    assert expected.mean() > 0.1
    np.testing.assert_allclose(state.requests["scheduled"] - arrivals, expected, atol=1e-9)


def test_areas_are_the_sums_of_times() -> None:
    """Little's law on a path: request-seconds by replica equal those by request."""
    rng = np.random.default_rng(3)
    arrivals = np.cumsum(rng.exponential(0.5, 2000))
    outputs = rng.geometric(0.1, 2000)
    state = serve(queueing.requests(arrivals, 3, outputs), queueing.replicas(0.05, count=3, max_seqs=2))
    for replica, row in enumerate(state.replicas):
        mine = state.requests[state.requests["replica"] == replica]
        assert len(mine) == row["routed"] == row["finished"]
        waited = (mine["scheduled"] - mine["arrival"]).sum()
        assert waited > 1.0
        assert row["waiting_area"] == pytest.approx(waited)
        assert row["running_area"] == pytest.approx((mine["finished"] - mine["scheduled"]).sum())


# Each has a chance of 1 in 1000 to fail when anything changes the random stream; the seed is fixed.
@pytest.mark.parametrize("rho", [0.5, 0.8])
@pytest.mark.parametrize("kind", queueing.KINDS, ids=lambda kind: kind.__name__)
def test_means_are_those_of_theory(kind: Any, rho: float) -> None:
    figures = queueing.measure(kind(rho), seed=7, repetitions=20, count=6000, warm_up=500, confidence=0.999)
    for name, figure in figures.items():
        assert figure.inside, (name, figure)
        assert figure.half_width < 0.5 * figure.exact, "too wide to say anything"


def test_a_slower_server_is_noticed() -> None:
    """The same comparison fails when the service takes 5 % longer than theory is told."""
    case = queueing.constant(0.8)
    slow = queueing.Case(
        "slow", 0.8, 1, lambda rng, at: (queueing.requests(at), queueing.replicas(1.05), None), case.exact
    )
    figures = queueing.measure(slow, seed=7, repetitions=10, count=12_000, warm_up=500)
    assert not figures["wait"].inside and not figures["in_system"].inside


def test_exact_solutions_agree_where_they_overlap() -> None:
    """The embedded chain with one server is Pollaczek-Khinchine; in small steps it is Erlang's formula."""
    step = queueing.COARSE
    chain = queueing.embedded_chain(0.8, step, 1, lambda k: step)
    np.testing.assert_allclose(chain, queueing.pollaczek_khinchine(0.8, 1.0, 2.0 - step), rtol=1e-9)
    np.testing.assert_allclose(queueing.erlang_c(0.8, 1), (4.0, 4.0), rtol=1e-12)
    fine = queueing.embedded_chain(3.2, 1e-4, 4, lambda k: 1e-4)
    np.testing.assert_allclose(fine, queueing.erlang_c(3.2, 4), rtol=1e-3)
    np.testing.assert_allclose(queueing.erlang_c(3.2, 4)[0], 0.745541, rtol=1e-5)
