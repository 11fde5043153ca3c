"""Every router of the registry against numbers by hand, and against plain Python on random tables.

A request arrives at a cluster whose replica columns are simply set; the compiled loop routes it.
A router that has no entry in ``BY_HAND`` and ``IN_PYTHON`` fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from oracle.parts import request_table
from scipy import stats
from strategies import random_tables

from trimtab.cluster import Fleet, prepare
from trimtab.cluster.loop import advance
from trimtab.engine.dtypes import NONE, Scheduler
from trimtab.errors import TrimtabError
from trimtab.routers import ROUTERS, Router, get_router

PROMPT, EXPECTED_OUTPUT = 100, 10
OURS = [
    name for name, info in ROUTERS.items() if not info.source and name != "learned"
]  # those: tests/routers


@dataclass
class Moment:
    """A cluster at the arrival of a request: ``columns`` (R,) each, ``groups`` (2,) each."""

    columns: dict[str, Any]
    groups: dict[str, Any]
    coin_a: float = 0.6
    coin_b: float = 0.9
    choices: int = 2
    speed_aware: bool = True
    turn: int = 3
    session: int = 0
    home: int = NONE
    assigned: int = 2

    @property
    def count(self) -> int:
        return len(self.columns["group"])


def route(name: str, moment: Moment) -> int:
    """What the compiled router chooses."""
    row = {
        "arrival": 0.0,
        "prefill_tokens": PROMPT,
        "decode_tokens": 3,
        "expected_decode": EXPECTED_OUTPUT,
        "session": moment.session,
        "replica": moment.assigned,
        "coin_a": moment.coin_a,
        "coin_b": moment.coin_b,
    }
    in_group = np.bincount(moment.columns["group"], minlength=2)
    fleets = [
        Fleet("g", Scheduler.VLLM_V1, random_tables(group), int(count), 10_000, 4, 16, int(block))
        for group, (count, block) in enumerate(zip(in_group, moment.groups["block_size"], strict=True))
    ]
    state = prepare(
        request_table([row]),
        fleets,
        ROUTERS[name].kind,
        moment.choices,
        moment.speed_aware,
        max_iterations=10,
    )
    for column, values in moment.columns.items():
        state.replicas[column] = values
    state.replicas["outstanding"] = state.replicas["waiting"] + state.replicas["running"]
    state.groups["prefill_s"] = moment.groups["prefill_s"]
    state.groups["decode_s"] = moment.groups["decode_s"]
    state.turns[:] = moment.turn
    state.homes[max(moment.session, 0)] = moment.home
    advance(state, 0.0)
    chosen = int(state.requests["replica"][0])
    if name == "sticky-session" and moment.session != NONE:
        assert state.homes[moment.session] == chosen, "the session's home is remembered"
    return chosen


# --- by hand ---------------------------------------------------------------------------------------

FOUR = Moment(
    columns={
        "group": [0, 0, 1, 1],
        "speed": [1.0, 1.0, 0.5, 0.5],
        "waiting": [0, 1, 0, 0],
        "running": [6, 3, 2, 3],
        "pending_prefill": [900, 2000, 700, 50],
        "expected_decode": [60.0, 40.0, 100.0, 200.0],
        "kv_used": [90, 20, 10, 60],
        "kv_total": [200, 200, 100, 100],
    },
    groups={"block_size": [16, 8], "prefill_s": [0.001, 0.002], "decode_s": [0.01, 0.02]},
)

# router: (choice with speeds, choice without)
BY_HAND: dict[str, tuple[int, int]] = {
    "random": (1, 2),  # 0.6 of [0..1..2..2.5..3]; of [0..1..2..3..4]
    "round-robin": (3, 3),
    "power-of-two": (1, 2),  # of 2 (coin 0.6) and 1 (0.9 of the other three): 6 and 5; 3 and 5
    "least-outstanding": (1, 2),  # 7, 5, 6, 8; 7, 5, 3, 4
    "vllm-dp": (2, 2),  # 7, 8, 6, 8; 7, 8, 3, 4
    "least-pending-prefill": (3, 3),  # 1000, 2100, 1600, 300; 1000, 2100, 800, 150
    "least-kv": (1, 1),  # 152.5 / 200, 151.25 / 200, 110 / 100, 78.75 / 100
    "least-work": (0, 0),  # 1.7, 2.6, 3.8, 4.5 s
    "sticky-session": (1, 2),  # the first of its session
    "vidur-lor": (0, 0),  # the lowest of three without a queue
    "replay": (2, 2),
}


@pytest.mark.parametrize("name", OURS)
def test_numbers_by_hand(name: str) -> None:
    assert route(name, FOUR) == BY_HAND[name][0]
    assert route(name, Moment(FOUR.columns, FOUR.groups, speed_aware=False)) == BY_HAND[name][1]


def test_a_session_stays() -> None:
    assert route("sticky-session", Moment(FOUR.columns, FOUR.groups, home=3)) == 3
    assert route("sticky-session", Moment(FOUR.columns, FOUR.groups, session=NONE, home=3)) == 1


# --- in plain Python -------------------------------------------------------------------------------

Score = Callable[[Moment, int], float]


def speed(moment: Moment, replica: int) -> float:
    return float(moment.columns["speed"][replica]) if moment.speed_aware else 1.0


def group_fact(moment: Moment, name: str, replica: int) -> Any:
    return moment.groups[name][moment.columns["group"][replica]]


def outstanding(moment: Moment, replica: int) -> float:
    both = moment.columns["waiting"][replica] + moment.columns["running"][replica]
    return float((both + 1) / speed(moment, replica))


def vllm_dp(moment: Moment, replica: int) -> float:
    columns = moment.columns
    return float((4 * columns["waiting"][replica] + columns["running"][replica] + 1) / speed(moment, replica))


def prompts(moment: Moment, replica: int) -> int:
    return int(moment.columns["pending_prefill"][replica]) + PROMPT


def kv_share(moment: Moment, replica: int) -> float:
    blocks = moment.columns["kv_used"][replica] + prompts(moment, replica) / group_fact(
        moment, "block_size", replica
    )
    return float(blocks / moment.columns["kv_total"][replica])


def work(moment: Moment, replica: int) -> float:
    outputs = moment.columns["expected_decode"][replica] + EXPECTED_OUTPUT
    prefill = prompts(moment, replica) * group_fact(moment, "prefill_s", replica)
    return float(prefill + outputs * group_fact(moment, "decode_s", replica))


def from_coin(moment: Moment) -> list[int]:
    """Replicas in the order in which ties are broken."""
    first = int(moment.coin_a * moment.count)
    return [(first + step) % moment.count for step in range(moment.count)]


def smallest(score: Score, among: Callable[[Moment], Iterable[int]] = from_coin) -> Callable[[Moment], int]:
    return lambda moment: min(among(moment), key=lambda replica: score(moment, replica))


def two_of_them(moment: Moment) -> list[int]:
    first, *others = from_coin(moment)
    return [first, others[int(moment.coin_b * len(others))]] if others else [first]


def by_speed(moment: Moment) -> int:
    ends = np.cumsum([speed(moment, replica) for replica in range(moment.count)])
    return min(int(np.searchsorted(ends, moment.coin_a * ends[-1], side="right")), moment.count - 1)


IN_PYTHON: dict[str, Callable[[Moment], int]] = {
    "random": by_speed,
    "round-robin": lambda moment: moment.turn,
    "power-of-two": smallest(outstanding, two_of_them),
    "least-outstanding": smallest(outstanding),
    "vllm-dp": smallest(vllm_dp),
    "least-pending-prefill": smallest(
        lambda moment, replica: prompts(moment, replica) / speed(moment, replica)
    ),
    "least-kv": smallest(kv_share),
    "least-work": smallest(work),
    "sticky-session": lambda moment: smallest(outstanding)(moment) if moment.home == NONE else moment.home,
    "vidur-lor": lambda moment: int(np.argmin(moment.columns["waiting"])),
    "replay": lambda moment: moment.assigned,
}


def random_moment(rng: np.random.Generator) -> Moment:
    """One to nine replicas; small numbers, so that ties are common."""
    first, second = rng.integers(1, 6), rng.integers(0, 5)
    count = int(first + second)
    spread = int(rng.choice([2, 5, 50]))
    speeds = np.array([1.0, float(rng.choice([0.25, 0.3, 1.0]))])
    group = np.repeat([0, 1], [first, second])
    return Moment(
        columns={
            "group": group,
            "speed": speeds[group],
            "waiting": rng.integers(0, spread, count),
            "running": rng.integers(0, spread, count),
            "pending_prefill": 64 * rng.integers(0, spread, count),
            "expected_decode": 16.0 * rng.integers(0, spread, count),
            "kv_used": rng.integers(0, 100, count),
            "kv_total": np.array([100, 200])[group],
        },
        groups={
            "block_size": rng.choice([1, 16], 2),
            "prefill_s": rng.uniform(1e-4, 1e-3, 2),
            "decode_s": rng.uniform(1e-3, 1e-2, 2),
        },
        coin_a=rng.random(),
        coin_b=rng.random(),
        speed_aware=bool(rng.integers(2)),
        turn=int(rng.integers(count)),
        home=int(rng.integers(-1, count)),
        assigned=int(rng.integers(count)),
    )


@pytest.mark.parametrize("name", OURS)
def test_equals_plain_python(name: str) -> None:
    rng = np.random.default_rng(11)
    chosen = []
    for _ in range(300):
        moment = random_moment(rng)
        chosen.append(route(name, moment))
        assert chosen[-1] == IN_PYTHON[name](moment), moment
    assert len(set(chosen)) > 3


# --- chances ---------------------------------------------------------------------------------------


def level(speeds: list[float], **settings: Any) -> Moment:
    """Replicas of one group, replica i with i requests running."""
    columns = {"group": [0] * len(speeds), "speed": speeds, "waiting": [0] * len(speeds)}
    columns |= {"running": list(range(len(speeds)))}
    columns |= {name: [0] * len(speeds) for name in ("pending_prefill", "expected_decode", "kv_used")}
    columns |= {"kv_total": [100] * len(speeds)}
    return Moment(columns, FOUR.groups, **settings)


def counted(name: str, speeds: list[float], tosses: int = 1500, **settings: Any) -> np.ndarray:
    rng = np.random.default_rng(12)
    chosen = [
        route(name, level(speeds, coin_a=rng.random(), coin_b=rng.random(), **settings))
        for _ in range(tosses)
    ]
    return np.bincount(chosen, minlength=len(speeds))


def test_random_goes_by_speed() -> None:
    counts = counted("random", [1.0, 0.5, 0.25, 0.25])
    assert stats.chisquare(counts, 1500 * np.array([0.5, 0.25, 0.125, 0.125])).pvalue > 0.001


def test_power_of_two_draws_every_pair_alike() -> None:
    """The least loaded of R wins whenever it is drawn, the most loaded never."""
    counts = counted("power-of-two", [1.0] * 4)
    assert counts[3] == 0
    assert stats.chisquare(counts[:3], 1500 * np.array([3, 2, 1]) / 6).pvalue > 0.001


def test_one_choice_is_random() -> None:
    counts = counted("power-of-two", [1.0] * 4, choices=1)
    assert stats.chisquare(counts).pvalue > 0.001


def test_ties_are_random() -> None:
    rng = np.random.default_rng(13)
    moment = level([1.0] * 4)
    moment.columns["running"] = [1, 1, 2, 1]
    chosen = []
    for coin in rng.random(1500):
        moment.coin_a = float(coin)
        chosen.append(route("least-outstanding", moment))
    counts = np.bincount(chosen, minlength=4)
    assert counts[2] == 0 and (counts[[0, 1, 3]] > 300).all()


# --- the catalogue ---------------------------------------------------------------------------------


def test_names_and_aliases_are_found_and_unique() -> None:
    every = [name for info in ROUTERS.values() for name in (info.name, *info.aliases)]
    assert len(every) == len(set(every))
    for name in every:
        assert name in (get_router(name).name, *get_router(name).aliases)
    assert {info.kind for info in ROUTERS.values()} == set(Router) - {Router.OUTSIDE}
    with pytest.raises(TrimtabError, match="Did you mean 'random'"):
        get_router("rnadom")
