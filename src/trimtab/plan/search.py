"""The cheapest cluster for a workload under service levels: every configuration sized by simulation.

Successive halving: all configurations are sized with one replication; the cheaper share of them again with
more, and again. What drops out is behind by estimate, or out of reach; what remains at the end is sized with
intervals, and says which of the finalists cannot be told from the best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.plan.bounds import Bound, parse_bounds
from trimtab.plan.capacity import FEWEST_REQUESTS, OutOfReach, fewest_replicas
from trimtab.plan.executors import Executor
from trimtab.plan.scale import mean_rate, split_evenly
from trimtab.plan.space import Space, configurations
from trimtab.plan.store import Store, key_of
from trimtab.plan.trial import what_binds
from trimtab.scenario import Scenario
from trimtab.workload import build_requests

Json = dict[str, Any]
Progress = Callable[[int, int, str], None]

RUNGS = ((1,), (2, 4), (2, 4, 8, 16))  # replications of the sequential tests
KEPT = (0.2, 0.25)  # of the configurations that go on to the next rung, cheapest first
LEAST_KEPT = 12
TIMES = 4.0  # a perfect system's replicas: more are not the cheapest
SAVED_EVERY = 2.0  # s
TRIED = ("ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "tpot_p99", "e2e_p50")  # kept of every size


@dataclass(frozen=True)
class Search:
    """What a search found. ``rows`` are of the last rung that each configuration reached, cheapest first,
    those out of reach last; costs in USD per hour by ``prices``; ``best`` is None where nothing is in reach.

    ``fresh`` counts the points that were computed now, the others were in the store.
    """

    scenario: Scenario
    bounds: tuple[Bound, ...]
    space: Space
    prices: dict[str, float]
    rows: list[Json]
    best: Json | None
    fresh: int
    seconds: float
    simulated: int  # requests, of the rows
    complete: bool


def size_point(payload: Json) -> Json:
    """A point of a sweep: the fewest replicas of a configuration, and what they come to. Pure."""
    scenario = Scenario.model_validate(payload["scenario"])
    started = time.process_time()
    row: Json = {**payload["choices"], "rung": payload["rung"]}
    try:
        bounds = parse_bounds(payload["bounds"], scenario)
        found = fewest_replicas(
            scenario, bounds, requests=payload["requests"] or None, workers=1, counts=payload["counts"],
            most_times=TIMES,
        )  # fmt: skip
    except OutOfReach as error:
        return row | {"status": "out of reach", "message": str(error), "times": error.times}
    except TrimtabError as error:
        return row | {"status": "impossible", "message": str(error)}
    kept = {
        name: value
        for name, value in found.figures.items()
        if ":" not in name and not name.startswith("goodput")
    }
    tried = [
        {"replicas": size, **{name: figures[name] for name in TRIED}} for size, figures in found.tried.items()
    ]
    return row | kept | {
        "status": "ok", "replicas": found.replicas, "low": found.low, "high": found.high,
        "ideal": found.ideal,
        "load": found.load, "binding": str(found.binding),
        "resource": what_binds(found.figures),
        "requests": found.requests, "replications": found.replications, "trials": found.trials,
        "cpu_s": time.process_time() - started, "tried": tried,
    }  # fmt: skip


def search(
    scenario: Scenario,
    bounds: str | None,
    space: Space,
    prices: dict[str, float],
    store: Store,
    executor: Executor,
    requests: int | None = None,
    progress: Progress | None = None,
) -> Search:
    """Size every configuration of ``space`` for the scenario's own load; the cheapest is the best.

    Points that are in ``store`` are not computed again; Ctrl-C keeps what is done there, and raises.

    Raises
    ------
    TrimtabError
        for an empty space, a closed loop, or bounds that cannot be read.
    """
    started = time.perf_counter()
    parsed = parse_bounds(bounds, scenario)
    asked = build_requests(scenario.workload, scenario.seed)["decode_tokens"]
    tokens = mean_rate(scenario) * float(asked.mean())
    said = ",".join(str(bound) for bound in parsed)
    waiting = [
        {"choices": choices, "scenario": each.model_dump(mode="json", exclude_unset=True), "bounds": said}
        for choices, each in configurations(scenario, space)
    ]
    if not waiting:
        raise TrimtabError("the space of the search is empty")
    latest: dict[str, Json] = {}
    fresh = 0
    for rung, counts in enumerate(RUNGS):
        payloads = [
            {
                **each,
                "rung": rung,
                "counts": list(counts),
                "requests": requests or (FEWEST_REQUESTS if not rung else 0),
            }
            for each in waiting
        ]
        rows, computed = sweep(payloads, store, executor, progress, f"rung {rung + 1} of {len(RUNGS)}")
        fresh += computed
        for each, row in zip(waiting, rows, strict=True):
            latest[key_of(each)] = priced(row, each, prices, tokens)
        good = [each for each in waiting if latest[key_of(each)]["status"] == "ok"]
        good.sort(key=lambda each: _order(latest[key_of(each)]))
        if rung < len(KEPT):
            waiting = good[: max(LEAST_KEPT, math.ceil(KEPT[rung] * len(good)))]
    ordered = sorted(latest.values(), key=_order)
    best = next((row for row in ordered if row["status"] == "ok" and row["rung"] == len(RUNGS) - 1), None)
    return Search(
        scenario, parsed, space, prices, ordered, best, fresh, time.perf_counter() - started,
        sum(int(row.get("trials", 0)) * int(row.get("requests", 0)) for row in ordered), True,
    )  # fmt: skip


def _order(row: Json) -> tuple[float, float, float]:
    """In reach first, then of the last rung, then the cheapest, then the shortest first tokens."""
    if row["status"] != "ok":
        return (math.inf, row.get("times", math.inf), 0.0)
    return (row["cost_per_hour"], row["ttft_p90"], row["tpot_p99"])


def sweep(
    payloads: Sequence[Json],
    store: Store,
    executor: Executor,
    progress: Progress | None = None,
    label: str = "",
    function: Callable[[Json], Json] = size_point,
) -> tuple[list[Json], int]:
    """(a row per payload, how many were computed now); the rest was in the store, where all end.

    Ctrl-C, or whatever else ends it, leaves the rows that are done in the store.
    """
    keys = [key_of(payload) for payload in payloads]
    rows = store.read(set(keys))
    missing = [index for index, key in enumerate(keys) if key not in rows]
    fresh: list[Json] = []
    saved = time.monotonic()
    try:
        for done, row in executor.run(function, [payloads[index] for index in missing]):
            key = keys[missing[done]]
            rows[key] = {"key": key, **row}
            fresh.append(rows[key])
            if time.monotonic() - saved > SAVED_EVERY:
                store.append(fresh)
                fresh, saved = [], time.monotonic()
            if progress:
                progress(len(rows), len(keys), label)
    finally:
        store.append(fresh)
    return [rows[key] for key in keys], len(missing)


def priced(row: Json, payload: Json, prices: dict[str, float], tokens: float) -> Json:
    """The row with its costs, which no simulation depends on; ``tokens`` of output are asked per second."""
    groups = payload["scenario"]["replicas"]
    if row["status"] != "ok":
        return dict(row)
    each = prices[row["device"]] * row["tp"] * row["pp"]
    counts = split_evenly(row["replicas"], [group["count"] for group in groups])
    return row | {
        "counts": ":".join(str(count) for count in counts),
        "gpus": row["replicas"] * row["tp"] * row["pp"],
        "price": each,
        "cost_per_hour": each * row["replicas"],
        "cost_low": each * row["low"],
        "cost_high": each * row["high"],
        "cost_per_million": each * row["replicas"] / (3.6e-3 * tokens),
        "qps_per_dollar": row["load"] / (each * row["replicas"]),
    }


def front(rows: Sequence[Json], figure: str) -> list[Json]:
    """Points (a size of a configuration) that none beats in both cost per million tokens and ``figure``."""
    points = [
        {**{name: row[name] for name in LABELS}, "replicas": size["replicas"], figure: size[figure],
         "cost_per_million": row["cost_per_million"] * size["replicas"] / row["replicas"]}
        for row in rows if row["status"] == "ok" for size in row["tried"] if math.isfinite(size[figure])
    ]  # fmt: skip
    points.sort(key=lambda point: (point["cost_per_million"], point[figure]))
    best: list[Json] = []
    for point in points:
        if not best or point[figure] < best[-1][figure]:
            best.append(point)
    return best


LABELS = ("device", "tp", "pp", "scheduler", "token_budget", "max_num_seqs", "router", "roles")


def tied(found: Search) -> list[Json]:
    """The rows of the last rung whose cost may be as low as the best one's may be."""
    if found.best is None:
        return []
    last = [row for row in found.rows if row["status"] == "ok" and row["rung"] == found.best["rung"]]
    return [row for row in last if row is not found.best and row["cost_low"] <= found.best["cost_high"]]


def router_savings(found: Search) -> list[Json]:
    """For the best hardware and limits: what each router needs there, the fewest replicas first."""
    if found.best is None:
        return []
    same = [name for name in LABELS if name != "router"]
    rows = [
        row for row in found.rows
        if row["status"] == "ok" and all(row[name] == found.best[name] for name in same)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["replicas"], row["ttft_p90"]))


def explain_failure(found: Search) -> str:
    """How far off the best configuration is where none is in reach."""
    off = [row for row in found.rows if row["status"] == "out of reach"]
    if not off:
        why = next((row["message"] for row in found.rows), "there is none")
        return f"no configuration can run at all; of the first: {why}"
    best = min(off, key=lambda row: row["times"])
    where = f"{best['device']} tp {best['tp']} pp {best['pp']}, {best['scheduler']}, {best['router']}"
    return f"no configuration of {len(found.rows)} is in reach; the nearest is {where}: {best['message']}"
