"""Run the compiled engine on the oracle's descriptions, so that the two can be compared."""

from __future__ import annotations

from typing import Any

from oracle.parts import OracleReplica

from trimtab.cluster import Fleet, prepare, run
from trimtab.engine.dtypes import Scheduler
from trimtab.engine.state import State
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
    )


def run_engine(
    requests: Any, replicas: list[OracleReplica], router: str, traffic: Traffic | None = None
) -> State:
    """The engine's state after serving everything."""
    fleets = [fleet_of(replica) for replica in replicas]
    state = prepare(requests, fleets, ENGINE_ROUTERS[router], speed_aware=False, traffic=traffic)
    run(state)
    return state
