"""What a routing decision cost: the other replicas tried in hindsight, with the very arrivals that came.

The run is replayed decision by decision. At a sample of them the fleet is copied once per replica, the
request is sent there, and the near future is simulated with all other requests where they went. A choice
costs the seconds until the first token, summed over the request and those that come within the horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.cluster.whole import answer_whole
from trimtab.conditions import assign_classes
from trimtab.errors import TrimtabError
from trimtab.fleet import build_fleets
from trimtab.learn.lookahead import Outlook, Teacher, ask
from trimtab.result import Result
from trimtab.routers import Router
from trimtab.simulation import start
from trimtab.workload import build_traffic

HORIZON_S = 10.0
LEAST = 1e-9  # s: below, two choices are the same


class Decision(NamedTuple):
    """One decision: who was chosen, who would have been best, and the seconds of waiting that it cost."""

    request: int
    time_s: float
    chosen: int
    best: int
    regret_s: float


def regrets(
    result: Result, decisions: int = 100, progress: Callable[[int, int], None] | None = None
) -> list[Decision]:
    """``decisions`` of a run, evenly over its arrivals, each against the best choice in hindsight.

    Raises
    ------
    TrimtabError
        for prefill and decode apart, retries and rejected requests: there is not one decision per request.
    """
    table, scenario = result.requests, result.scenario
    chosen = table["replica"].astype(int)
    _check(result, chosen)
    config = scenario.router.model_copy(update={"name": "replay", "assignment": [int(r) for r in chosen]})
    replay = scenario.model_copy(update={"router": config})
    traffic = build_traffic(scenario.workload, scenario.seed)
    assign_classes(traffic.requests, scenario)
    fleets, _ = build_fleets(scenario, traffic.requests)
    state = start(replay, traffic, fleets, Router.REPLAY, max_iterations=0)
    outlook = Outlook(horizon=HORIZON_S, scale=1.0, power=1.0, dwelling=0.0)
    teacher = Teacher(state, outlook, int(Router.REPLAY))
    times = np.sort(table["arrival"])[np.linspace(0, len(table) - 1, min(decisions, len(table))).astype(int)]
    found = []
    for done, time in enumerate(times.tolist()):
        if not ask(state, time):
            break
        request = int(state.control["asking"][0])
        costs = teacher.costs()
        first = int(state.control["first"][0])
        found.append(
            _judge(request, float(state.control["now"][0]), int(chosen[request]) - first, costs, first)
        )
        state.control["router"] = int(Router.OUTSIDE)
        answer_whole(state, int(chosen[request]))
        state.control["router"] = int(Router.REPLAY)
        if progress:
            progress(done + 1, len(times))
    return found


def _judge(request: int, now: float, chosen: int, costs: NDArray[np.float64], first: int) -> Decision:
    best = int(np.argmin(costs))
    regret = float(costs[chosen] - costs[best])
    if regret < LEAST:
        best, regret = chosen, 0.0
    return Decision(request, now, first + chosen, first + best, regret)


def _check(result: Result, chosen: NDArray[Any]) -> None:
    if result.scenario.disaggregation is not None:
        raise TrimtabError("regret knows one decision per request; with disaggregation there are two")
    if (chosen < 0).any() or result.requests["retries"].any():
        raise TrimtabError("regret needs a run in which every request was routed exactly once")


def summary(found: list[Decision]) -> dict[str, float]:
    """Mean, p99 and greatest regret (s), and the share of decisions that none was better than."""
    values = np.array([each.regret_s for each in found])
    return {
        "decisions": float(len(found)),
        "mean_s": float(values.mean()),
        "p99_s": float(np.quantile(values, 0.99)),
        "most_s": float(values.max()),
        "best_share": float((values == 0).mean()),
    }
