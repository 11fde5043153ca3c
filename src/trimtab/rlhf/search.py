"""The whole legal space of plans, and the best few of it.

Time and memory fall apart along the space: what a group of GPUs needs depends on its roles, its size and
the training settings; what the engines need, on their number and settings. So every group is worked out
for all training settings at once (columns.py), and placements only add up columns: nothing is left out,
nothing sampled. With engines apart, the training settings that suit a placement best do so for every
choice of engines, so one pass over them serves all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.rlhf import memory, steps
from trimtab.rlhf.columns import Array, Mask, PoolColumns, Tables, group_sizes
from trimtab.rlhf.flags import version_key
from trimtab.rlhf.generation import kv_capacity
from trimtab.rlhf.job import GIB, Job
from trimtab.rlhf.placement import ROLES, Placement, Plan, Serving

UTILIZATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SAFE = 0.8  # of memory and host that the goal `safest` uses at most
TIGHT = 0.93  # of the usable memory, above which a plan counts as a little slower
SWITCH = 0.003  # every switch costs that share of the step: none is thrown for nothing
PREFERRED = 8  # placements of each kind that are kept
PARTIAL_SINCE = "0.9.7"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """One kept plan with its estimated step (s) and peak (bytes of the fullest GPU)."""

    plan: Plan
    seconds: float
    peak: float


@dataclass(frozen=True)
class Searched:
    """The best plans, the best of each kind of placement first; how many combinations were covered, and how
    many of them are legal and fit."""

    plans: tuple[Found, ...]
    considered: int
    legal: int
    fitting: int


def search(job: Job, progress: Progress | None = None) -> Searched:
    """The best plans of the whole legal space for ``job.goal``.

    Raises
    ------
    TrimtabError
        where nothing is legal or nothing fits: what the nearest plan lacks.
    """
    tables = Tables(job)
    keeper = Keeper(tables)
    sharings = ("actor-ref+critic-reward", "actor-ref", "critic-reward", "none")
    kinds = [_hybrid, _together, *(_apart(sharing) for sharing in sharings)]
    for done, kind in enumerate(kinds):
        if progress is not None:
            progress(done, len(kinds))
        kind(tables, keeper)
    if not keeper.found:
        raise TrimtabError(_nothing(job, keeper))
    return Searched(keeper.best(), keeper.considered, keeper.legal, keeper.fitting)


def equal_split(job: Job) -> Found | None:
    """The guide's rule of thumb, engines : actor : critic = 1 : 1 : 1 (1 : 1 without a critic), at its best
    settings; None where it is not legal or does not fit."""
    tables = Tables(job)
    sharing = "actor-ref+critic-reward"
    pools = [("actor", "ref"), ("critic", "reward")]
    there = [tuple(role for role in pair if role in tables.models) for pair in pools]
    there = [roles for roles in there if roles and (roles != ("reward",))]
    sizes = [size for size in group_sizes(job) if size <= job.cluster.gpus // (len(there) + 1)]
    if not sizes or any(len(roles) < 2 for roles in there) or "critic" not in tables.models:
        return None
    keeper = Keeper(tables)
    each = tuple(sizes[-1] for _ in there)
    columns = [tables.pool(roles, each[0], each[0], False) for roles in there]
    chosen = _learners(tables, keeper, each, columns, 1)
    if chosen is None:
        return None
    for engines in _engines(tables, each[0], False):
        place = Placement(
            "distributed", sharing, engines=engines.count, tp=engines.tp, **_groups(tables, each[0])
        )
        keeper.offer(place, engines.serving, chosen, engines.generation, _update(job, False))
    return keeper.best()[0] if keeper.found else None


def _nothing(job: Job, keeper: Keeper) -> str:
    cluster = job.cluster
    degrees = keeper.tables.degrees()
    if all(kv_capacity(job, tp, UTILIZATIONS[-1]) < job.max_tokens for tp in degrees):
        return (
            f"no engine can hold {job.actor.name} and a sequence of {job.max_tokens:,} tokens: tensor "
            f"parallelism may be {', '.join(map(str, degrees))} on {cluster.device.name}; use "
            "a larger device or shorter sequences"
        )
    over, limit = keeper.nearest / GIB, keeper.usable / GIB
    what = f"the nearest plan needs {over:.1f} GiB of the {limit:.1f} usable on a GPU"
    if over <= limit:
        what = f"plans that fit on the GPUs need more than {cluster.host_gib:g} GiB of host memory per node"
    return (
        f"nothing fits: {job.actor.name} with {job.algorithm} on {cluster.gpus} x "
        f"{cluster.device.name}: {what}; "
        "use more GPUs, a larger device, shorter sequences or a LoRA"
    )


@dataclass(frozen=True)
class Learners:
    """What a placement's trainers come to: the best row of settings, its seconds, cost, peak; counts."""

    row: int
    seconds: float
    cost: float
    peak: float
    legal: int
    fitting: int


class Keeper:
    """Counts what was covered and keeps the best of each kind of placement."""

    def __init__(self, tables: Tables):
        self.tables, self.job = tables, tables.job
        self.found: dict[tuple[str, str], list[tuple[tuple[float, ...], Found]]] = {}
        self.considered = self.legal = self.fitting = 0
        self.nearest = np.inf
        cluster = self.job.cluster
        limit = SAFE if self.job.goal == "safest" else 1.0
        self.usable = cluster.device.memory_bytes * (1 - memory.SLACK) * limit
        self.host = cluster.host_gib * GIB * memory.HOST_LIMIT * limit
        self.burden = 1 + SWITCH * tables.switches

    def learners(self, learn: Array, peak: Array, host: Array, legal: Mask, times: int) -> Learners | None:
        """The cheapest legal row that fits; ``times`` settings of engines share it."""
        self.considered += times * len(learn)
        num_legal = int(np.count_nonzero(legal))
        self.legal += times * num_legal
        fits = legal & (peak <= self.usable) & (host <= self.host)
        rows = np.flatnonzero(fits)
        if not len(rows):
            if num_legal:
                self.nearest = min(self.nearest, float(peak[legal].min()))
            return None
        self.fitting += times * len(rows)
        cost = learn[rows] * (self.burden[rows] + 0.02 * (peak[rows] > TIGHT * self.usable))
        best = int(cost.argmin())
        row = int(rows[best])
        return Learners(row, float(learn[row]), float(cost[best]), float(peak[row]), num_legal, len(rows))

    def worth(
        self,
        kind: tuple[str, str],
        gpus: int,
        throws: int,
        chosen: Learners,
        generation: float,
        update: float,
    ) -> tuple[float, ...] | None:
        """The key of a placement of a ``kind`` (mode, sharing); None where it is not among the best."""
        if not np.isfinite(generation):
            return None
        join = max if kind[0] == "async" else _sum
        cost = join(generation * (1 + SWITCH * throws), chosen.cost) + update
        # Where one side waits for the other anyway, the lighter load still counts a little.
        cost += 1e-3 * (generation + chosen.cost)
        key = (float(gpus), cost) if self.job.goal == "fewest" else (cost,)
        kept = self.found.get(kind, [])
        return None if len(kept) == PREFERRED and key >= kept[-1][0] else key

    def offer(
        self, placement: Placement, serving: Serving, chosen: Learners, generation: float, update: float
    ) -> None:
        """A placement with its engines; kept if it is among the best of its kind."""
        throws = serving.eager + serving.vllm_sleep + serving.ds_sleep + serving.partial
        kind = (placement.mode, placement.sharing)
        key = self.worth(kind, placement.gpus, throws, chosen, generation, update)
        if key is None:
            return
        join = max if placement.mode == "async" else _sum
        kept = self.found.setdefault(kind, [])
        plan = Plan(placement, self.tables.rows.training(chosen.row), serving)
        kept.append((key, Found(plan, join(generation, chosen.seconds) + update, chosen.peak)))
        kept.sort(key=lambda entry: entry[0])
        del kept[PREFERRED:]

    def best(self) -> tuple[Found, ...]:
        """The best of each kind first, each kind's others after them."""
        kinds = sorted((kept for kept in self.found.values() if kept), key=lambda kept: kept[0][0])
        first = [kept[0] for kept in kinds]
        rest = sorted((entry for kept in kinds for entry in kept[1:]), key=lambda entry: entry[0])
        return tuple(found for _, found in [*first, *rest])


def _sum(first: float, second: float) -> float:
    return first + second


def _update(job: Job, hybrid: bool) -> float:
    """Seconds of a step outside generation and learning."""
    return float(steps.sync_seconds(job.actor, job.cluster, hybrid)) + steps.FIXED


def _groups(tables: Tables, size: int) -> dict[str, int]:
    return {role: size if role in tables.models else 0 for role in ROLES}


def _hybrid(tables: Tables, keeper: Keeper) -> None:
    """Everything on the same GPUs: engines x TP = GPUs of the actor, and all groups alike."""
    job, roles, device = tables.job, tuple(tables.models), tables.job.cluster.device
    update = _update(job, True)
    for size, vllm_sleep, ds_sleep in itertools.product(group_sizes(job), (False, True), (False, True)):
        pool = tables.pool(roles, size, size, ds_sleep)
        here = min(size, job.cluster.gpus_per_node)
        learn = pool.experience_s + pool.train_s
        engines = [tp for tp in tables.degrees() if size % tp == 0]
        for utilization, eager in itertools.product(UTILIZATIONS, (False, True)):
            awake = utilization * device.memory_bytes + (0.0 if eager else memory.GRAPHS)
            beside = memory.ASLEEP if vllm_sleep else awake
            peak = np.maximum(pool.peak + beside, pool.resting + awake)
            for tp in engines:
                copies = 2.0 * job.actor.parameters / tp if vllm_sleep else 0.0
                host = (pool.host + memory.PROCESS_HOST + copies) * here + memory.experience_bytes(job)
                chosen = keeper.learners(learn, peak, host, pool.legal, 1)
                if chosen is None:
                    continue
                wake = 2 * float(steps.sleep_seconds(job.actor, tp)) if vllm_sleep else 0.0
                generation = tables.generation(size, tp, utilization, eager, False) + wake
                place = Placement("hybrid", "all", engines=size // tp, tp=tp, **_groups(tables, size))
                serving = Serving(utilization, vllm_sleep, ds_sleep, eager, job.samples > 1)
                keeper.offer(place, serving, chosen, generation, update)


@dataclass(frozen=True)
class Engines:
    """Engines on GPUs of their own with their best settings: seconds of a rollout, how many, how."""

    generation: float
    count: int
    tp: int
    serving: Serving


def _engines(tables: Tables, gpus: int, partial: bool) -> list[Engines]:
    """For each tensor parallelism the fastest setting on at most ``gpus``; the lightest of equals."""
    job, found = tables.job, []
    device = job.cluster.device
    room = device.memory_bytes * (1 - memory.ENGINE_SLACK)
    for tp in tables.degrees():
        count = gpus // tp
        timed = []
        for utilization, eager in itertools.product(UTILIZATIONS, (False, True)):
            graphs = 0.0 if eager else memory.GRAPHS
            if count and utilization * device.memory_bytes + graphs <= room:
                seconds = tables.generation(count * tp, tp, utilization, eager, partial)
                timed.append((seconds * (1 + SWITCH * eager), -utilization, eager, seconds))
        if timed and np.isfinite(min(timed)[0]):
            _, utilization, eager, seconds = min(timed)
            serving = Serving(-utilization, False, False, eager, job.samples > 1, partial=partial)
            found.append(Engines(seconds, count, tp, serving))
    return found


def _modes(job: Job) -> Iterator[tuple[str, bool]]:
    """(mode, partial rollout) with engines apart. The goal `safest` trains on fresh samples only."""
    yield "distributed", False
    if job.goal != "safest":
        yield "async", False
        if version_key(job.version) >= version_key(PARTIAL_SINCE):
            yield "async", True


def _engine_settings(tables: Tables) -> int:
    """How many settings of the engines share one pass over the training settings."""
    return len(list(_modes(tables.job))) * len(tables.degrees()) * 2 * len(UTILIZATIONS)


def _lefts(job: Job, left: int) -> list[int]:
    """GPUs for the engines: with all that are left they are never slower."""
    return [left] if job.goal != "fewest" else [size for size in group_sizes(job) if size <= left]


def _together(tables: Tables, keeper: Keeper) -> None:
    """Trainers on one group, engines on another: colocate_all_models with async_train."""
    job, roles = tables.job, tuple(tables.models)
    modes = [entry for entry in _modes(job) if entry[0] == "async"]
    update = _update(job, False)
    for size, ds_sleep in itertools.product(group_sizes(job), (False, True)):
        if not modes or size >= job.cluster.gpus:
            continue
        pool = tables.pool(roles, size, size, ds_sleep)
        host = pool.host * min(size, job.cluster.gpus_per_node) + memory.experience_bytes(job)
        learn = pool.experience_s + pool.train_s
        chosen = keeper.learners(learn, pool.peak, host, pool.legal, _engine_settings(tables))
        if chosen is None:
            continue
        for (mode, partial), gpus in itertools.product(modes, _lefts(job, job.cluster.gpus - size)):
            for engines in _engines(tables, gpus, partial):
                place = Placement(mode, "all", engines=engines.count, tp=engines.tp, **_groups(tables, size))
                serving = replace(engines.serving, ds_sleep=ds_sleep)
                keeper.offer(place, serving, chosen, engines.generation, update)


def _apart(sharing: str) -> Callable[[Tables, Keeper], None]:
    """Groups of GPUs for pairs of roles or single ones, and one for the engines."""

    def cover(tables: Tables, keeper: Keeper) -> None:
        pools = _pools_of(tables, sharing)
        if pools is None:
            return
        job, times = tables.job, _engine_settings(tables)
        update = _update(job, False)
        cache: dict[tuple[int, bool], list[Engines]] = {}
        for sizes in _compositions(group_sizes(job), len(pools), job.cluster.gpus - 1):
            actor = next(size for size, roles in zip(sizes, pools, strict=True) if "actor" in roles)
            columns = [
                tables.pool(roles, size, actor, False) for size, roles in zip(sizes, pools, strict=True)
            ]
            chosen = _learners(tables, keeper, sizes, columns, times)
            if chosen is None:
                continue
            groups = {role: size for size, roles in zip(sizes, pools, strict=True) for role in roles}
            sized = {role: groups.get(role, 0) for role in ROLES}
            for (mode, partial), gpus in itertools.product(
                _modes(job), _lefts(job, job.cluster.gpus - sum(sizes))
            ):
                if (gpus, partial) not in cache:
                    cache[gpus, partial] = _engines(tables, gpus, partial)
                for engines in cache[gpus, partial]:
                    used = sum(sizes) + engines.count * engines.tp
                    throws = engines.serving.eager + engines.serving.partial
                    if not keeper.worth((mode, sharing), used, throws, chosen, engines.generation, update):
                        continue
                    place = Placement(mode, sharing, engines=engines.count, tp=engines.tp, **sized)
                    keeper.offer(place, engines.serving, chosen, engines.generation, update)

    return cover


def _learners(
    tables: Tables, keeper: Keeper, sizes: tuple[int, ...], columns: list[PoolColumns], times: int
) -> Learners | None:
    """Groups side by side: the slowest of them sets the time of experience and of training."""
    if not all(each.any_legal for each in columns):
        keeper.considered += times * len(tables.rows)
        return None
    first, *others = columns
    legal, peak, host = first.legal, first.peak, _host(tables, sizes, columns)
    experience, train = first.experience_s, first.train_s
    for each in others:
        legal, peak = legal & each.legal, np.maximum(peak, each.peak)
        experience, train = np.maximum(experience, each.experience_s), np.maximum(train, each.train_s)
    return keeper.learners(experience + train, peak, host, legal, times)


def _pools_of(tables: Tables, sharing: str) -> list[tuple[str, ...]] | None:
    """The pools of a way of sharing; None where it is the same as another for the job's roles."""
    pools: list[tuple[str, ...]] = []
    for pair in (("actor", "ref"), ("critic", "reward")):
        there = tuple(role for role in pair if role in tables.models)
        if "-".join(pair) in sharing:
            if len(there) < 2:
                return None
            pools.append(there)
        else:
            pools += [(role,) for role in there]
    return pools


def _compositions(sizes: list[int], parts: int, most: int) -> Iterator[tuple[int, ...]]:
    """Sizes of ``parts`` groups that together take at most ``most``."""
    if parts == 0:
        yield ()
        return
    for size in sizes:
        if size > most - (parts - 1):
            break
        for rest in _compositions(sizes, parts - 1, most - size):
            yield (size, *rest)


def _host(tables: Tables, sizes: tuple[int, ...], columns: list[PoolColumns]) -> Array:
    """Host bytes of the fullest node: groups smaller than a node may share one."""
    per_node = tables.job.cluster.gpus_per_node
    small: Array | float = 0.0
    worst: Array | float = 0.0
    for size, each in zip(sizes, columns, strict=True):
        if size < per_node:
            small = small + each.host * size
        else:
            worst = np.maximum(worst, each.host * per_node)
    return np.asarray(np.maximum(worst, small) + memory.experience_bytes(tables.job))
