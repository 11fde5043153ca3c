"""The published routers against a table worked out by hand, and against plain Python on random tables.

Four replicas whose columns are simply set; one request of 100 prompt tokens is routed by the compiled loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from oracle.parts import request_table
from scipy import stats
from strategies import random_tables

from trimtab.cluster import Fleet, Signals, prepare
from trimtab.cluster.whole import advance_whole
from trimtab.engine.dtypes import NONE, Scheduler
from trimtab.routers import ROUTERS
from trimtab.simulation import simulate
from trimtab.workload.content import Traffic

BLOCK = 10
PUBLISHED = [name for name, info in ROUTERS.items() if info.source]

TABLE: dict[str, list[float]] = {
    "waiting": [0, 6, 0, 2],
    "running": [6, 9, 3, 2],
    "pending_prefill": [100, 600, 0, 50],
    "expected_decode": [60.0, 40.0, 100.0, 200.0],
    "kv_used": [90, 20, 10, 60],
    "kv_total": [200, 200, 200, 200],
    "prefill_done": [1000, 500, 900, 480],
    "routed": [5, 3, 9, 4],
    "finished": [3, 10, 12, 5],
    "latency_first": [0.3, 0.9, 1.35, 1.0],
    "latency_last": [0.0, 0.5, 0.05, 0.0],
    "match": [0, 90, 40, 20],
}


@dataclass(frozen=True)
class Moment:
    columns: dict[str, Any]
    prompt: int = 100
    coin_a: float = 0.6
    coin_b: float = 0.9
    session: int = 0
    temperature: float = 0.0
    weights: tuple[float, float, float] | None = None

    @property
    def count(self) -> int:
        return len(self.columns["match"])

    def __getitem__(self, name: str) -> Any:
        if name == "load":
            return self["waiting"] + self["running"]
        return np.asarray(self.columns[name])


def route(name: str, moment: Moment, signals: Signals | None = None) -> int:
    """What the compiled router chooses. The prompt is one node of content, partly cached."""
    row = {
        "arrival": 0.0,
        "prefill_tokens": moment.prompt,
        "decode_tokens": 3,
        "expected_decode": 10,
        "session": moment.session,
        "path_len": 1,
        "coin_a": moment.coin_a,
        "coin_b": moment.coin_b,
    }
    requests = request_table([row])
    fleet = Fleet(
        "g", Scheduler.VLLM_V1, random_tables(0), moment.count, 10_000, 4, 16, BLOCK, prefix_caching=True
    )
    state = prepare(
        requests,
        [fleet],
        ROUTERS[name].kind,
        max_iterations=10,
        traffic=Traffic(requests, np.zeros(1, np.int64), np.full(1, moment.prompt, np.int64), 1),
        signals=signals or Signals(),
        temperature=moment.temperature,
        weights=moment.weights,
    )
    for column in moment.columns:
        state.replicas[column] = moment[column]
    state.replicas["outstanding"] = moment["load"]
    state.cache["blocks"][:, 0] = moment["match"] // BLOCK
    state.groups["prefill_s"], state.groups["decode_s"] = 0.001, 0.01
    if signals:
        state.seen[:] = np.tile(state.replicas, len(state.seen) // moment.count)
        for column in ("waiting", "running", "outstanding", "pending_prefill", "kv_used", "prefill_done"):
            state.replicas[column] = 0
    advance_whole(state, 0.0)
    return int(state.requests["replica"][0])


# --- by hand ---------------------------------------------------------------------------------------

# In flight: 6, 15, 3, 4. (router, changed columns or facts, choice); the numbers are per replica.
BY_HAND: list[tuple[str, dict[str, Any], int]] = [
    ("least-busy", {}, 2),
    ("litellm-latency", {}, 0),  # 0.3 / 3, (0.9 + 0.5) / 10, (1.35 + 0.05) / 10, 1 / 5
    ("litellm-latency", {"finished": [3, 10, 12, 0], "latency_first": [0.3, 0.9, 1.35, 0]}, 3),  # untried
    ("dynamo-kv", {}, 2),  # 200/10 + 90, 610/10 + 20, 60/10 + 10, 130/10 + 60
    ("dynamo-kv", {"kv_used": [90, 20, 100, 60]}, 3),  # 110, 81, 106, 73
    ("llm-d", {}, 2),  # 0 + 1 + .55, 1.8 + 0 + .9, .8 + 1 + .95, .4 + .67 + .7
    ("llm-d", {"weights": (3.0, 1.0, 1.0)}, 1),  # 3.6 against 3.15
    ("gie", {}, 2),  # 0 + 2 + 1.1, 2.7 + 0 + 1.8, 1.2 + 2 + 1.9, .6 + 1.33 + 1.4
    ("gie", {"waiting": [0, 0, 0, 0]}, 1),  # equal queues score 1: 2.7 + 2 + 1.8 = 6.5 against 5.1
    ("lmetric", {}, 2),  # 200 * 7, 610 * 16, 60 * 4, 130 * 5
    ("lmetric", {"pending_prefill": [100, 600, 400, 50]}, 3),  # 460 * 4 = 1840
    ("llumnix", {}, 2),  # 100 / 6, 120 / 15, 190 / 3, 135 / 4 blocks free per request
    ("llumnix", {"kv_used": [90, 20, 150, 60]}, 3),  # 50 / 3
    ("llumnix", {"running": [0, 9, 3, 2]}, 0),  # nobody there
    ("stack-loadaware", {}, 2),  # mean 7: -.14, 8/7 - .9 = .24, -4/7 - .4 = -.97, -3/7 - .2 = -.63
    ("stack-loadaware", {"match": [0, 90, 0, 20]}, 3),  # -.57 against -.63
    ("stack-prefixaware", {}, 1),
    ("stack-prefixaware", {"match": [0, 0, 0, 0]}, 2),  # the coin
    ("stack-session", {"session": NONE}, 1),  # fewest requests so far
    ("sglang-cache-aware", {}, 1),  # 15 - 3 <= 64
    ("sglang-cache-aware", {"running": [6, 61, 3, 2]}, 1),  # 67 - 3 = 64
    ("sglang-cache-aware", {"running": [6, 62, 3, 2]}, 2),  # 68 - 3 > 64 and 68 > 1.5 * 3
    (
        "sglang-cache-aware",
        {"running": [206, 224, 200, 202], "waiting": [0, 50, 0, 0]},
        1,
    ),  # 274 <= 1.5 * 200
    ("sglang-cache-aware", {"match": [0, 30, 20, 20]}, 2),  # 0.3 is not enough
    ("aibrix-prefix", {}, 2),  # 15 - 3 > 8: only the idlest
    ("aibrix-prefix", {"match": [0, 90, 0, 20]}, 2),  # though it has nothing
    ("aibrix-prefix", {"waiting": [0, 0, 0, 2], "running": [6, 5, 3, 2]}, 1),  # 5 <= 4.5 + 1.12
    ("aibrix-prefix", {"waiting": [0, 0, 0, 2], "running": [4, 8, 3, 2]}, 2),  # 8 > 4.75 + 1.92
    ("aibrix-prefix", {"waiting": [0] * 4, "running": [6, 5, 3, 2], "match": [0] * 4}, 3),  # least
    ("ray-prefix", {}, 2),  # 15 - 3 > 10: of 2 (coin 0.6) and 1 (0.9 of the other three)
    ("ray-prefix", {"coin_a": 0.3}, 0),  # of 1 and 0
    ("ray-prefix", {"running": [6, 7, 3, 2]}, 1),  # 13 - 3 = 10: balanced
    (
        "ray-prefix",
        {"running": [6, 7, 3, 2], "prompt": 200, "match": [0, 10, 0, 0]},
        3,
    ),  # 0.05: 1100, 1100, 900, 530
    ("preble", {}, 1),  # .2 + .6, .61 + .4 (holds 90 %), .06 + 1, .13 + 2 s
    ("preble", {"pending_prefill": [100, 900, 0, 50]}, 0),  # 1.31 >= 1.5 * .8
    ("preble", {"match": [0, 50, 40, 20]}, 0),  # half is not more than half
]


def changed(**changes: Any) -> Moment:
    columns = TABLE | {name: value for name, value in changes.items() if name in TABLE}
    facts = {name: value for name, value in changes.items() if name not in TABLE}
    return replace(Moment(columns), **facts)


@pytest.mark.parametrize(("name", "changes", "choice"), BY_HAND)
def test_numbers_by_hand(name: str, changes: dict[str, Any], choice: int) -> None:
    assert route(name, changed(**changes)) == choice


@pytest.mark.parametrize("name", PUBLISHED)
def test_stale_tables_are_read_instead_of_the_replicas(name: str) -> None:
    """The same columns in the router's snapshot, the replicas themselves idle: the same choice."""
    for session in (NONE, 3):
        moment = changed(session=session)
        assert route(name, moment, Signals(refresh=5.0)) == route(name, moment)


# --- in plain Python -------------------------------------------------------------------------------


def hashes(key: int, count: int) -> list[int]:
    """Three rounds of a quadratic map modulo a Mersenne prime."""
    prime, found = 2**31 - 1, []
    for number in range(count):
        value = (48271 * key + 16807 * number + 12345) % prime
        for _ in range(3):
            value = (value**2 + 48271 * value + 11) % prime
        found.append(value)
    return found


def first_of(moment: Moment, costs: Any, among: Any = None) -> int:
    """Lowest cost; ties go to the first from the coin's replica on."""
    start = int(moment.coin_a * moment.count)
    order = [(start + step) % moment.count for step in range(moment.count)]
    return min((one for one in order if among is None or among[one]), key=lambda one: costs[one])


def new_tokens(moment: Moment) -> Any:
    return moment["pending_prefill"] + moment.prompt - moment["match"]


def latencies(moment: Moment) -> list[float]:
    pairs = zip(moment["finished"], moment["latency_first"] + moment["latency_last"], strict=True)
    return [total / min(count, 10) if count else 0.0 for count, total in pairs]


def scorers(moment: Moment, weights: tuple[float, float, float]) -> Any:
    waiting = moment["waiting"]
    spread = np.ptp(waiting)
    queue = (waiting.max() - waiting) / spread if spread else np.ones(moment.count)
    free = 1 - moment["kv_used"] / moment["kv_total"]
    prefix, of_queue, of_kv = weights
    return -(prefix * moment["match"] / moment.prompt + of_queue * queue + of_kv * free)


def llumnix(moment: Moment) -> Any:
    free = moment["kv_total"] - moment["kv_used"] - moment["pending_prefill"] / BLOCK
    return [-math.inf if load == 0 else -one / load for one, load in zip(free, moment["load"], strict=True)]


def loadaware(moment: Moment) -> Any:
    mean = moment["load"].mean()
    return (moment["load"] - mean) / max(1.0, mean) - moment["match"] / moment.prompt


def best_match(moment: Moment, among: Any) -> int | None:
    match = np.where(among, moment["match"], 0)
    if match.max() == 0:
        return None
    return first_of(moment, moment["load"], (match == match.max()) & among)


def sglang(moment: Moment) -> int:
    load = moment["load"]
    balanced = np.ptp(load) <= 64 or load.max() <= 1.5 * load.min()
    if balanced and moment["match"].max() > 0.3 * moment.prompt:
        return best_match(moment, load >= 0)  # type: ignore[return-value]
    return first_of(moment, load)


def aibrix(moment: Moment) -> int:
    load = moment["load"]
    among = load <= (load.min() if np.ptp(load) > 8 else load.mean() + load.std() + 1e-12)
    best = best_match(moment, among)
    return first_of(moment, load) if best is None else best


def ray(moment: Moment) -> int:
    load = moment["load"]
    if np.ptp(load) > 10:
        first = int(moment.coin_a * moment.count)
        other = (first + 1 + int(moment.coin_b * (moment.count - 1))) % moment.count
        return other if load[other] < load[first] else first
    if moment["match"].max() >= max(1, 0.1 * moment.prompt):
        return best_match(moment, load >= 0)  # type: ignore[return-value]
    return first_of(moment, moment["prefill_done"] + moment["pending_prefill"])


def preble(moment: Moment) -> int:
    seconds = 0.001 * new_tokens(moment) + 0.01 * moment["expected_decode"]
    explorer = first_of(moment, seconds)
    longest = moment["match"].max()
    holder = first_of(moment, seconds, moment["match"] == longest)
    exploits = longest > moment.prompt - longest and seconds[holder] < 1.5 * seconds[explorer]
    return holder if exploits else explorer


def bounded(moment: Moment) -> int:
    key = 2 * moment.session if moment.session != NONE else 1
    load = moment["load"]
    most = math.ceil(1.25 * (load.sum() + 1) / moment.count)
    return int(np.argmax(np.where(load + 1 <= most, hashes(key, moment.count), -1)))


def by_session(moment: Moment) -> int:
    if moment.session == NONE:
        return int(np.argmin(moment["routed"]))
    return int(np.argmax(hashes(2 * moment.session, moment.count)))


IN_PYTHON: dict[str, Callable[[Moment], int]] = {
    "least-busy": lambda moment: first_of(moment, moment["load"]),
    "litellm-latency": lambda moment: first_of(moment, latencies(moment)),
    "dynamo-kv": lambda moment: first_of(moment, new_tokens(moment) / BLOCK + moment["kv_used"]),
    "llm-d": lambda moment: first_of(moment, scorers(moment, moment.weights or (2, 1, 1))),
    "gie": lambda moment: first_of(moment, scorers(moment, moment.weights or (3, 2, 2))),
    "lmetric": lambda moment: first_of(moment, new_tokens(moment) * (moment["load"] + 1)),
    "llumnix": lambda moment: first_of(moment, llumnix(moment)),
    "stack-loadaware": lambda moment: first_of(moment, loadaware(moment)),
    "stack-prefixaware": lambda moment: first_of(moment, -moment["match"]),
    "stack-session": by_session,
    "sglang-cache-aware": sglang,
    "aibrix-prefix": aibrix,
    "ray-prefix": ray,
    "preble": preble,
    "bounded-hash": bounded,
}


def random_moment(rng: np.random.Generator) -> Moment:
    count, spread = int(rng.integers(1, 8)), int(rng.choice([2, 6, 200]))
    finished = rng.integers(0, 15, count)
    return Moment(
        columns={
            "waiting": rng.integers(0, spread, count),
            "running": rng.integers(0, spread, count),
            "pending_prefill": 64 * rng.integers(0, spread, count),
            "expected_decode": 16.0 * rng.integers(0, spread, count),
            "kv_used": rng.integers(0, 150, count),
            "kv_total": np.full(count, 200),
            "prefill_done": 100 * rng.integers(0, 9, count),
            "routed": rng.integers(0, 9, count),
            "finished": finished,
            "latency_first": 0.01 * np.minimum(finished, 9) * rng.integers(1, 9, count),
            "latency_last": np.where(finished > 9, 0.3, 0.0),
            "match": BLOCK * rng.integers(0, int(rng.choice([1, 3, 10])), count),
        },
        coin_a=rng.random(),
        coin_b=rng.random(),
        session=int(rng.integers(-1, 9)),
        weights=None if rng.integers(2) else (1.0, 4.0, 0.5),
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_plain_python(name: str) -> None:
    rng = np.random.default_rng(21)
    chosen = []
    for _ in range(200):
        moment = random_moment(rng)
        chosen.append(route(name, moment))
        assert chosen[-1] == IN_PYTHON[name](moment), moment
    assert len(set(chosen)) > 3


def test_temperature_draws_by_normalised_costs() -> None:
    """Dynamo: costs 110, 81, 16, 73 over their range of 94; exp(-share / 0.5)."""
    rng = np.random.default_rng(22)
    moments = [changed(temperature=0.5, coin_a=coin) for coin in rng.random(1500)]
    counts = np.bincount([route("dynamo-kv", moment) for moment in moments], minlength=4)
    chances = np.exp(-np.array([110, 81, 16, 73]) / 94 / 0.5)
    assert stats.chisquare(counts, 1500 * chances / chances.sum()).pvalue > 0.001


def test_hashes_spread_sessions_evenly() -> None:
    homes = [int(np.argmax(hashes(2 * session, 8))) for session in range(4000)]
    assert stats.chisquare(np.bincount(homes, minlength=8)).pvalue > 0.001


# --- in a run --------------------------------------------------------------------------------------

SHARED = {
    "workload.num_requests": 1500,
    "workload.arrivals": {"kind": "poisson", "qps": 20},
    "workload.prefixes": {"groups": 12, "tokens": 2048},
    "replicas.scheduler.prefix_caching": True,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_serves_shared_prefixes(name: str) -> None:
    result = simulate("azure-conv", overrides=SHARED, router=name)
    assert (result.requests["status"] == 3).all()
    assert result.replicas["hit_tokens"].sum() > 0


def test_latencies_are_those_of_the_first_nine_and_the_latest() -> None:
    result = simulate("azure-conv", overrides={"workload.num_requests": 300, "router.name": "least-busy"})
    for number, row in enumerate(result.replicas):
        mine = result.requests[result.requests["replica"] == number]
        mine = mine[np.argsort(mine["finished"], kind="stable")]
        each = (mine["finished"] - mine["arrival"]) / mine["decode_tokens"]
        assert row["latency_first"] == pytest.approx(each[:9].sum())
        assert len(np.unique(mine["finished"][-2:])) < 2 or row["latency_last"] == pytest.approx(each[-1])


@pytest.mark.parametrize("refresh", [0.0, 5.0])
def test_python_routers_see_the_same_matches(refresh: float) -> None:
    """stack-prefixaware written in Python: the longest match, ties from the coin's replica on."""
    overrides = SHARED | {"workload.num_requests": 400, "signals.refresh_s": refresh}
    ours = simulate("azure-conv", overrides=overrides, router="stack-prefixaware").requests

    def longest(view: Any) -> int:
        start = int(ours["coin_a"][view.request] * view.num_replicas)
        order = (np.arange(view.num_replicas) + start) % view.num_replicas
        return int(order[np.argmax(view.prefix_hit_tokens[order])])

    theirs = simulate("azure-conv", overrides=overrides, router=longest).requests
    assert (theirs["replica"] == ours["replica"]).all() and (theirs["hit_tokens"] > 0).any()
