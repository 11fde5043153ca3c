"""Stage 1: what teachers answer, recorded as the learned router would have seen it.

A compiled router teaches by what it chooses, the look-ahead teacher by what every choice would cost. Each
teacher drives its own scenarios; of imbalanced ones, some carry twice the load, some half of it, and some
start with one replica that was sent everything.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import Outcome
from trimtab.engine.state import State
from trimtab.errors import TrimtabError, unknown
from trimtab.learn.given import with_load
from trimtab.learn.lookahead import Outlook, Teacher
from trimtab.learn.presets import TrainConfig
from trimtab.learn.rollout import spread
from trimtab.learn.scenarios import HARD, Draw, build_episode, stream
from trimtab.learn.sealed import write_whole
from trimtab.routers import ROUTERS, Router, get_router
from trimtab.routers.features import CONTEXT, FEATURES
from trimtab.routers.learned import decision_width, make_brain, policy_size
from trimtab.scenario import Scenario
from trimtab.simulation import start

Progress = Callable[..., None]

LOOK_AHEAD = "look-ahead"
# Who drives between two questions to the look-ahead teacher, and goes on in its simulated futures.
BASES = (Router.LMETRIC, Router.PREBLE, Router.LEAST_PENDING_PREFILL)
VARIANTS = ("plain", "double load", "half load", "skewed start")
SKEWED = 0.05  # share of the requests that one replica is sent before a skewed start is over
FEWEST_SCENARIOS = 8  # per teacher, so that every variant comes twice
AT_ONCE = 4  # scenarios played before their decisions are counted
TEACHERS_NOT_COPIED = ("learned", "replay")
BLIND = {
    "round-robin": "it goes by turns",
    "random": "it tosses a coin",
    "sticky-session": "it goes by the session",
    "stack-session": "it goes by the session",
    "bounded-hash": "it goes by a hash of the prompt",
}


@dataclass(frozen=True)
class Demonstrations:
    """N decisions: ``rows`` (N, W) as the engine keeps them, the teacher's choice in column 0, padded to
    the widest; ``costs`` (N, R) per replica of the pool, nan where the teacher names none, inf where a
    replica does not accept; ``teacher`` (N,) index into ``teachers``; ``scenario`` (N,) which one."""

    rows: NDArray[np.float32]
    costs: NDArray[np.float32]
    teacher: NDArray[np.int64]
    scenario: NDArray[np.int64]
    teachers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


def check_teachers(names: tuple[str, ...]) -> None:
    """Raises TrimtabError for a teacher that is none."""
    allowed = [LOOK_AHEAD, *(name for name in ROUTERS if name not in TEACHERS_NOT_COPIED)]
    for name in names:
        if name != LOOK_AHEAD and (name in TEACHERS_NOT_COPIED or name not in ROUTERS):
            raise unknown("teacher", name, allowed)


def limits_of(names: tuple[str, ...]) -> list[str]:
    """What no clone can learn, said before anybody wonders."""
    return [
        f"{name} decides by what a router's view does not hold ({BLIND[name]}): "
        "of it a clone can learn no more than to spread evenly"
        for name in names
        if name in BLIND
    ]


def demonstrate(
    teacher: str, number: int, config: TrainConfig, draw: Draw, report: Progress
) -> Demonstrations:
    """``steps_per_policy`` decisions of one teacher; ``number`` seeds its scenarios."""
    wanted, found = config.clone.steps_per_policy, 0
    kept: list[Demonstrations] = []
    while found < wanted:
        indices = range(len(kept), len(kept) + AT_ONCE)

        def one(index: int) -> Demonstrations:
            return _play(teacher, number, index, config, draw)

        kept += spread(one, indices)
        found = sum(len(part) for part in kept)
        report(min(found, wanted), wanted, teacher)
    return _first(join(kept), wanted)


def join(parts: list[Demonstrations]) -> Demonstrations:
    """All of them, one after another; scenarios keep their numbers."""
    width = max(part.costs.shape[1] for part in parts)
    names = tuple(dict.fromkeys(name for part in parts for name in part.teachers))
    place = [np.array([names.index(name) for name in part.teachers]) for part in parts]
    return Demonstrations(
        np.concatenate([_widened(part.rows, decision_width(width), 0.0) for part in parts]),
        np.concatenate([_widened(part.costs, width, np.nan) for part in parts]),
        np.concatenate([where[part.teacher] for where, part in zip(place, parts, strict=True)]),
        np.concatenate([part.scenario for part in parts]),
        names,
    )


def _widened(table: NDArray[np.float32], width: int, filling: float) -> NDArray[np.float32]:
    wide = np.full((len(table), width), filling, np.float32)
    wide[:, : table.shape[1]] = table
    return wide


def _first(all_of_them: Demonstrations, count: int) -> Demonstrations:
    taken = {name: getattr(all_of_them, name)[:count] for name in ("rows", "costs", "teacher", "scenario")}
    return replace(all_of_them, **taken)


# --- one scenario -------------------------------------------------------------------------------


def _play(teacher: str, number: int, index: int, config: TrainConfig, draw: Draw) -> Demonstrations:
    """One scenario of a teacher: the ``index``-th, in its variant."""
    clone = config.clone
    variant = VARIANTS[index % len(VARIANTS)] if clone.include_imbalanced else VARIANTS[0]
    rng = stream("demonstrations", config.seed, number, index)
    scenario, state = _begin(rng, draw, variant, config.hidden)
    count = len(state.requests)
    share = -(-clone.steps_per_policy // FEWEST_SCENARIOS)
    every = max(clone.every, count // share)
    skew = int(SKEWED * count) if variant == "skewed start" else 0
    base = BASES[index % len(BASES)] if teacher == LOOK_AHEAD else get_router(teacher).kind
    guide = Teacher(state, Outlook(), int(base)) if teacher == LOOK_AHEAD else None
    rows, costs = _drive(state, int(base), guide, every, skew)
    return Demonstrations(
        rows,
        _widened(costs, scenario.num_replicas, np.nan),
        np.zeros(len(rows), np.int64),
        np.full(len(rows), 1_000_000 * number + index),
        (teacher,),
    )


def _begin(rng: np.random.Generator, draw: Draw, variant: str, hidden: int) -> tuple[Scenario, State]:
    while True:
        try:
            scenario = draw(rng, HARD)
            factor = {"double load": 2.0, "half load": 0.5}.get(variant, 1.0)
            scenario = with_load(scenario, factor) if factor != 1.0 else scenario
            traffic, fleets = build_episode(scenario)
        except TrimtabError:
            continue  # a fleet that cannot hold the longest request: draw another
        blank = np.zeros(policy_size(hidden))
        brain = make_brain(blank, hidden, scenario.num_replicas, len(traffic.requests))
        return scenario, start(scenario, traffic, fleets, Router.OUTSIDE, max_iterations=1, brain=brain)


def _drive(
    state: State, base: int, guide: Teacher | None, every: int, skew: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Answer every request as ``base`` would, and keep one answer in ``every``; with ``guide``, its costs
    decide the kept ones. The first ``skew`` requests all go to one replica, unrecorded."""
    from trimtab.cluster.whole import advance_whole, answer_whole, consult

    rows: list[NDArray[np.float32]] = []
    costs: list[NDArray[np.float64]] = []
    control, asked = state.control, 0
    while advance_whole(state, np.inf) == Outcome.ASKING:
        first, asked = int(control["first"][0]), asked + 1
        if asked <= skew:
            answer_whole(state, first)
            continue
        replica = consult(state, base)
        if (asked - skew) % every == 0:
            consult(state, int(Router.LEARNED))  # writes the row
            row = state.decisions[int(control["asking"][0])].copy()
            pool = int(row[1])
            cost = np.full(pool, np.nan)
            if guide is not None:
                cost = guide.costs()
                replica = first + int(cost.argmin())
            row[0] = replica - first
            if _accepts(row, replica - first):
                rows.append(row)
                costs.append(cost)
        answer_whole(state, replica)
    width = max((len(cost) for cost in costs), default=1)
    table = [np.pad(cost, (0, width - len(cost)), constant_values=np.nan) for cost in costs]
    return (
        np.array(rows, np.float32).reshape(len(rows), state.decisions.shape[1]),
        np.array(table, np.float32).reshape(len(rows), width),
    )


def _accepts(row: NDArray[np.float32], replica: int) -> bool:
    return bool(row[decision_width(replica)] > 0)


# --- on disk ------------------------------------------------------------------------------------


def digest(config: TrainConfig, scenario: Scenario | None) -> str:
    """Twelve hex digits of all that demonstrations depend on, the teachers' names left out."""
    clone = config.clone
    content = [
        config.seed, clone.steps_per_policy, clone.include_imbalanced, clone.every,
        scenario.digest() if scenario else None, [*FEATURES, *CONTEXT],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def save_demonstrations(found: Demonstrations, path: Path, mark: str) -> None:
    """One .npz, whole or not at all; ``mark`` is its ``digest``."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {**vars(found), "teachers": np.array(found.teachers), "digest": np.array(mark)}
    np.savez_compressed(content, **arrays)
    write_whole(path, content.getvalue())


def load_demonstrations(path: Path, mark: str) -> Demonstrations | None:
    """None where there is no such file, where it is damaged, and where it is of another training."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if str(content["digest"]) != mark:
                return None
            names = tuple(str(name) for name in content["teachers"])
            arrays = {key: content[key] for key in ("rows", "costs", "teacher", "scenario")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return Demonstrations(**arrays, teachers=names)


def only(found: Demonstrations, teacher: str) -> Demonstrations:
    """Those of one teacher."""
    mine = found.teacher == found.teachers.index(teacher)
    return Demonstrations(
        found.rows[mine], found.costs[mine], np.zeros(mine.sum(), np.int64), found.scenario[mine], (teacher,)
    )
