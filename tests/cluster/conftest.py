"""Run the compiled engine on the oracle's descriptions, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from oracle.faults import OracleConditions
from oracle.parts import OracleReplica
from oracle.scaling import OracleScaler

from trimtab.cluster import Fleet, prepare, run
from trimtab.engine.dtypes import CLASS, FAULT, NONE, POOL, SCALER, Fault, ScaleBy, Scheduler
from trimtab.engine.state import Conditions, State
from trimtab.routers import Router
from trimtab.workload import Traffic

ENGINE_ROUTERS = {
    "replay": Router.REPLAY,
    "random": Router.RANDOM,
    "round_robin": Router.ROUND_ROBIN,
    "least_outstanding": Router.LEAST_OUTSTANDING,
    "vidur_lor": Router.VIDUR_LOR,
}


def fleet_of(replica: OracleReplica) -> Fleet:
    """One replica of the oracle as a fleet of one."""
    return Fleet(
        name=replica.scheduler,
        scheduler=Scheduler[replica.scheduler.upper()],
        tables=replica.tables,
        count=1,
        num_blocks=replica.num_blocks,
        max_seqs=replica.max_num_seqs,
        token_budget=replica.token_budget,
        block_size=replica.block_size,
        watermark_blocks=replica.watermark_blocks,
        stages=replica.num_stages,
        reserve_blocks=replica.max_blocks_per_sequence,
        max_waiting_iters=replica.max_waiting_iters,
        priority=replica.policy == "priority",
        prefix_caching=replica.prefix_caching != "off",
        send_s=replica.send_s,
        speculation=replica.speculation,
    )


def conditions_of(given: OracleConditions) -> Conditions:
    faults = [(one.at, Fault[one.kind.upper()], one.replica, one.factor) for one in given.faults]
    spans = list(dict.fromkeys(one.replicas for one in given.classes))
    classes = [
        (one.timeout, one.ttft_timeout, one.limit, spans.index(one.replicas), one.bound)
        for one in given.classes
    ]
    others = ("faults", "classes", "decode_router")
    settings = {name: value for name, value in vars(given).items() if name not in others}
    return Conditions(faults=np.array(faults, FAULT), classes=np.array(classes, CLASS), **settings)


def scalers_of(given: Sequence[OracleScaler]) -> Any:
    """(S,) SCALER."""
    table = np.zeros(len(given), SCALER)
    for row, one in zip(table, given, strict=True):
        for name in ("first", "last", "least", "target", "interval", "provision", "window", "keep"):
            row[name] = getattr(one, name)
        row["metric"] = ScaleBy[one.metric.upper()]
    return table


def pools_of(given: OracleConditions, num_replicas: int) -> Any:
    """(Q,) POOL, one per span of replicas that some class may use, then one per span that some decode in."""
    spans = dict.fromkeys(one.replicas for one in given.classes)
    pools = np.array([(*(span or (0, num_replicas)), 0, 0, NONE) for span in spans], POOL)
    decoding = list(dict.fromkeys(one.decodes for one in given.classes if one.decodes))
    for index, span in enumerate(spans):
        for one in given.classes:
            if one.replicas == span and one.decodes:
                pools["decode"][index] = len(spans) + decoding.index(one.decodes)
    return np.append(pools, np.array([(*span, 0, 0, NONE) for span in decoding], POOL))


def run_engine(
    requests: Any,
    replicas: list[OracleReplica],
    router: str,
    traffic: Traffic | None = None,
    given: OracleConditions | None = None,
    scalers: Sequence[OracleScaler] = (),
) -> State:
    """The engine's state after everything has ended."""
    conditions = conditions_of(given or OracleConditions())
    starts = tuple(one.start for one in scalers)
    state = prepare(
        requests,
        [fleet_of(replica) for replica in replicas],
        ENGINE_ROUTERS[router],
        speed_aware=False,
        traffic=traffic,
        conditions=replace(conditions, scalers=scalers_of(scalers), starts=starts),
        pools=pools_of(given or OracleConditions(), len(replicas)),
        decode_router=ENGINE_ROUTERS[(given or OracleConditions()).decode_router],
    )
    run(state)
    return state
