"""The main path: a scenario becomes requests and replicas, runs, and leaves a Result."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.cluster import Fleet, Signals, prepare, run
from trimtab.cluster.run import Ask, Progress
from trimtab.conditions import assign_classes, build_conditions
from trimtab.engine.state import BRAINLESS, Brain, State
from trimtab.errors import TrimtabError
from trimtab.fleet import build_fleets
from trimtab.pools import build_pools, decode_router, pool_of_classes
from trimtab.result import Group, Result
from trimtab.routers import Router, get_router
from trimtab.routers.learned import make_brain
from trimtab.routers.policy_file import load_policy
from trimtab.routers.view import RouterView
from trimtab.scenario import Scenario, load_scenario
from trimtab.workload import Traffic, build_traffic, expected_outputs

PythonRouter = Callable[[RouterView], int]


def simulate(
    scenario: str | Path | dict[str, Any] | Scenario,
    *,
    overrides: dict[str, Any] | None = None,
    router: str | PythonRouter | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    max_iterations: int | None = None,
) -> Result:
    """Run a scenario: a bundled name, a YAML file, a dict or a Scenario.

    Parameters
    ----------
    overrides:
        dotted paths to values, as ``{"workload.arrivals.qps": 20}``.
    router:
        a name, or a function ``(view: RouterView) -> int`` called for every request.
    seed:
        replaces the scenario's; same scenario and seed, same result, bit for bit.
    progress:
        called as ``progress(finished, total)`` now and then.
    max_iterations:
        iterations recorded in ``result.iterations`` (default: up to two million; all are counted).

    Raises
    ------
    TrimtabError
        one line, for anything wrong with the scenario or its traffic.
    """
    chosen = load_scenario(scenario, overrides)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    if isinstance(router, str):
        chosen = chosen.model_copy(
            update={"router": chosen.router.model_copy(update={"name": get_router(router).name})}
        )
    traffic = build_traffic(chosen.workload, chosen.seed)
    assign_classes(traffic.requests, chosen)
    fleets, groups = build_fleets(chosen, traffic.requests)
    kind = Router.OUTSIDE if callable(router) else None
    state = start(chosen, traffic, fleets, kind, max_iterations)
    ask = _ask_python(state, router) if callable(router) else None
    until = chosen.time_limit_s or np.inf
    cpu_seconds = run(state, ask, until, progress)
    return collect(chosen, groups, state, cpu_seconds, router)


def start(
    scenario: Scenario,
    traffic: Traffic,
    fleets: list[Fleet],
    kind: Router | None = None,
    max_iterations: int | None = None,
    brain: Brain | None = None,
) -> State:
    """The engine's state at time zero, with the scenario's router, and what it knows, in place.

    ``kind`` replaces the scenario's router; ``brain`` the policy that the learned one reads from its file.
    """
    config = scenario.router
    kind = get_router(config.name).kind if kind is None else kind
    if config.policy and brain is None:
        policy = load_policy(config.policy)
        brain = make_brain(policy.values, policy.hidden, scenario.num_replicas)
    if kind == Router.REPLAY:
        requests = _with_assignment(traffic.requests, scenario)
        traffic = replace(traffic, requests=requests)
    if config.knows != "none":
        requests = traffic.requests.copy()
        requests["expected_decode"] = expected_outputs(requests, config.knows, config.error, scenario.seed)
        traffic = replace(traffic, requests=requests)
    seen = scenario.signals
    signals = Signals(
        seen.refresh_s, seen.delay_s, seen.jitter, seen.count_own, seen.count_answers, seen.routers
    )
    return prepare(
        traffic.requests,
        fleets,
        kind,
        config.choices,
        config.speed_aware,
        max_iterations,
        traffic,
        signals,
        config.temperature,
        tuple(config.weights) if config.weights else None,
        build_conditions(scenario, traffic.requests),
        build_pools(scenario),
        decode_router(scenario).kind if scenario.disaggregation else Router.LEAST_OUTSTANDING,
        seed=scenario.seed,
        brain=brain or BRAINLESS,
    )


def collect(
    scenario: Scenario,
    groups: list[Group],
    state: State,
    cpu_seconds: float,
    router: str | PythonRouter | None = None,
) -> Result:
    """Everything worth keeping of a state that has run."""
    recorded = min(int(state.control["iterations"][0]), len(state.iterations))
    samples = int(state.control["samples"][0])
    changes = min(int(state.control["scalings"][0]), len(state.scalings))
    provenance = _provenance(scenario)
    provenance["iterations"] = int(state.control["iterations"][0])
    if callable(router):
        provenance["router"] = getattr(router, "__name__", "python")
    return Result(
        scenario=scenario,
        provenance=provenance,
        groups=tuple(groups),
        requests=state.requests,
        replicas=state.replicas,
        iterations=state.iterations[:recorded],
        sample_times=state.sample_times[:samples],
        samples=state.samples[:samples],
        itl_counts=state.itl,
        cpu_seconds=cpu_seconds,
        scalings=state.scalings[:changes],
    )


def _provenance(scenario: Scenario) -> dict[str, Any]:
    import numba

    import trimtab

    return {
        "trimtab": trimtab.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "digest": scenario.digest(),
    }


def _ask_python(state: State, router: PythonRouter) -> Ask:
    view = RouterView(state)

    def ask(_: State, request: int) -> int:
        view.request = request
        return router(view)

    return ask


def _with_assignment(requests: NDArray[Any], scenario: Scenario) -> NDArray[Any]:
    given, num_replicas = scenario.router.assignment, scenario.num_replicas
    if given is None or len(given) != len(requests):
        count = "none" if given is None else str(len(given))
        raise TrimtabError(
            f"router replay needs router.assignment with one replica per request: "
            f"{len(requests)} requests, {count} given"
        )
    if min(given) < 0 or max(given) >= num_replicas:
        raise TrimtabError(
            f"router.assignment must hold replicas 0 to {num_replicas - 1}, "
            f"got values from {min(given)} to {max(given)}"
        )
    pools = build_pools(scenario)[np.array(pool_of_classes(scenario))[requests["klass"]]]
    foreign = (pools["first"] > given) | (pools["last"] <= np.array(given))
    if foreign.any():
        request = int(foreign.argmax())
        why = "does not prefill its model" if scenario.disaggregation else "serves another model"
        raise TrimtabError(
            f"router.assignment sends request {request} to replica {given[request]}, which {why}; "
            f"allowed: {pools['first'][request]} to {pools['last'][request] - 1}"
        )
    requests = requests.copy()
    requests["replica"] = given
    return requests
