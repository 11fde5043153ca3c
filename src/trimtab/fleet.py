"""From a scenario's replica groups to what the engine runs and what the reports quote."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trimtab.cluster import Fleet
from trimtab.errors import TrimtabError
from trimtab.exectime import build_tables, tokens_per_second
from trimtab.exectime.tables import ExecTables
from trimtab.hardware import (
    Device,
    Model,
    Node,
    attention_flops_per_pair,
    get_device,
    get_model,
    node_for,
    params_per_device,
    plan_kv,
    validate_expert_parallelism,
    validate_parallelism,
)
from trimtab.pools import eligible_groups
from trimtab.result import Group
from trimtab.scenario import ReplicaGroup, Scenario
from trimtab.schedulers import SchedulerInfo, get_scheduler

LARGEST_CHUNK = 16_384  # prompt tokens that an execution-time table spans; beyond, in proportion


def build_fleets(scenario: Scenario, requests: NDArray[np.void]) -> tuple[list[Fleet], list[Group]]:
    """One Fleet (for the engine) and one Group (for reports) per replica group.

    ``requests`` (N,) REQUEST sizes what depends on the traffic: the longest sequence that a group may get
    bounds its tables, the reservations of request-level schedulers and the unset token budgets.

    Raises
    ------
    TrimtabError
        for unknown names, impossible parallelism, or a model that does not fit.
    """
    tokens = requests["prefill_tokens"] + requests["decode_tokens"]
    eligible = eligible_groups(scenario)
    pairs = []
    for index, group in enumerate(scenario.replicas):
        classes = [klass for klass, groups in enumerate(eligible) if index in groups]
        longest = int(tokens[np.isin(requests["klass"], classes)].max(initial=1))
        pairs.append(_build(group, longest))
    rates = [tokens_per_second(fleet.tables, fleet.stages, fleet.speculation) for fleet, _ in pairs]
    fleets = [replace(fleet, speed=rate / max(rates)) for (fleet, _), rate in zip(pairs, rates, strict=True)]
    if scenario.disaggregation is not None:
        bandwidth = 1e9 * scenario.disaggregation.bandwidth_gb_s
        sizes = [get_model(group.model).kv_bytes_per_token() for group in scenario.replicas]
        fleets = [replace(fleet, send_s=size / bandwidth) for fleet, size in zip(fleets, sizes, strict=True)]
    return fleets, [facts for _, facts in pairs]


def _build(group: ReplicaGroup, longest: int) -> tuple[Fleet, Group]:
    model, device = get_model(group.model), get_device(group.device)
    node = node_for(device, group.node)
    validate_parallelism(model, group.tp, group.pp, node)
    validate_expert_parallelism(model, group.tp, group.ep, group.moe_imbalance)
    info, config = get_scheduler(group.scheduler.name), group.scheduler
    name = group.name or f"{model.name} on {device.name}"
    if group.pp > 1 and not info.pipeline:
        raise TrimtabError(
            f"group {name!r}: scheduler {info.name} does not support pp {group.pp}; allowed: 1"
        )
    block_size = config.block_size or info.block_size
    num_blocks = config.num_blocks or _planned_blocks(group, model, device, block_size, longest)
    reserve = -(-(config.kv_reservation_tokens or longest) // block_size) if info.reserves else 0
    max_seqs = config.max_num_seqs or info.max_num_seqs
    if reserve:
        max_seqs = max(1, min(max_seqs, num_blocks // reserve))
    token_budget = _token_budget(info, config.token_budget, longest)
    max_chunk = (
        min(max(token_budget, longest), LARGEST_CHUNK) if info.reserves else min(token_budget, LARGEST_CHUNK)
    )
    tables = _tables(group, model, device, node, max_seqs, max_chunk, longest)
    watermark = info.watermark if config.watermark is None else config.watermark
    fleet = Fleet(
        name=name,
        scheduler=info.kind,
        tables=tables,
        count=group.slots,
        num_blocks=num_blocks,
        max_seqs=max_seqs,
        token_budget=token_budget,
        block_size=block_size,
        watermark_blocks=int(watermark * num_blocks),
        stages=group.pp,
        reserve_blocks=reserve,
        max_waiting_iters=config.max_waiting_iters,
        priority=config.policy == "priority",
        prefix_caching=config.prefix_caching,
        role=group.role,
        speculation=group.speculation,
    )
    return fleet, _facts(group, fleet, model, device, info)


def _tables(
    group: ReplicaGroup,
    model: Model,
    device: Device,
    node: Node,
    max_seqs: int,
    max_chunk: int,
    longest: int,
) -> ExecTables:
    """With speculation decodes are drafted, and logits needed for every draft."""
    if group.speculation is None:
        return build_tables(group, model, device, node, max_seqs, max_chunk, longest)
    rows = min(max_seqs * (1 + group.speculation.tokens), max(max_seqs, max_chunk))
    tables = build_tables(group, model, device, node, rows, max_chunk, longest)
    tables = replace(tables, decode_s=tables.decode_s[: max_seqs + 1])
    return tables.with_drafting(group.speculation.tokens * group.speculation.draft_cost)


def _planned_blocks(group: ReplicaGroup, model: Model, device: Device, block_size: int, longest: int) -> int:
    split = (group.tp, group.pp, block_size, group.memory_margin, longest, group.ep, group.moe_imbalance)
    return plan_kv(model, device, *split).num_blocks


def _token_budget(info: SchedulerInfo, given: int | None, longest: int) -> int:
    """Tokens of one batch; schedulers that never split a prompt need room for the longest request."""
    if given is not None:
        return given
    if info.token_budget is None:
        return max(4096, longest)
    return info.token_budget


def _facts(group: ReplicaGroup, fleet: Fleet, model: Model, device: Device, info: SchedulerInfo) -> Group:
    return Group(
        name=fleet.name,
        model=model.name,
        device=device.name,
        tp=group.tp,
        pp=group.pp,
        scheduler=info.name,
        params_per_device=params_per_device(model, group.tp, group.pp),
        attention_flops_per_pair=attention_flops_per_pair(model, group.tp, group.pp),
        peak_flops=device.peak_flops,
        kv_block_size=fleet.block_size,
        kv_blocks=fleet.num_blocks,
        cost_per_hour=device.price * group.tp * group.pp,
    )
