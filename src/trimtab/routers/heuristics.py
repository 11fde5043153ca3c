"""The routers' formulas: what to minimise over replicas, evaluated when a request arrives.

Replicas that do not accept (down, draining, breaker open) are passed over; at least one accepts.
"""

from __future__ import annotations

import math

from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import jit
from trimtab.engine.state import State
from trimtab.routers import Router

RANDOM = int(Router.RANDOM)
ROUND_ROBIN = int(Router.ROUND_ROBIN)
POWER_OF_TWO = int(Router.POWER_OF_TWO)
LEAST_OUTSTANDING = int(Router.LEAST_OUTSTANDING)
VLLM_DP = int(Router.VLLM_DP)
LEAST_PENDING_PREFILL = int(Router.LEAST_PENDING_PREFILL)
LEAST_KV = int(Router.LEAST_KV)
LEAST_WORK = int(Router.LEAST_WORK)
STICKY_SESSION = int(Router.STICKY_SESSION)
REPLAY = int(Router.REPLAY)
VIDUR_LOR = int(Router.VIDUR_LOR)

GOLDEN = 0.618033988749895  # further tosses of one coin: the fractional parts of its multiples


@jit
def speed_of(state: State, replica: int) -> float:
    if state.control["speed_aware"][0]:
        return state.replicas["speed"][replica]
    return 1.0


@jit
def score(state: State, kind: int, replica: int, request: int) -> float:
    """The load that router ``kind`` sees on a replica; smaller is better."""
    replicas = state.replicas
    if not replicas["accepting"][replica]:
        return math.inf
    speed = speed_of(state, replica)
    if kind == VLLM_DP:
        return (4.0 * replicas["waiting"][replica] + replicas["running"][replica] + 1.0) / speed
    if kind == LEAST_PENDING_PREFILL:
        prompt = state.requests["prefill_tokens"][request]
        return (replicas["pending_prefill"][replica] + prompt) / speed
    if kind == LEAST_KV:
        return kv_after(state, replica, request)
    if kind == LEAST_WORK:
        return seconds_of_work(state, replica, request)
    return (replicas["outstanding"][replica] + 1.0) / speed


@jit
def kv_after(state: State, replica: int, request: int) -> float:
    """Share of the KV cache once the queued prompts and this one are in."""
    replicas = state.replicas
    block = state.groups["block_size"][replicas["group"][replica]]
    prompts = replicas["pending_prefill"][replica] + state.requests["prefill_tokens"][request]
    return (replicas["kv_used"][replica] + prompts / block) / replicas["kv_total"][replica]


@jit
def seconds_of_work(state: State, replica: int, request: int) -> float:
    replicas, groups, requests = state.replicas, state.groups, state.requests
    group = replicas["group"][replica]
    prompts = replicas["pending_prefill"][replica] + requests["prefill_tokens"][request]
    outputs = replicas["expected_decode"][replica] + requests["expected_decode"][request]
    return prompts * groups["prefill_s"][group] + outputs * groups["decode_s"][group]


@jit
def choose(state: State, request: int) -> int:
    """The replica for ``request``."""
    kind = state.control["router"][0]
    count = len(state.replicas)
    if kind == ROUND_ROBIN:
        turn = state.control["turn"][0]
        while not state.replicas["accepting"][turn]:
            turn = (turn + 1) % count
        state.control["turn"][0] = (turn + 1) % count
        return turn
    if kind == RANDOM:
        return random_by_speed(state, request)
    if kind == REPLAY:
        return state.requests["replica"][request]
    if kind == POWER_OF_TWO:
        return best_of_few(state, request)
    if kind == VIDUR_LOR:
        return fewest_waiting(state)
    if kind == STICKY_SESSION:
        return sticky(state, request)
    return lowest_score(state, kind, request)


@jit
def lowest_score(state: State, kind: int, request: int) -> int:
    """Argmin of the score; the scan starts at a random replica, so that ties are random."""
    count = len(state.replicas)
    replica = int(state.requests["coin_a"][request] * count)
    best = replica
    lowest = score(state, kind, replica, request)
    for _ in range(count - 1):
        replica += 1
        if replica == count:
            replica = 0
        value = score(state, kind, replica, request)
        if value < lowest:
            best, lowest = replica, value
    return best


@jit
def random_by_speed(state: State, request: int) -> int:
    """Replica i with probability speed_i / sum of speeds."""
    total = 0.0
    accepting = state.replicas["accepting"]
    for replica in range(len(state.replicas)):
        total += accepting[replica] * speed_of(state, replica)
    left = state.requests["coin_a"][request] * total
    for replica in range(len(state.replicas)):
        left -= accepting[replica] * speed_of(state, replica)
        if left < 0.0:
            return replica
    return nth_accepting(state, state.control["accepting"][0] - 1)


@jit
def nth_accepting(state: State, index: int) -> int:
    """The replica number ``index`` of those that accept."""
    if state.control["accepting"][0] == len(state.replicas):
        return index
    replica = -1
    while index >= 0:
        replica += 1
        index -= state.replicas["accepting"][replica]
    return replica


@jit
def best_of_few(state: State, request: int) -> int:
    """Least outstanding of ``choices`` random replicas; the first differs from all others."""
    count = state.control["accepting"][0]
    first = int(state.requests["coin_a"][request] * count)
    best = nth_accepting(state, first)
    lowest = score(state, LEAST_OUTSTANDING, best, request)
    for index in range(1, min(state.control["choices"][0], count)):
        coin = state.requests["coin_b"][request] + GOLDEN * (index - 1)
        other = nth_accepting(state, (first + 1 + int((coin - int(coin)) * (count - 1))) % count)
        value = score(state, LEAST_OUTSTANDING, other, request)
        if value < lowest:
            best, lowest = other, value
    return best


@jit
def fewest_waiting(state: State) -> int:
    best = nth_accepting(state, 0)
    for replica in range(best + 1, len(state.replicas)):
        waiting = state.replicas["waiting"]
        if state.replicas["accepting"][replica] and waiting[replica] < waiting[best]:
            best = replica
    return best


@jit
def sticky(state: State, request: int) -> int:
    """Where the session's earlier request went; the first goes to the least loaded."""
    requests = state.requests
    session = requests["session"][request]
    if session == NONE:
        return lowest_score(state, LEAST_OUTSTANDING, request)
    home = state.homes[session]
    if home == NONE or not state.replicas["accepting"][home]:
        home = lowest_score(state, LEAST_OUTSTANDING, request)
        state.homes[session] = home
    return home
