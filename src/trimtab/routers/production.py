"""Production gateways that minimise one number per replica, by their published formulas and defaults.

Sources and what was simplified: docs/reference/routers.md. None of them knows speeds. "In flight" is the
gateway's own count of requests that it sent and that are not answered: here, ``outstanding``.
"""

from __future__ import annotations

import math

from trimtab.engine.jit import jit
from trimtab.engine.lanes import KEPT_LATENCIES
from trimtab.engine.ranking import Table
from trimtab.engine.state import State
from trimtab.routers import Router

LEAST_BUSY, LITELLM_LATENCY = int(Router.LEAST_BUSY), int(Router.LITELLM_LATENCY)
DYNAMO_KV, LMETRIC, LLUMNIX = int(Router.DYNAMO_KV), int(Router.LMETRIC), int(Router.LLUMNIX)
STACK_LOADAWARE, STACK_PREFIXAWARE = int(Router.STACK_LOADAWARE), int(Router.STACK_PREFIXAWARE)
LLM_D, GIE = int(Router.LLM_D), int(Router.GIE)

BETA = 1.0  # production-stack: weight of load against matched share


@jit
def new_tokens(state: State, table: Table, row: int, replica: int, request: int) -> float:
    """Prompt tokens to compute before this request's first token: queued ones and its own misses."""
    misses = state.requests["prefill_tokens"][request] - state.replicas["match"][replica]
    return float(table["pending_prefill"][row] + misses)


@jit
def matched_share(state: State, replica: int, request: int) -> float:
    return state.replicas["match"][replica] / state.requests["prefill_tokens"][request]


@jit
def dynamo_cost(state: State, table: Table, row: int, replica: int, request: int) -> float:
    """Blocks to prefill, cached ones credited, plus blocks being decoded."""
    block = state.groups["block_size"][table["group"][row]]
    return max(new_tokens(state, table, row, replica, request), 0.0) / block + table["kv_used"][row]


@jit
def freeness(state: State, table: Table, row: int) -> float:
    """Llumnix's load: minus the free blocks, queued prompts counted, per request."""
    if table["outstanding"][row] == 0:
        return -math.inf
    block = state.groups["block_size"][table["group"][row]]
    free = table["kv_total"][row] - table["kv_used"][row] - table["pending_prefill"][row] / block
    return -free / table["outstanding"][row]


@jit
def mean_latency(state: State, replica: int) -> float:
    """LiteLLM's list of ten latencies: once full, only its last entry is replaced."""
    finished = state.replicas["finished"][replica]
    if finished == 0:
        return 0.0
    total = state.replicas["latency_first"][replica] + state.replicas["latency_last"][replica]
    return total / min(finished, KEPT_LATENCIES + 1)


@jit
def weighted(
    state: State, table: Table, row: int, replica: int, request: int, low: float, high: float
) -> float:
    """The scorers of llm-d and the inference gateway, each in [0, 1]; queues lie between low and high."""
    control = state.control
    queue = (high - table["waiting"][row]) / (high - low) if high > low else 1.0
    free = 1.0 - table["kv_used"][row] / table["kv_total"][row]
    prefix = matched_share(state, replica, request)
    return (
        control["weight_prefix"][0] * prefix
        + control["weight_queue"][0] * queue
        + control["weight_kv"][0] * free
    )


@jit
def cost(
    state: State, table: Table, row: int, kind: int, replica: int, request: int, low: float, high: float
) -> float:
    """What router ``kind`` minimises. low, high: range of the queues, or twice the mean in flight."""
    if kind == LEAST_BUSY:
        return float(table["outstanding"][row])
    if kind == LITELLM_LATENCY:
        return mean_latency(state, replica)
    if kind == DYNAMO_KV:
        return dynamo_cost(state, table, row, replica, request)
    if kind == LMETRIC:
        return new_tokens(state, table, row, replica, request) * (table["outstanding"][row] + 1.0)
    if kind == LLUMNIX:
        return freeness(state, table, row)
    if kind == STACK_PREFIXAWARE:
        return -float(state.replicas["match"][replica])
    if kind == STACK_LOADAWARE:
        excess = (table["outstanding"][row] - low) / max(1.0, low)
        return BETA * excess - matched_share(state, replica, request)
    return -weighted(state, table, row, replica, request, low, high)


@jit
def least_waiting(state: State, table: Table, base: int) -> float:
    least = math.inf
    for replica in range(state.control["first"][0], state.control["last"][0]):
        least = min(least, float(table["waiting"][base + replica]))
    return least


@jit
def most_waiting(state: State, table: Table, base: int) -> float:
    most = 0.0
    for replica in range(state.control["first"][0], state.control["last"][0]):
        most = max(most, float(table["waiting"][base + replica]))
    return most


@jit
def mean_outstanding(state: State, table: Table, base: int) -> float:
    total = 0.0
    for replica in range(state.control["first"][0], state.control["last"][0]):
        total += table["outstanding"][base + replica]
    return total / (state.control["last"][0] - state.control["first"][0])


@jit
def lowest_cost(state: State, table: Table, base: int, kind: int, request: int) -> int:
    """Argmin of the cost; the scan starts at a random replica, so that ties are random."""
    low = high = 0.0
    if kind in (LLM_D, GIE):
        low, high = least_waiting(state, table, base), most_waiting(state, table, base)
    elif kind == STACK_LOADAWARE:
        low = high = mean_outstanding(state, table, base)
    first, last = state.control["first"][0], state.control["last"][0]
    replica = first + int(state.requests["coin_a"][request] * (last - first))
    best = replica
    lowest = math.inf
    for _ in range(first, last):
        value = cost(state, table, base + replica, kind, replica, request, low, high)
        if value < lowest:
            best, lowest = replica, value
        replica += 1
        if replica == last:
            replica = first
    return best


@jit
def softmax(state: State, table: Table, base: int, kind: int, request: int) -> int:
    """Dynamo's sampling: probability ~ exp(-cost / (range of costs * temperature))."""
    first, last = state.control["first"][0], state.control["last"][0]
    costs = state.replicas["cost"]
    low, high = math.inf, -math.inf
    for replica in range(first, last):
        costs[replica] = cost(state, table, base + replica, kind, replica, request, 0.0, 0.0)
        low, high = min(low, costs[replica]), max(high, costs[replica])
    scale = state.control["temperature"][0] * (high - low)
    coin = state.requests["coin_a"][request]
    if scale == 0.0:
        return first + int(coin * (last - first))
    total = 0.0
    for replica in range(first, last):
        total += math.exp((low - costs[replica]) / scale)
    left = coin * total
    for replica in range(first, last):
        left -= math.exp((low - costs[replica]) / scale)
        if left < 0.0:
            return replica
    return last - 1
