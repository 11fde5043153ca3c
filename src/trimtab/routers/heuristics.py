"""The routers' formulas: what to minimise over replicas, evaluated when a request arrives.

A formula reads ``table`` at ``row``: the replicas themselves, or the snapshot of them that the router has
(``base`` is the row of its first replica; see ``engine.signals``). Replicas that do not accept (down,
draining, breaker open) are passed over, at once however old the snapshot is; at least one accepts.
``production`` and ``prefix_aware`` have what gateways use; ``choose`` has the choice between all of them.
"""

from __future__ import annotations

import math

from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import jit
from trimtab.engine.ranking import Table, least_loaded, load_of, speed_of
from trimtab.engine.state import State
from trimtab.routers import Router

LEAST_OUTSTANDING = int(Router.LEAST_OUTSTANDING)
VLLM_DP = int(Router.VLLM_DP)
LEAST_PENDING_PREFILL = int(Router.LEAST_PENDING_PREFILL)
LEAST_KV = int(Router.LEAST_KV)
LEAST_WORK = int(Router.LEAST_WORK)

MANY = 16  # replicas from which on a scan costs more than the tree of loads
GOLDEN = 0.618033988749895  # further tosses of one coin: the fractional parts of its multiples


@jit
def score(state: State, table: Table, row: int, kind: int, replica: int, request: int) -> float:
    """The load that router ``kind`` sees on a replica; smaller is better."""
    if not state.replicas["accepting"][replica]:
        return math.inf
    if kind == VLLM_DP:
        weighed = 4.0 * table["waiting"][row] + table["running"][row] + 1.0
        return weighed / speed_of(state, table, row)
    if kind == LEAST_PENDING_PREFILL:
        prompt = state.requests["prefill_tokens"][request]
        return (table["pending_prefill"][row] + prompt) / speed_of(state, table, row)
    if kind == LEAST_KV:
        return kv_after(state, table, row, request)
    if kind == LEAST_WORK:
        return seconds_of_work(state, table, row, request)
    return load_of(state, table, row)


@jit
def kv_after(state: State, table: Table, row: int, request: int) -> float:
    """Share of the KV cache once the queued prompts and this one are in."""
    block = state.groups["block_size"][table["group"][row]]
    prompts = table["pending_prefill"][row] + state.requests["prefill_tokens"][request]
    return (table["kv_used"][row] + prompts / block) / table["kv_total"][row]


@jit
def seconds_of_work(state: State, table: Table, row: int, request: int) -> float:
    groups, requests = state.groups, state.requests
    group = table["group"][row]
    prompts = table["pending_prefill"][row] + requests["prefill_tokens"][request]
    outputs = table["expected_decode"][row] + requests["expected_decode"][request]
    return prompts * groups["prefill_s"][group] + outputs * groups["decode_s"][group]


@jit
def is_ranked(state: State) -> bool:
    """Whether the tree of loads knows what the router sees: fresh signals, and nothing that is watched."""
    return not state.control["stale"][0] and not state.control["watching"][0]


@jit
def lowest_score(state: State, table: Table, base: int, kind: int, request: int) -> int:
    """Argmin of the score; the scan starts at a random replica, so that ties are random."""
    first, last = state.control["first"][0], state.control["last"][0]
    replica = first + int(state.requests["coin_a"][request] * (last - first))
    if kind == LEAST_OUTSTANDING and last - first >= MANY and is_ranked(state):
        return least_loaded(state, first, last, replica)
    best = replica
    lowest = score(state, table, base + replica, kind, replica, request)
    for _ in range(last - first - 1):
        replica += 1
        if replica == last:
            replica = first
        value = score(state, table, base + replica, kind, replica, request)
        if value < lowest:
            best, lowest = replica, value
    return best


@jit
def next_in_turn(state: State) -> int:
    """Each router counts for itself."""
    view, pool = state.control["view"][0], state.control["pool"][0]
    turn = state.turns[view, pool]
    while not state.replicas["accepting"][turn]:
        turn = following(state, turn)
    state.turns[view, pool] = following(state, turn)
    return turn


@jit
def following(state: State, replica: int) -> int:
    """The next replica of the pool, around."""
    first, last = state.control["first"][0], state.control["last"][0]
    if first <= replica < last - 1:
        return replica + 1
    return first


@jit
def num_accepting(state: State) -> int:
    """Replicas that the router may choose; at least one."""
    return state.pools["accepting"][state.control["pool"][0]]


@jit
def nth_accepting(state: State, index: int) -> int:
    """The replica number ``index`` of those that accept."""
    first, last = state.control["first"][0], state.control["last"][0]
    if num_accepting(state) == last - first:
        return first + index
    replica = first - 1
    while index >= 0:
        replica += 1
        index -= state.replicas["accepting"][replica]
    return replica


@jit
def random_by_speed(state: State, table: Table, base: int, request: int) -> int:
    """Replica i with probability speed_i / sum of speeds."""
    accepting = state.replicas["accepting"]
    total = 0.0
    first, last = state.control["first"][0], state.control["last"][0]
    for replica in range(first, last):
        total += accepting[replica] * speed_of(state, table, base + replica)
    left = state.requests["coin_a"][request] * total
    for replica in range(first, last):
        left -= accepting[replica] * speed_of(state, table, base + replica)
        if left < 0.0:
            return replica
    return nth_accepting(state, num_accepting(state) - 1)


@jit
def best_of_few(state: State, table: Table, base: int, request: int) -> int:
    """Least outstanding of ``choices`` random replicas; the first differs from all others."""
    count = num_accepting(state)
    first = int(state.requests["coin_a"][request] * count)
    best = nth_accepting(state, first)
    lowest = score(state, table, base + best, LEAST_OUTSTANDING, best, request)
    for index in range(1, min(state.control["choices"][0], count)):
        coin = state.requests["coin_b"][request] + GOLDEN * (index - 1)
        other = nth_accepting(state, (first + 1 + int((coin - int(coin)) * (count - 1))) % count)
        value = score(state, table, base + other, LEAST_OUTSTANDING, other, request)
        if value < lowest:
            best, lowest = other, value
    return best


@jit
def fewest_waiting(state: State, table: Table, base: int) -> int:
    best = nth_accepting(state, 0)
    for replica in range(best + 1, state.control["last"][0]):
        fewer = table["waiting"][base + replica] < table["waiting"][base + best]
        if fewer and state.replicas["accepting"][replica]:
            best = replica
    return best


@jit
def may_choose(state: State, replica: int) -> bool:
    """Whether the replica is of the pool and accepts."""
    inside = state.control["first"][0] <= replica < state.control["last"][0]
    return inside and state.replicas["accepting"][replica] == 1


@jit
def sticky(state: State, table: Table, base: int, request: int) -> int:
    """Where the session's earlier request went; the first goes to the least loaded."""
    session = state.requests["session"][request]
    if session == NONE:
        return lowest_score(state, table, base, LEAST_OUTSTANDING, request)
    home = state.homes[session]
    if home == NONE or not may_choose(state, home):
        home = lowest_score(state, table, base, LEAST_OUTSTANDING, request)
        state.homes[session] = home
    return home
