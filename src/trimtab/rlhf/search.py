"""The whole legal space of plans, and the best few of it.

Time and memory fall apart along the space: what a group of GPUs needs depends on its roles, its size and
the training settings; what the engines need, on their number and settings. So every group is worked out
for all training settings at once, and placements only add up columns: nothing is left out, nothing sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.rlhf import memory, steps
from trimtab.rlhf.flags import version_key
from trimtab.rlhf.generation import estimate, kv_capacity
from trimtab.rlhf.job import Job
from trimtab.rlhf.placement import Placement, Plan, Serving, Training
from trimtab.rlhf.timeline import NAMES, computed_tokens, role_models

Array = NDArray[np.float64]
MICRO = (1, 2, 4, 8, 16)
FORWARD_TIMES = (1, 2, 4)  # forward micro-batches over training ones
CAPS = (4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536)
DEGREES = (1, 2, 4, 8)
UTILIZATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SAFE = 0.8  # of memory and host that the goal `safest` uses at most
TIGHT = 0.93  # of the usable memory, above which a plan counts as a little slower
SWITCH = 0.003  # every switch costs that share of the step: none is thrown for nothing
PREFERRED = 8  # placements of each kind that are kept


@dataclass(frozen=True)
class Found:
    """One kept plan with its estimated step (s) and peak (bytes of the fullest GPU)."""

    plan: Plan
    seconds: float
    peak: float


@dataclass(frozen=True)
class Searched:
    """The best plans, best first; how many combinations were covered, and how many are legal and fit."""

    plans: tuple[Found, ...]
    considered: int
    legal: int
    fitting: int


@dataclass(frozen=True)
class Settings:
    """All training settings as columns (N,)."""

    zero: Array
    adam_offload: Array
    eval_offload: Array
    checkpointing: Array
    batching: Array  # 0 padded, 1 packed, 2 dynamic
    micro: Array
    forward_micro: Array
    cap: Array
    ring: Array
    ds_tp: Array
    overlap: Array

    def __len__(self) -> int:
        return len(self.zero)

    def training(self, row: int) -> Training:
        """One row as a Training."""
        kind = ("padded", "packed", "dynamic")[int(self.batching[row])]
        return Training(
            zero=int(self.zero[row]),
            adam_offload=bool(self.adam_offload[row]),
            eval_offload=bool(self.eval_offload[row]),
            checkpointing=bool(self.checkpointing[row]),
            batching=kind,
            micro=int(self.micro[row]),
            forward_micro=int(self.forward_micro[row]),
            cap=int(self.cap[row]),
            ring=int(self.ring[row]),
            ds_tp=int(self.ds_tp[row]),
            overlap=bool(self.overlap[row]),
        )


def training_settings(job: Job) -> Settings:
    """Every legal combination: rings need packing and divide the heads, tensor parallelism needs ZeRO <= 2."""
    counted = [(kind, m, m * t, CAPS[0]) for kind in (0, 1) for m in MICRO for t in FORWARD_TIMES]
    batches = [*counted, *((2, 1, 1, cap) for cap in CAPS)]
    frozen = job.ref_model is not None or job.reward_model is not None
    models = role_models(job).values()
    # Memory of full fine-tuning under TP has no adapters; the flag combination is refused by DeepSpeed.
    rows = []
    for zero, (kind, micro, forward, cap), ring, tp in itertools.product((2, 3), batches, DEGREES, DEGREES):
        if (ring > 1 and kind == 0) or (tp > 1 and (zero == 3 or job.lora_rank)):
            continue
        if any(model.heads % (ring * tp) or model.kv_heads % tp for model in models):
            continue
        for adam, host, check, overlap in itertools.product((0, 1), (0, 1), (0, 1), (0, 1)):
            if not (host and (zero < 3 or not frozen)):
                rows.append((zero, adam, host, check, kind, micro, forward, cap, ring, tp, overlap))
    return Settings(*np.array(rows, np.float64).T)


@dataclass(frozen=True)
class RoleColumns:
    """What one role costs on a group of one size, for all training settings: (N,) bytes and seconds."""

    awake: Array
    resting: Array
    forward: Array
    work: Array
    forward_s: Array
    train_s: Array
    reload_s: float
    legal: NDArray[np.bool_]
    host: Array  # bytes per GPU of offloaded state
    host_asleep: float


def role_columns(job: Job, role: str, size: int, rows: Settings, ranks: Array) -> RoleColumns:
    """``ranks`` (N,): data-parallel ranks of the actor, which set the number of forward batches."""
    model, cluster = role_models(job)[role], job.cluster
    head, trains = role in ("actor", "ref"), role in ("actor", "critic")
    share = memory.Share(float(size), rows.zero, rows.ds_tp, rows.overlap)
    shards = rows.ring * rows.ds_tp
    own_ranks = np.floor(size / shards)
    legal = (size % shards == 0) & (job.total_samples // rows.forward_micro >= own_ranks)
    tokens = memory.forward_tokens(
        job, rows.batching == 2, rows.forward_micro, rows.cap, rows.ring, rows.ds_tp, np.maximum(ranks, 1)
    )
    forward = memory.forward_activations(model, tokens, rows.ds_tp) + memory.gathered(model, share)
    forward = forward + (memory.logits(model, tokens, memory.LOGITS_FORWARD) if head else 0.0)
    work_of = steps.work_of(job, model, head)
    factor = steps.calibration_of(cluster)
    micro = computed_tokens(job, rows.batching, rows.forward_micro, rows.cap, shards)
    padded = steps.padding(job, rows.batching, rows.forward_micro)
    forward_s = steps.forward_seconds(work_of, cluster, size, rows.zero, micro, padded, shards)
    train_s = work = np.zeros(len(rows))
    host, host_asleep, reload_s = np.zeros(len(rows)), 0.0, 0.0
    if trains:
        per_rank = np.where(rows.batching == 2, 1, rows.micro) * own_ranks
        legal &= (own_ranks > 0) & (job.train_batch % np.maximum(per_rank, 1) == 0)
        parts = memory.trained(model, head, share, rows.adam_offload, job.lora_rank)
        awake, resting = sum(parts.values()), memory.asleep(parts)["weights"]
        live = memory.micro_tokens(job, rows.batching, rows.micro, rows.cap, rows.ring, rows.ds_tp)
        work = memory.activations(model, live, rows.checkpointing, rows.ds_tp)
        work = work + (memory.logits(model, live, memory.LOGITS_TRAIN) if role == "actor" else 0.0)
        micro = computed_tokens(job, rows.batching, rows.micro, rows.cap, shards)
        train_s = factor.train * steps.train_seconds(
            work_of, cluster, size, rows.zero, micro, steps.padding(job, rows.batching, rows.micro), shards,
            rows.checkpointing, rows.adam_offload, rows.overlap, job.total_samples // job.train_batch,
            bool(job.lora_rank),
        )  # fmt: skip
        reload_s = 2 * float(steps.reload_seconds(model, size))
        trained = memory.trainable(model, head, job.lora_rank)
        host, host_asleep = rows.adam_offload * 16 * trained / size, 14 * trained / size
    else:
        awake = resting = memory.frozen(model, head, share, rows.eval_offload)["weights"]
        host = rows.eval_offload * 2 * memory.parameters(model, head) / size
    ones = np.ones(len(rows))
    return RoleColumns(
        awake * ones, resting * ones, forward * ones, work * ones, factor.forward * forward_s * ones,
        train_s * ones, reload_s, legal, host * ones, host_asleep,
    )  # fmt: skip


@dataclass(frozen=True)
class PoolColumns:
    """A pool of roles, without engines: peak bytes, host bytes per GPU, experience and training seconds."""

    peak: Array
    resting: Array
    host: Array
    experience_s: Array
    train_s: Array
    legal: NDArray[np.bool_]


class Tables:
    """Columns of roles and pools, each worked out once."""

    def __init__(self, job: Job):
        self.job = job
        self.rows = training_settings(job)
        self.models = role_models(job)
        self._roles: dict[tuple[str, int, int], RoleColumns] = {}
        self._pools: dict[tuple[Any, ...], PoolColumns] = {}
        self._generation: dict[tuple[Any, ...], float] = {}
        self.switches = (
            self.rows.adam_offload + self.rows.eval_offload + self.rows.checkpointing + self.rows.overlap
        ) + (self.rows.ring > 1) + (self.rows.ds_tp > 1)

    def role(self, role: str, size: int, actor: int) -> RoleColumns:
        key = (role, size, actor)
        if key not in self._roles:
            ranks = np.floor(actor / (self.rows.ring * self.rows.ds_tp))
            self._roles[key] = role_columns(self.job, role, size, self.rows, ranks)
        return self._roles[key]

    def pool(
        self, roles: tuple[str, ...], size: int, actor: int, ds_sleep: bool, engine: float = 0.0
    ) -> PoolColumns:
        """``engine`` bytes of an engine that sleeps or stays awake beside the training."""
        key = (roles, size, actor, ds_sleep)
        if key not in self._pools:
            self._pools[key] = self._pool(roles, size, actor, ds_sleep)
        found = self._pools[key]
        return found if not engine else replace(found, peak=found.peak + engine)

    def _pool(self, roles: tuple[str, ...], size: int, actor: int, ds_sleep: bool) -> PoolColumns:
        columns = {role: self.role(role, size, actor) for role in roles}
        sleeps = ds_sleep * (1 - self.rows.adam_offload)
        rests = {
            role: np.where(sleeps > 0, each.resting, each.awake) if role in ("actor", "critic") else each.awake
            for role, each in columns.items()
        }
        context = memory.CONTEXT * len(roles)
        resting = np.sum(list(rests.values()), axis=0) + context
        peak = resting + np.max([each.forward for each in columns.values()], axis=0)
        train_s, host = np.zeros(len(self.rows)), memory.PROCESS_HOST * len(roles) + np.zeros(len(self.rows))
        for role, each in columns.items():
            host = host + each.host
            if role in ("actor", "critic"):
                peak = np.maximum(peak, resting - rests[role] + each.awake + each.work)
                train_s = train_s + each.train_s + sleeps * each.reload_s
                host = host + sleeps * each.host_asleep
        return PoolColumns(
            peak,
            resting,
            host,
            np.sum([each.forward_s for each in columns.values()], axis=0),
            train_s,
            np.all([each.legal for each in columns.values()], axis=0),
        )

    def generation(self, gpus: int, tp: int, utilization: float, eager: bool, partial: bool) -> float:
        """Seconds of a rollout, calibrated; inf where a sequence does not fit."""
        key = (gpus, tp, utilization, eager, partial)
        if key not in self._generation:
            job = self.job
            seconds = np.inf
            if kv_capacity(job, tp, utilization) >= job.max_tokens:
                factor = steps.calibration_of(job.cluster).generation
                seconds = factor * estimate(
                    job, gpus // tp, tp, utilization, eager, job.samples > 1, partial
                )
            self._generation[key] = seconds
        return self._generation[key]

    def degrees(self) -> list[int]:
        """Tensor parallelism that an engine may have: inside a node, dividing the heads."""
        model, most = self.job.actor, self.job.cluster.gpus_per_node
        return [tp for tp in DEGREES if tp <= most and model.heads % tp == 0 and
                (model.kv_heads % tp == 0 or tp % model.kv_heads == 0)]


def group_sizes(job: Job) -> list[int]:
    """Sizes of a group of GPUs: divisors of a node, and whole nodes."""
    node, most = job.cluster.gpus_per_node, job.cluster.gpus
    return [*(n for n in range(1, node) if node % n == 0 and n <= most), *range(node, most + 1, node)]


Progress = Callable[[int, int], None]


def search(job: Job, progress: Progress | None = None) -> Searched:
    """The best plans of the whole legal space for ``job.goal``.

    Raises
    ------
    TrimtabError
        where nothing is legal or nothing fits: the nearest plan and what it lacks.
    """
    tables = Tables(job)
    keeper = Keeper(tables)
    kinds = [_hybrid, _all_async, *(_apart(sharing) for sharing in
             ("actor-ref+critic-reward", "actor-ref", "critic-reward", "none"))]
    for done, kind in enumerate(kinds):
        if progress is not None:
            progress(done, len(kinds))
        kind(tables, keeper)
    if not keeper.found:
        raise TrimtabError(_nothing(job, keeper))
    return Searched(keeper.best(), keeper.considered, keeper.legal, keeper.fitting)


def _nothing(job: Job, keeper: Keeper) -> str:
    cluster = job.cluster
    head = f"nothing fits: {job.actor.name} with {job.algorithm} on {cluster.gpus} x {cluster.device.name}"
    if keeper.legal == 0:
        return (
            f"no plan is legal for {job.actor.name} on {cluster.gpus} GPUs: train_batch {job.train_batch} must "
            f"divide by micro-batch x ranks, the heads ({job.actor.heads}) by tensor parallelism, and an "
            f"engine must hold a sequence of {job.max_tokens:,} tokens"
        )
    over = keeper.nearest / memory.GIB
    limit = cluster.device.memory_gib * (1 - memory.SLACK)
    what = f"the nearest plan needs {over:.1f} GiB of the {limit:.1f} usable on a GPU"
    if over <= limit:
        what = f"plans that fit on the GPUs need more than {cluster.host_gib:g} GiB of host memory per node"
    return f"{head}: {what}; use more GPUs, a larger device, shorter sequences or a LoRA"


class Keeper:
    """Counts what was covered and keeps the best of each kind of placement."""

    def __init__(self, tables: Tables):
        self.tables, self.job = tables, tables.job
        self.found: dict[tuple[str, str], list[tuple[tuple[float, ...], Found]]] = {}
        self.considered = self.legal = self.fitting = 0
        self.nearest = np.inf
        device, cluster = self.job.cluster.device, self.job.cluster
        limit = SAFE if self.job.goal == "safest" else 1.0
        self.usable = device.memory_bytes * (1 - memory.SLACK) * limit
        self.host = cluster.host_gib * memory.GIB * memory.HOST_LIMIT * limit

    def offer(
        self,
        placement: Placement,
        serving: Serving,
        seconds: Array,
        peak: Array,
        host: Array,
        legal: NDArray[np.bool_],
        times: int = 1,
    ) -> None:
        """``times``: settings of the engines that this one is the best of."""
        self.considered += times * len(seconds)
        num_legal = int(np.count_nonzero(legal))
        if not num_legal or not np.isfinite(seconds[0]):
            return
        self.legal += times * num_legal
        fits = legal & (peak <= self.usable) & (host <= self.host)
        num_fitting = int(np.count_nonzero(fits))
        if not num_fitting:
            self.nearest = min(self.nearest, float(peak[legal].min()))
            return
        self.fitting += times * num_fitting
        throws = self.tables.switches + serving.eager + serving.vllm_sleep + serving.ds_sleep + serving.partial
        cost = seconds * (1 + SWITCH * throws + 0.02 * (peak > TIGHT * self.usable))
        cost = np.where(fits, cost, np.inf)
        row = int(cost.argmin())
        key: tuple[float, ...] = (float(cost[row]),)
        if self.job.goal == "fewest":
            key = (float(placement.gpus), *key)
        kept = self.found.setdefault((placement.mode, placement.sharing), [])
        if len(kept) == PREFERRED and key >= kept[-1][0]:
            return
        plan = Plan(placement, self.tables.rows.training(row), serving)
        kept.append((key, Found(plan, float(seconds[row]), float(peak[row]))))
        kept.sort(key=lambda entry: entry[0])
        del kept[PREFERRED:]

    def best(self) -> tuple[Found, ...]:
        """The best of each kind first, each kind's others after them."""
        kinds = sorted(self.found.values(), key=lambda kept: kept[0][0])
        first = [kept[0] for kept in kinds]
        rest = sorted((entry for kept in kinds for entry in kept[1:]), key=lambda entry: entry[0])
        return tuple(found for _, found in [*first, *rest])


def _hybrid(tables: Tables, keeper: Keeper) -> None:
    """Everything on the same GPUs: engines x TP = GPUs of the actor, and all groups alike."""
    job, roles, device = tables.job, tuple(tables.models), tables.job.cluster.device
    per_node = job.cluster.gpus_per_node
    for size, tp in itertools.product(group_sizes(job), tables.degrees()):
        if size % tp:
            continue
        settings = itertools.product(UTILIZATIONS, (False, True), (False, True), (False, True))
        for utilization, vllm_sleep, ds_sleep, eager in settings:
            generation = tables.generation(size, tp, utilization, eager, False)
            graphs = 0.0 if eager else memory.GRAPHS
            awake = utilization * device.memory_bytes + graphs
            beside = memory.ASLEEP if vllm_sleep else awake
            pool = tables.pool(roles, size, size, ds_sleep, beside)
            peak = np.maximum(pool.peak, pool.resting + awake)
            wake = 2 * float(steps.sleep_seconds(job.actor, tp)) if vllm_sleep else 0.0
            seconds = generation + wake + pool.experience_s + pool.train_s + _update(job, True)
            copies = 2.0 * job.actor.parameters / tp if vllm_sleep else 0.0
            host = (pool.host + memory.PROCESS_HOST + copies) * min(size, per_node) + _experiences(job)
            place = Placement("hybrid", "all", *_groups(tables, size), size // tp, tp)
            serving = Serving(utilization, vllm_sleep, ds_sleep, eager, job.samples > 1)
            keeper.offer(place, serving, seconds, peak, host, pool.legal)


def _groups(tables: Tables, size: int) -> tuple[int, ...]:
    return tuple(size if role in tables.models else 0 for role in ("actor", "critic", "ref", "reward"))


def _update(job: Job, hybrid: bool) -> float:
    """Seconds of a step outside generation and learning."""
    return float(steps.sync_seconds(job.actor, job.cluster, hybrid, 0)) + steps.FIXED


def _experiences(job: Job) -> float:
    return job.total_tokens * 40 / job.cluster.nodes


def _engine_choices(tables: Tables, gpus: int, partial: bool) -> list[tuple[float, int, int, Serving, int]]:
    """Engines on GPUs of their own: the fastest setting for each use of at most ``gpus``: (seconds, engines,
    tp, settings, settings that it is the best of)."""
    job, choices = tables.job, []
    for tp in tables.degrees():
        if tp > gpus:
            continue
        engines = gpus // tp
        options = list(itertools.product(UTILIZATIONS[2:], (False, True)))
        timed = [
            (tables.generation(engines * tp, tp, utilization, eager, partial), utilization, eager)
            for utilization, eager in options
        ]
        # the engine has its CUDA graphs beside its share
        room = job.cluster.device.memory_bytes * (1 - memory.SLACK) - memory.CONTEXT
        timed = [
            entry for entry in timed
            if entry[1] * job.cluster.device.memory_bytes + (0 if entry[2] else memory.GRAPHS) <= room
            and np.isfinite(entry[0])
        ]
        if timed:
            seconds, utilization, eager = min(timed, key=lambda entry: (entry[0] * (1 + SWITCH * entry[2]), entry[1]))
            serving = Serving(utilization, False, False, eager, job.samples > 1, partial=partial)
            choices.append((seconds, engines, tp, serving, len(options)))
    return choices


def _modes(job: Job) -> Iterator[tuple[str, bool]]:
    """(mode, partial rollout) with engines apart. The goal `safest` trains on fresh samples only."""
    yield "distributed", False
    if job.goal != "safest":
        yield "async", False
        if version_key(job.version) >= version_key("0.9.7"):
            yield "async", True


def _all_async(tables: Tables, keeper: Keeper) -> None:
    """Trainers together on one group, engines on another (colocate_all_models with async_train)."""
    job, roles = tables.job, tuple(tables.models)
    per_node = job.cluster.gpus_per_node
    for size in group_sizes(job):
        for ds_sleep, (mode, partial) in itertools.product((False, True), _modes(job)):
            if mode != "async" or size >= job.cluster.gpus:
                continue
            pool = tables.pool(roles, size, size, ds_sleep)
            learn = pool.experience_s + pool.train_s
            host = pool.host * min(size, per_node) + _experiences(job)
            for left in (job.cluster.gpus - size,) if job.goal != "fewest" else group_sizes(job):
                if left > job.cluster.gpus - size:
                    continue
                for generation, engines, tp, serving, times in _engine_choices(tables, left, partial):
                    place = Placement("async", "all", *_groups(tables, size), engines, tp)
                    seconds = np.maximum(generation, learn) + _update(job, False)
                    chosen = replace(serving, ds_sleep=ds_sleep)
                    keeper.offer(place, chosen, seconds, pool.peak, host, pool.legal, times)


def _apart(sharing: str) -> Callable[[Tables, Keeper], None]:
    """Groups of GPUs for pairs of roles or single ones, and one for the engines."""

    def cover(tables: Tables, keeper: Keeper) -> None:
        pools = _pools_of(tables, sharing)
        if pools is None:
            return
        job, sizes = tables.job, group_sizes(tables.job)
        # What the engines get is what is left: with more GPUs they are never slower.
        for chosen in _compositions(sizes, len(pools), job.cluster.gpus - 1):
            left = job.cluster.gpus - sum(chosen)
            lefts = [left] if job.goal != "fewest" else [size for size in sizes if size <= left]
            actor = next(size for size, roles in zip(chosen, pools, strict=True) if "actor" in roles)
            columns = [
                tables.pool(roles, size, actor, False) for size, roles in zip(chosen, pools, strict=True)
            ]
            legal = np.logical_and.reduce([each.legal for each in columns])
            if not legal.any():
                keeper.considered += len(legal) * 3 * len(tables.degrees()) * 2 * len(UTILIZATIONS[2:])
                continue
            learn = np.maximum.reduce([each.experience_s for each in columns])
            learn = learn + np.maximum.reduce([each.train_s for each in columns])
            peak = np.maximum.reduce([each.peak for each in columns])
            host = _host(tables, chosen, columns)
            groups = {role: size for size, roles in zip(chosen, pools, strict=True) for role in roles}
            sized = [groups.get(role, 0) for role in ("actor", "critic", "ref", "reward")]
            for (mode, partial), gpus in itertools.product(_modes(job), lefts):
                for generation, engines, tp, serving, times in _engine_choices(tables, gpus, partial):
                    together = np.maximum(generation, learn) if mode == "async" else generation + learn
                    place = Placement(mode, sharing, *sized, engines, tp)
                    keeper.offer(place, serving, together + _update(job, False), peak, host, legal, times)

    return cover


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


def _host(tables: Tables, chosen: tuple[int, ...], columns: list[PoolColumns]) -> Array:
    """Host bytes of the fullest node: groups smaller than a node may share one."""
    per_node = tables.job.cluster.gpus_per_node
    small = np.zeros(len(tables.rows))
    worst = np.zeros(len(tables.rows))
    for size, each in zip(chosen, columns, strict=True):
        if size < per_node:
            small = small + each.host * size
        else:
            worst = np.maximum(worst, each.host * per_node)
    return np.maximum(worst, small) + _experiences(tables.job)


def phase_names() -> dict[str, str]:
    """Role -> the name of its forward phase."""
    return dict(NAMES)
