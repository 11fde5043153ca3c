"""Random small clusters that any correct engine must serve, sized for milliseconds in the oracle.

Memory is drawn tight against the longest request, so that preemption is common, but every request
fits every replica: what does not fit is invalid input and belongs in tests of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle.faults import OracleClass, OracleConditions, OracleFault
from oracle.parts import OracleReplica, request_table
from oracle.schedulers import SCHEDULERS, blocks_for

from trimtab.exectime.tables import ExecTables

ROUTERS = ("replay", "random", "round_robin", "least_outstanding", "vidur_lor")


@dataclass(frozen=True)
class Cluster:
    """``requests`` is a REQUEST table (N,), openers sorted by arrival, then the later turns."""

    requests: Any
    replicas: list[OracleReplica]
    router: str

    def __repr__(self) -> str:
        """Short enough to read when hypothesis prints a failing example."""
        names = (
            "arrival",
            "prefill_tokens",
            "decode_tokens",
            "priority",
            "replica",
            "coin_a",
            "next_turn",
            "think",
        )
        rows = [{name: row[name].item() for name in names} for row in self.requests]
        settings = [
            {name: value for name, value in vars(replica).items() if name != "tables"}
            | {"tables": replica.tables.source}
            for replica in self.replicas
        ]
        return f"Cluster(router={self.router!r}, requests={rows}, replicas={settings})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def plain_tables(fixed: float = 10.0, per_token: float = 1.0, send: float = 1.0) -> ExecTables:
    """A stage takes ``fixed`` s and ``per_token`` s for each token; sending takes ``send`` s."""
    token = fixed + per_token * np.arange(4097, dtype=np.float64)
    token[0] = 0.0
    sending = np.full(4097, send)
    sending[0] = 0.0
    return ExecTables(
        token_s=token,
        kv_write_s=np.zeros(4097),
        decode_s=np.zeros((2, 2)),
        prefill_s=np.zeros((2, 2)),
        send_s=sending,
        cpu_s=np.zeros(2),
        token_round=1,
        source=f"plain_tables({fixed}, {per_token}, {send})",
    )


def random_tables(seed: int) -> ExecTables:
    """Positive random entries of about a second in all; batches may run off every table's end."""
    rng = np.random.default_rng(seed)
    vidur = bool(rng.integers(2))
    tokens, batch, kv, chunk = rng.integers(1, [40, 8, 12, 40])

    def entries(*shape: int) -> NDArray[np.float64]:
        values = np.cumsum(rng.uniform(0.01, 0.2, shape), axis=-1)
        values[(0,) * len(shape) if len(shape) == 1 else 0] = 0.0
        return values

    prefill = np.cumsum(rng.uniform(0.0, 0.05, (kv + 1, chunk + 1)), axis=1)
    prefill[:, 0] = 0.0
    return ExecTables(
        token_s=entries(tokens + 1),
        kv_write_s=entries(tokens + 1),
        decode_s=entries(batch + 1, kv + 1),
        prefill_s=prefill,
        send_s=entries(tokens + 1),
        cpu_s=entries(batch + 1) if rng.integers(2) else np.zeros(2),
        kv_step=int(rng.choice([1, 4, 16])),
        chunk_step=1 if vidur else int(rng.choice([1, 4])),
        token_round=int(rng.choice([1, 8])),
        many_prefills_factor=float(rng.choice([1.0, 1.1])),
        vidur=vidur,
        source=f"random_tables({seed})",
    )


@st.composite
def request_tables(draw: st.DrawFn, num_replicas: int, turns: bool = True, most: int = 16) -> Any:
    """REQUEST (N,): ties in arrival, single-token answers and (with ``turns``) closed loops occur."""
    count = draw(st.integers(1, most))
    gaps = st.just(0.0) | st.floats(0.0, 1.0)
    lengths = st.tuples(gaps, st.integers(1, 24), st.integers(1, 16))
    asked = draw(st.lists(lengths, min_size=count, max_size=count))
    openers = draw(st.integers(1, count)) if turns and draw(st.booleans()) else count
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows: list[dict[str, Any]] = []
    now = 0.0
    for index, (gap, prompt, output) in enumerate(asked):
        now += gap
        row = {
            "arrival": now,
            "prefill_tokens": prompt,
            "decode_tokens": output,
            "expected_decode": output,
            "priority": rng.integers(3),
            "replica": rng.integers(num_replicas),
            "coin_a": rng.random(),
            "coin_b": rng.random(),
            "session": index % openers,
            "turn": index // openers,
        }
        if index >= openers:
            row["arrival"] = np.inf
            rows[index - openers] |= {"next_turn": index, "think": gap}
        rows.append(row)
    return request_table(rows)


@st.composite
def oracle_replicas(
    draw: st.DrawFn, longest: int, schedulers: tuple[str, ...] = tuple(SCHEDULERS), most_stages: int = 3
) -> OracleReplica:
    """One replica on which a request of ``longest`` tokens, prompt and answer together, just fits."""
    name = draw(st.sampled_from(schedulers))
    lightllm = name == "lightllm"
    whole_prompts = name in ("vllm", "lightllm")
    num_stages = 1 if lightllm else draw(st.integers(1, most_stages))
    block_size = 1 if lightllm else draw(st.sampled_from([1, 4, 16]))
    watermark = draw(st.integers(0, 2)) if name in ("vllm", "sarathi") else 0
    needed = blocks_for(longest, block_size)
    reserved = needed + draw(st.integers(0, 2)) if name in ("orca", "faster_transformer") else 0
    # vllm and sarathi ask for a free block even where they need none; lightllm for strictly less
    fitting = max(needed + watermark + 1, reserved) + lightllm
    return OracleReplica(
        tables=random_tables(draw(st.integers(0, 2**16))),
        scheduler=name,
        num_stages=num_stages,
        max_num_seqs=num_stages * draw(st.integers(1, 8)) + draw(st.integers(0, num_stages - 1)),
        token_budget=(longest if whole_prompts else 1) + draw(st.integers(0, 40)),
        block_size=block_size,
        num_blocks=fitting + draw(st.integers(0, fitting)),
        watermark_blocks=watermark,
        max_blocks_per_sequence=reserved,
        max_waiting_iters=draw(st.integers(1, 4)),
        policy=draw(st.sampled_from(["fcfs", "priority"])) if name == "vllm_v1" else "fcfs",
    )


@st.composite
def clusters(
    draw: st.DrawFn,
    schedulers: tuple[str, ...] = tuple(SCHEDULERS),
    routers: tuple[str, ...] = ROUTERS,
    turns: bool = True,
    most_stages: int = 3,
) -> Cluster:
    """One to four replicas, alike or (more often) each of its own kind, and a dozen requests."""
    num_replicas = draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    requests = draw(request_tables(num_replicas, turns))
    longest = int((requests["prefill_tokens"] + requests["decode_tokens"]).max())
    one = oracle_replicas(longest, schedulers, most_stages)
    if draw(st.integers(0, 2)) == 0:
        replicas = [draw(one)] * num_replicas
    else:
        replicas = [draw(one) for _ in range(num_replicas)]
    return Cluster(requests, replicas, draw(st.sampled_from(routers)))


@st.composite
def fault_lists(draw: st.DrawFn, num_replicas: int, last: float) -> list[OracleFault]:
    """Anything at any time, in any order, while a run of about ``last`` seconds goes on."""
    kinds = ["crash", "crash", "crash", "recover", "recover", "slow", "drain", "undrain", "check"]
    count = draw(st.integers(0, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    times = np.sort(rng.choice([0.0, last], 1) + rng.uniform(0, last, count)) if count else []
    faults = []
    for at in times:
        kind, replica = draw(st.sampled_from(kinds)), int(rng.integers(num_replicas))
        faults.append(OracleFault(float(at), kind, replica, float(rng.choice([0.5, 1.0, 3.0]))))
        if kind == "crash" and draw(st.booleans()):
            faults.append(OracleFault(float(at + rng.uniform(0, last / 4)), "recover", replica))
    return sorted(faults, key=lambda fault: fault.at)


@st.composite
def conditions(draw: st.DrawFn, num_replicas: int, last: float) -> OracleConditions:
    """Faults, impatient clients, admission limits and breakers, each drawn or left out."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def limit(low: float, high: float) -> float:
        return float(rng.uniform(low, high)) if draw(st.integers(0, 3)) == 3 else np.inf

    classes = [
        OracleClass(limit(0.0, 2 * last), limit(0.0, last), float(rng.choice([2.5, 6, *[np.inf] * 6])))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return OracleConditions(
        faults=draw(fault_lists(num_replicas, last)) if draw(st.integers(0, 3)) else [],
        classes=classes,
        max_retries=draw(st.integers(0, 3)),
        backoff=draw(st.sampled_from([0.0, 0.1, 2.0])),
        health_delay=draw(st.sampled_from([0.0, 0.0, 1.0])),
        breaker_failures=draw(st.sampled_from([0, 0, 1, 3])),
        breaker_open=float(rng.uniform(0.1, last)),
        rate=limit(0.2, 4.0),
        burst=float(rng.integers(1, 4)),
    )


@st.composite
def troubled(
    draw: st.DrawFn, schedulers: tuple[str, ...] = tuple(SCHEDULERS)
) -> tuple[Cluster, OracleConditions]:
    """A cluster and what befalls it; requests belong to the classes of the conditions."""
    cluster = draw(clusters(schedulers=schedulers))
    last = draw(st.sampled_from([5.0, 20.0, 60.0]))
    drawn = draw(conditions(len(cluster.replicas), last))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    cluster.requests["klass"] = rng.integers(len(drawn.classes), size=len(cluster.requests))
    return cluster, drawn
