"""The engine's whole state: one bundle of tables, allocated once, sized by what will run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine import dtypes
from trimtab.engine.bundle import address_block, register
from trimtab.engine.dtypes import NONE, Event, Power
from trimtab.exectime.tables import ExecTables
from trimtab.workload.content import Traffic

SAMPLE_CAPACITY = 1024
SCALING_CAPACITY = 65_536


LAYOUT = {
    "requests": (dtypes.REQUEST, 1),  # (N,)
    "replicas": (dtypes.REPLICA, 1),  # (R,)
    "groups": (dtypes.GROUP, 1),  # (G,)
    "lanes": (dtypes.LANE, 1),  # (R * L,)
    "slots": (dtypes.SLOT, 2),  # (R * L, W)
    "phases": (np.dtype(np.int64), 2),  # (R * L, block) decodes that need a block at epoch % block
    "batches": (dtypes.BATCH, 1),  # (R * P,) a ring per replica
    "chunks": (dtypes.CHUNK, 2),  # (R * P, W) prefills of each batch
    "path_node": (np.dtype(np.int64), 1),  # content of all prompts: nodes and
    "path_tokens": (np.dtype(np.int64), 1),  # tokens of each
    "cache": (dtypes.CACHE, 2),  # (R, nodes), or (1, 1) without prefix caching
    "needs": (dtypes.NEED, 1),  # (W + 1,) scratch of the lightllm scheduler
    "events": (dtypes.EVENT, 1),  # binary heap
    "faults": (dtypes.FAULT, 1),  # (F,) in order of time
    "classes": (dtypes.CLASS, 1),  # (C,)
    "pools": (dtypes.POOL, 1),  # (Q,)
    "scalers": (dtypes.SCALER, 1),  # (S,) autoscaled groups
    "advice": (np.dtype(np.int64), 2),  # (S, keep) replicas that each scaler recommended, in a ring
    "scalings": (dtypes.SCALING, 1),  # (recorded,) changes of power
    "ranks": (np.dtype(np.float64), 1),  # tree of the replicas' loads (see ``ranking``)
    "turns": (np.dtype(np.int64), 2),  # (V, Q) round robin: next replica of each router, in each pool
    "curves": (np.dtype(np.float64), 1),  # all execution-time tables, one after another, s
    "iterations": (dtypes.ITERATION, 1),  # (recorded,)
    "sample_times": (np.dtype(np.float64), 1),  # (S,) s
    "samples": (dtypes.SAMPLE, 2),  # (S, R)
    "views": (dtypes.VIEW, 1),  # (V,) one per router in front of the fleet
    "seen": (dtypes.REPLICA, 1),  # (V * snapshots * R,) what each router's snapshots hold; empty when fresh
    "beliefs": (dtypes.BELIEF, 1),  # (V * R,) what each learned router makes of its old snapshots
    "policy": (np.dtype(np.float64), 1),  # the learned router, flat (see ``routers.learned``)
    "features": (np.dtype(np.float64), 2),  # (R, F) what it sees of each replica
    "context": (np.dtype(np.float64), 1),  # and of the request; scratch:
    "pooled": (np.dtype(np.float64), 1),
    "layer": (np.dtype(np.float64), 1),
    "decisions": (np.dtype(np.float32), 2),  # (N, ...) what it saw and chose, or (1, 1)
    "homes": (np.dtype(np.int64), 1),  # (sessions + 1,) replica that a session sticks to, or NONE
    "itl": (np.dtype(np.int64), 1),  # (ITL_BINS,) output tokens
    "control": (dtypes.CONTROL, 1),  # (1,)
}


def _patient() -> NDArray[Any]:
    return np.array([(np.inf, np.inf, np.inf, 0, np.inf)], dtypes.CLASS)


@dataclass(frozen=True)
class Conditions:
    """What goes wrong, and what is done about it. By default nothing does.

    faults (F,) FAULT in order of time; classes (C,) CLASS, by ``klass`` of the request; scalers (S,) SCALER,
    each with ``starts`` replicas at the start. See CONTROL for the units.
    """

    faults: NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtypes.FAULT))
    classes: NDArray[Any] = field(default_factory=_patient)
    max_retries: int = 2
    backoff: float = 0.5
    health_delay: float = 0.0
    breaker_failures: int = 0
    breaker_open: float = 10.0
    rate: float = np.inf
    burst: float = 1.0
    scalers: NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtypes.SCALER))
    starts: tuple[int, ...] = ()
    link_latency: float = 0.0

    @property
    def watching(self) -> bool:
        """Whether anything can go wrong at all."""
        limits = [self.classes[name] for name in ("timeout", "ttft_timeout", "limit")]
        happens = len(self.faults) or len(self.scalers)
        return bool(happens or np.isfinite(self.rate) or np.isfinite(limits).any())


@dataclass(frozen=True)
class Brain:
    """The learned router's arrays (see ``routers.learned``); empty for all other routers."""

    policy: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    features: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 1)))
    context: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    pooled: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    layer: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    decisions: NDArray[np.float32] = field(default_factory=lambda: np.zeros((1, 1), np.float32))
    hidden: int = 0
    recording: bool = False
    bias_rate: float = 0.0
    bias_decay: float = 0.01

    def tables(self) -> dict[str, NDArray[Any]]:
        """Those of ``LAYOUT``."""
        names = ("policy", "features", "context", "pooled", "layer", "decisions")
        return {name: getattr(self, name) for name in names}


BRAINLESS = Brain()


class State:
    """Tables of a run: R replicas, L lanes per replica, W slots per lane, P pipeline stages.

    Compiled functions take it as one pointer (see ``bundle``); it owns the tables.
    """

    requests: NDArray[Any]
    replicas: NDArray[Any]
    groups: NDArray[Any]
    lanes: NDArray[Any]
    slots: NDArray[Any]
    phases: NDArray[np.int64]
    batches: NDArray[Any]
    chunks: NDArray[Any]
    path_node: NDArray[np.int64]
    path_tokens: NDArray[np.int64]
    cache: NDArray[Any]
    needs: NDArray[Any]
    events: NDArray[Any]
    faults: NDArray[Any]
    classes: NDArray[Any]
    pools: NDArray[Any]
    scalers: NDArray[Any]
    advice: NDArray[np.int64]
    scalings: NDArray[Any]
    ranks: NDArray[np.float64]
    turns: NDArray[np.int64]
    curves: NDArray[np.float64]
    iterations: NDArray[Any]
    sample_times: NDArray[np.float64]
    samples: NDArray[Any]
    views: NDArray[Any]
    seen: NDArray[Any]
    beliefs: NDArray[Any]
    policy: NDArray[np.float64]
    features: NDArray[np.float64]
    context: NDArray[np.float64]
    pooled: NDArray[np.float64]
    layer: NDArray[np.float64]
    decisions: NDArray[np.float32]
    homes: NDArray[np.int64]
    itl: NDArray[np.int64]
    control: NDArray[Any]

    def __init__(self, **tables: NDArray[Any]) -> None:
        for name, (dtype, dimensions) in LAYOUT.items():
            assert tables[name].dtype == dtype and tables[name].ndim == dimensions, name
            setattr(self, name, tables[name])
        self.block = address_block([tables[name] for name in LAYOUT])
        self.address = int(self.block.ctypes.data)


state_at = register(State, LAYOUT)


NOTHING_WRONG = Conditions()


def allocate(
    traffic: Traffic,
    groups: NDArray[Any],
    counts: list[int],
    kv_blocks: list[int],
    speeds: list[float],
    curves: NDArray[np.float64],
    max_iterations: int,
    views: int = 1,
    snapshots: int = 0,
    conditions: Conditions = NOTHING_WRONG,
    pools: NDArray[Any] | None = None,
    brain: Brain = BRAINLESS,
) -> State:
    """A fresh state at time zero. The requests are copied; per group: replicas, KV blocks, speed.

    ``views`` routers keep ``snapshots`` of the fleet each (0: they see it as it is). ``pools`` (Q,) POOL
    are spans of replicas, which ``conditions.classes`` choose from; by default one of them all.
    """
    requests = traffic.requests
    group_of = np.repeat(np.arange(len(groups)), counts)
    num_replicas = len(group_of)
    stages = int(groups["stages"].max())
    lanes_per_replica = stages + 1
    width = int(groups["max_seqs"].max())
    lanes = np.zeros(num_replicas * lanes_per_replica, dtypes.LANE)
    lanes["next_finish"] = dtypes.NEVER

    replicas = _fresh_replicas(groups, group_of, speeds, kv_blocks, lanes_per_replica)
    caching = bool(groups["prefix_caching"].any())

    pools = whole_fleet(num_replicas) if pools is None else pools.copy()
    sizes = pools["last"] - pools["first"]

    control = _fresh_control(requests, num_replicas, brain)
    _set_conditions(control, replicas, conditions)
    scalers = _start_scalers(replicas, conditions, requests)
    for row in pools:
        row["accepting"] = replicas["accepting"][row["first"] : row["last"]].sum()
    replicas["hands_over"] = hands_over = _hands_over(pools, num_replicas)
    control["watching"] = conditions.watching or bool(hands_over.any())
    events = _event_table(control, conditions, scalers, num_replicas, stages, len(requests))
    requests = requests.copy()
    requests["pool"] = conditions.classes["pool"][requests["klass"]]
    requests["prefill_replica"] = requests["bound_for"] = NONE
    requests["scheduled"] = requests["first_token"] = np.nan
    control["next_signal"] = np.inf
    return State(
        requests=requests,
        replicas=replicas,
        groups=groups,
        lanes=lanes,
        slots=np.zeros((len(lanes), width), dtypes.SLOT),
        phases=np.zeros((len(lanes), int(groups["block_size"].max())), np.int64),
        batches=np.zeros(num_replicas * stages, dtypes.BATCH),
        chunks=np.zeros((num_replicas * stages, width), dtypes.CHUNK),
        needs=np.zeros(width + 1, dtypes.NEED),
        path_node=pad(traffic.path_node),
        path_tokens=pad(traffic.path_tokens),
        cache=np.zeros((num_replicas, max(1, traffic.num_nodes)) if caching else (1, 1), dtypes.CACHE),
        events=events,
        faults=conditions.faults,
        classes=conditions.classes,
        pools=pools,
        scalers=scalers,
        advice=np.tile(np.array([conditions.starts], np.int64).T, (1, int(scalers["keep"].max(initial=1)))),
        scalings=np.zeros(SCALING_CAPACITY if len(scalers) else 0, dtypes.SCALING),
        ranks=np.full(2 << (num_replicas - 1).bit_length(), np.inf),
        turns=pools["first"] + np.arange(views)[:, None] % sizes,
        curves=curves,
        iterations=np.empty(max_iterations, dtypes.ITERATION),
        sample_times=np.zeros(SAMPLE_CAPACITY),
        samples=np.zeros((SAMPLE_CAPACITY, num_replicas), dtypes.SAMPLE),
        views=np.zeros(views, dtypes.VIEW),
        seen=np.tile(replicas, views * snapshots),
        beliefs=np.zeros(views * num_replicas if snapshots else 1, dtypes.BELIEF),
        **brain.tables(),
        homes=np.full(int(requests["session"].max()) + 2, NONE, np.int64),
        itl=np.zeros(dtypes.ITL_BINS, np.int64),
        control=control,
    )


def _fresh_control(requests: NDArray[Any], num_replicas: int, brain: Brain) -> NDArray[Any]:
    """(1,) CONTROL at time zero, before any condition is set."""
    control = np.zeros(1, dtypes.CONTROL)
    control["num_timed"] = int(np.isfinite(requests["arrival"]).sum())
    control["asking"] = NONE
    control["next_sample"] = 0.0
    control["sample_every"] = 0.01
    control["last"] = num_replicas
    for name in ("hidden", "recording", "bias_rate", "bias_decay"):
        control[name] = getattr(brain, name)
    return control


def _fresh_replicas(
    groups: NDArray[Any],
    group_of: NDArray[np.int64],
    speeds: list[float],
    kv_blocks: list[int],
    lanes_per_replica: int,
) -> NDArray[Any]:
    """Idle replicas (R,) REPLICA, each with its first lane as its pool."""
    num_replicas = len(group_of)
    replicas = np.zeros(num_replicas, dtypes.REPLICA)
    replicas["group"] = group_of
    replicas["speed"] = np.asarray(speeds)[group_of]
    replicas["kv_total"] = np.asarray(kv_blocks)[group_of]
    replicas["pool"] = np.arange(num_replicas) * lanes_per_replica
    replicas["queue_head"] = replicas["queue_tail"] = NONE
    replicas["lru_oldest"] = replicas["lru_newest"] = NONE
    replicas["received_head"] = replicas["received_tail"] = NONE
    replicas["kv_blank"] = replicas["blank_newest"] = (
        replicas["kv_total"] * groups["prefix_caching"][group_of]
    )
    return replicas


def _start_scalers(replicas: NDArray[Any], conditions: Conditions, requests: NDArray[Any]) -> NDArray[Any]:
    """(S,) SCALER at the first arrival; the replicas beyond those that each starts with are off."""
    scalers = conditions.scalers.copy()
    scalers["since"] = replicas["on_since"] = requests["arrival"].min(initial=np.inf)
    for scaler, start in zip(scalers, conditions.starts, strict=True):
        off = slice(int(scaler["first"]) + start, int(scaler["last"]))
        replicas["power"][off] = int(Power.OFF)
        replicas["accepting"][off] = 0
    return scalers


def _event_table(
    control: NDArray[Any],
    conditions: Conditions,
    scalers: NDArray[Any],
    num_replicas: int,
    stages: int,
    num_requests: int,
) -> NDArray[Any]:
    """EVENT with room for all that can be pending, and in it the first fault and each scaler's first look.

    Events in order are a heap.
    """
    first = [(float(conditions.faults["at"][0]), int(Event.FAULT), 0)] if len(conditions.faults) else []
    for index, scaler in enumerate(scalers):
        first.append((float(scaler["since"] + scaler["interval"]), int(Event.SCALE), index))
    control["heap_size"] = len(first)
    # with faults: a retry (or a transfer) and two timeouts per request, a breaker per replica, next fault;
    # with scalers a look of each, an order per replica
    pending = num_requests - int(control["num_timed"][0])
    if control["watching"][0]:
        pending = 3 * num_requests + 2 * num_replicas + len(scalers) + 1
    events = np.zeros(num_replicas * (stages + 1) + pending + 1, dtypes.EVENT)
    events[: len(first)] = np.array(sorted(first), dtypes.EVENT)
    return events


def whole_fleet(num_replicas: int) -> NDArray[Any]:
    """One pool (1,) POOL of all replicas."""
    return np.array([(0, num_replicas, num_replicas, 0, NONE)], dtypes.POOL)


def _hands_over(pools: NDArray[Any], num_replicas: int) -> NDArray[np.int64]:
    """(R,) 1 for the replicas of a pool that has another one to decode in, and of that other."""
    found = np.zeros(num_replicas, np.int64)
    for pool in pools[pools["decode"] != NONE]:
        for span in (pool, pools[pool["decode"]]):
            found[span["first"] : span["last"]] = 1
    return found


def pad(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tables are never empty."""
    return values if len(values) else np.zeros(1, np.int64)


def _set_conditions(control: NDArray[Any], replicas: NDArray[Any], conditions: Conditions) -> None:
    for name in (
        "max_retries",
        "backoff",
        "health_delay",
        "breaker_failures",
        "breaker_open",
        "rate",
        "burst",
        "link_latency",
    ):
        control[name] = getattr(conditions, name)
    control["bucket"] = conditions.burst
    replicas["up"] = replicas["seen_up"] = replicas["accepting"] = 1
    replicas["slow"] = 1.0


def pack_tables(groups: NDArray[Any], tables: list[ExecTables]) -> NDArray[np.float64]:
    """Lay every group's tables end to end and write where they start into ``groups``."""
    parts: list[NDArray[np.float64]] = []
    at = 0
    for row, table in zip(groups, tables, strict=True):
        assert len(table.token_s) == len(table.kv_write_s) == len(table.send_s)
        for name, values in (
            ("token_at", table.token_s),
            ("kv_write_at", table.kv_write_s),
            ("send_at", table.send_s),
            ("cpu_at", table.cpu_s),
            ("decode_at", table.decode_s),
            ("prefill_at", table.prefill_s),
        ):
            row[name] = at
            parts.append(np.ascontiguousarray(values, dtype=np.float64).ravel())
            at += values.size
        row["tokens_last"] = len(table.token_s) - 1
        row["cpu_last"] = len(table.cpu_s) - 1
        row["decode_rows"] = table.decode_s.shape[0] - 1
        row["decode_last"] = table.decode_s.shape[1] - 1
        row["prefill_rows"] = table.prefill_s.shape[0] - 1
        row["prefill_last"] = table.prefill_s.shape[1] - 1
        row["vidur"] = table.vidur
        row["token_round"] = table.token_round
        row["kv_step"] = table.kv_step
        row["chunk_step"] = table.chunk_step
        row["many_prefills"] = table.many_prefills_factor
    return np.concatenate(parts)
