"""Random small clusters that any correct engine must serve, sized for milliseconds in the oracle.

Memory is drawn tight against the longest request, so that preemption is common, but every request
fits every replica: what does not fit is invalid input and belongs in tests of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle.faults import OracleClass, OracleConditions, OracleFault
from oracle.parts import OracleReplica, request_table, requests_of
from oracle.scaling import OracleScaler
from oracle.schedulers import SCHEDULERS, blocks_for

from trimtab.engine.dtypes import NONE
from trimtab.exectime.tables import ExecTables
from trimtab.routers.heuristics import MANY
from trimtab.scenario import Speculation
from trimtab.workload import Traffic

ROUTERS = ("replay", "random", "round_robin", "least_outstanding", "vidur_lor")


@dataclass(frozen=True)
class Cluster:
    """``requests`` is a REQUEST table (N,), openers sorted by arrival, then the later turns."""

    requests: Any
    replicas: list[OracleReplica]
    router: str
    traffic: Traffic | None = None

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
        paths = ""
        if self.traffic is not None:
            served = requests_of(self.requests, self.traffic.path_node, self.traffic.path_tokens)
            paths = f", paths={[(request.path, request.grows) for request in served]}"
        return f"Cluster(router={self.router!r}, requests={rows}{paths}, replicas={settings})"

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
    counts: tuple[int, ...] = (1, 1, 1, 2, 3, 4),
    most: int = 16,
) -> Cluster:
    """A few replicas, alike or (more often) each of its own kind, and at most so many requests."""
    num_replicas = draw(st.sampled_from(counts))
    requests = draw(request_tables(num_replicas, turns, most))
    longest = int((requests["prefill_tokens"] + requests["decode_tokens"]).max())
    one = oracle_replicas(longest, schedulers, most_stages)
    if draw(st.integers(0, 2)) == 0:
        replicas = [draw(one)] * num_replicas
    else:
        replicas = [draw(one) for _ in range(num_replicas)]
    return Cluster(requests, replicas, draw(st.sampled_from(routers)))


def crowds() -> st.SearchStrategy[Cluster]:
    """Replicas enough for the tree of their loads (``routers.heuristics.MANY``), or one too few."""
    counts = (MANY - 1, MANY, MANY + 5)
    return clusters(routers=("least_outstanding",), counts=counts, most=60)


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
def conditions(draw: st.DrawFn, num_replicas: int, last: float, pools: bool = True) -> OracleConditions:
    """Faults, impatient clients, admission limits, breakers and (with ``pools``) classes that only some
    replicas may serve, each drawn or left out."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def limit(low: float, high: float) -> float:
        return float(rng.uniform(low, high)) if draw(st.integers(0, 3)) == 3 else np.inf

    def span() -> tuple[int, int] | None:
        first, last = sorted(rng.choice(num_replicas + 1, 2, replace=False).tolist())
        some = pools and rng.random() < 0.4 and (first, last) != (0, num_replicas)
        return (first, last) if some else None

    classes = [
        OracleClass(
            limit(0.0, 2 * last), limit(0.0, last), float(rng.choice([2.5, 6, *[np.inf] * 6])), span()
        )
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
    draw: st.DrawFn,
    schedulers: tuple[str, ...] = tuple(SCHEDULERS),
    peaceful: st.SearchStrategy[Cluster] | None = None,
) -> tuple[Cluster, OracleConditions]:
    """A cluster and what befalls it; requests belong to the classes of the conditions."""
    cluster = draw(peaceful if peaceful is not None else clusters(schedulers=schedulers))
    last = draw(st.sampled_from([5.0, 20.0, 60.0]))
    drawn = draw(conditions(len(cluster.replicas), last, pools=cluster.router != "replay"))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    cluster.requests["klass"] = rng.integers(len(drawn.classes), size=len(cluster.requests))
    return cluster, drawn


@st.composite
def scalers(draw: st.DrawFn, num_replicas: int) -> list[OracleScaler]:
    """One scaler of all replicas, or two that share them, or of some of them."""
    cut = draw(st.integers(0, num_replicas))
    spans = [(0, cut), (cut, num_replicas)] if draw(st.booleans()) else [(0, num_replicas)]
    drawn = []
    for first, last in spans:
        if first == last or (len(spans) > 1 and draw(st.integers(0, 3)) == 0):
            continue
        least = draw(st.integers(0, last - first))
        metric = draw(st.sampled_from(["queue", "outstanding", "kv", "slo"]))
        shares = metric in ("kv", "slo")
        drawn.append(
            OracleScaler(
                first,
                last,
                start=draw(st.integers(least, last - first)),
                least=least,
                metric=metric,
                target=draw(st.sampled_from([0.05, 0.3, 0.9] if shares else [0.5, 1.0, 3.0])),
                interval=draw(st.sampled_from([0.25, 1.0, 3.7])),
                provision=draw(st.sampled_from([0.0, 0.5, 1.0, 6.3])),
                window=draw(st.sampled_from([0.5, 2.0, 100.0])),
                keep=draw(st.sampled_from([1, 2, 5])),
            )
        )
    return drawn


@st.composite
def scaled(
    draw: st.DrawFn, peaceful: st.SearchStrategy[Cluster] | None = None
) -> tuple[Cluster, OracleConditions, list[OracleScaler]]:
    """A cluster, what befalls it, and what scales it."""
    cluster, drawn = draw(troubled(peaceful=peaceful))
    bound = draw(st.sampled_from([0.3, 1.0, 4.0]))
    drawn = replace(drawn, classes=[replace(one, bound=bound) for one in drawn.classes])
    return cluster, drawn, draw(scalers(len(cluster.replicas)))


# --- what prompts share -------------------------------------------------------------------------


@st.composite
def forests(draw: st.DrawFn, most: int = 6) -> list[tuple[int, int]]:
    """(parent or -1, tokens) of each node; parents come first."""
    count = draw(st.integers(1, most))
    return [(draw(st.integers(-1, node - 1)), draw(st.integers(1, 30))) for node in range(count)]


def path_to(forest: list[tuple[int, int]], node: int) -> list[tuple[int, int]]:
    """(node, tokens) from the root to ``node``, all tokens of each."""
    path: list[tuple[int, int]] = []
    while node >= 0:
        path.insert(0, (node, forest[node][1]))
        node = forest[node][0]
    return path


@st.composite
def traffics(draw: st.DrawFn, num_replicas: int, most: int = 16) -> Traffic:
    """Conversations, and single requests whose prompts go part of the way down a random forest."""
    table = draw(request_tables(num_replicas, most=most))
    forest = draw(forests())
    num_nodes = len(forest)
    paths: list[list[tuple[int, int]]] = [[] for _ in table]
    followers = set(table["next_turn"][table["next_turn"] != NONE].tolist())
    for row in range(len(table)):
        if row in followers:
            continue
        path = path_to(forest, draw(st.integers(-1, len(forest) - 1)))
        conversation = draw(st.booleans())
        if path and not conversation and draw(st.booleans()):
            path[-1] = (path[-1][0], draw(st.integers(1, path[-1][1])))
        ahead = sum(tokens for _, tokens in path)
        if conversation:  # its own node goes on with every turn
            history = 0
            turn = row
            while turn != NONE:
                history += int(table["prefill_tokens"][turn])
                table["grows"][turn] = 1
                table["prefill_tokens"][turn] = ahead + history
                paths[turn] = [*path, (num_nodes, history)]
                history += int(table["decode_tokens"][turn])
                turn = int(table["next_turn"][turn])
            num_nodes += 1
        elif path:
            more = draw(st.integers(0, 1)) * int(table["prefill_tokens"][row])
            table["prefill_tokens"][row] = ahead + more
            paths[row] = path
    table["target"] = table["prefill_tokens"]
    table["path_len"] = [len(path) for path in paths]
    table["path_at"] = np.cumsum(table["path_len"]) - table["path_len"]
    steps = np.array([step for path in paths for step in path], np.int64).reshape(-1, 2)
    return Traffic(table, steps[:, 0].copy(), steps[:, 1].copy(), num_nodes)


@st.composite
def sharing_clusters(
    draw: st.DrawFn,
    prefix_caching: str = "nodes",
    most_stages: int = 3,
    counts: tuple[int, ...] = (1, 1, 2),
) -> Cluster:
    """A few vllm_v1 replicas with prefix caches, memory between tight and ample."""
    num_replicas = draw(st.sampled_from(counts))
    traffic = draw(traffics(num_replicas))
    requests = traffic.requests
    longest = int((requests["prefill_tokens"] + requests["decode_tokens"]).max())
    replicas = []
    for _ in range(num_replicas):
        replica = draw(oracle_replicas(longest, ("vllm_v1",), most_stages))
        replica.num_blocks += draw(st.sampled_from([0, 0, 5, 20]))
        replica.prefix_caching = prefix_caching
        replicas.append(replica)
    return Cluster(requests, replicas, draw(st.sampled_from(ROUTERS)), traffic)


@st.composite
def speculating_clusters(draw: st.DrawFn) -> Cluster:
    """vllm_v1 replicas of one stage, most of which speculate, with and without prefix caches."""
    cluster = draw(clusters(("vllm_v1",), most_stages=1) | sharing_clusters(most_stages=1))
    for replica in cluster.replicas:
        if draw(st.integers(0, 3)) == 0:
            continue
        replica.speculation = Speculation(
            tokens=draw(st.integers(1, 7)),
            acceptance=draw(st.sampled_from([0.0, 0.4, 0.8, 0.97])),
        )
        replica.token_budget += replica.speculation.tokens
    return cluster


# --- prefill here, decode there -----------------------------------------------------------------


@st.composite
def split_clusters(draw: st.DrawFn, harm: bool = True) -> tuple[Cluster, OracleConditions]:
    """Replicas that prefill, then some that do both, then some that decode; faults, unless no ``harm``."""
    if draw(st.booleans()):
        cluster = draw(sharing_clusters(most_stages=1, counts=(1, 2, 3)))
    else:
        cluster = draw(clusters(schedulers=("vllm_v1",), most_stages=1, counts=(2, 2, 3, 4)))
    count = len(cluster.replicas)
    drawn = draw(conditions(count, draw(st.sampled_from([5.0, 20.0])), pools=False))
    prefill = (0, draw(st.integers(1, count)))
    decode = (draw(st.integers(0, min(prefill[1], count - 1))), count)
    routers = [router for router in ROUTERS if router != "replay" or prefill == decode]
    patience = drawn.classes if harm else [OracleClass()]
    split = replace(
        drawn if harm else OracleConditions(),
        classes=[replace(one, replicas=prefill, decodes=decode) for one in patience],
        link_latency=draw(st.sampled_from([0.0, 0.0, 0.1, 3.0])),
        decode_router=draw(st.sampled_from(routers)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    for index, one in enumerate(cluster.replicas):
        cluster.replicas[index] = replace(one, send_s=float(rng.choice([0.0, 0.001, 0.05, 0.5])))
    cluster.requests["klass"] = rng.integers(len(split.classes), size=len(cluster.requests))
    cluster.requests["replica"] %= prefill[1]
    return cluster, split
