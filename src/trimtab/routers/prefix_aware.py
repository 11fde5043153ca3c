"""Production gateways that follow prefixes or sessions until load forbids it, by their published rules.

Sources and what was simplified: docs/reference/routers.md. Matches are what replicas do hold
(``replicas.match``), as with KV events; gateways that keep a tree of what they sent only guess it.
"""

from __future__ import annotations

import math

from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import jit
from trimtab.engine.ranking import Table
from trimtab.engine.state import State
from trimtab.routers import Router
from trimtab.routers.production import lowest_cost

LEAST_BUSY = int(Router.LEAST_BUSY)

SGLANG_MATCH, SGLANG_GAP, SGLANG_RATIO = 0.3, 64, 1.5  # of the launched gateway; its library: 0.5, 32, 1.1
AIBRIX_GAP, AIBRIX_SIGMAS = 8, 1.0
RAY_MATCH, RAY_GAP = 0.1, 10
PREBLE_RATIO = 1.5
BOUND = 1.25  # times the mean load
PRIME = 2147483647


@jit
def least_outstanding(state: State, table: Table, base: int) -> int:
    first, last = state.control["first"][0], state.control["last"][0]
    least = table["outstanding"][base + first]
    for replica in range(first + 1, last):
        least = min(least, table["outstanding"][base + replica])
    return least


@jit
def most_outstanding(state: State, table: Table, base: int) -> int:
    first, last = state.control["first"][0], state.control["last"][0]
    most = table["outstanding"][base + first]
    for replica in range(first + 1, last):
        most = max(most, table["outstanding"][base + replica])
    return most


@jit
def best_match(state: State, table: Table, base: int, request: int, most: float) -> int:
    """Longest match among replicas with at most ``most`` in flight, then fewest in flight; or NONE."""
    first, last = state.control["first"][0], state.control["last"][0]
    longest = 1
    for replica in range(first, last):
        if table["outstanding"][base + replica] <= most:
            longest = max(longest, state.replicas["match"][replica])
    replica = first + int(state.requests["coin_a"][request] * (last - first))
    best, least = NONE, most + 1.0
    for _ in range(first, last):
        load = float(table["outstanding"][base + replica])
        if state.replicas["match"][replica] == longest and load <= most and load < least:
            best, least = replica, load
        replica += 1
        if replica == last:
            replica = first
    return best


@jit
def sglang(state: State, table: Table, base: int, request: int) -> int:
    """cache_aware: fewest in flight when unbalanced or when too little matches, else the longest match."""
    low, high = least_outstanding(state, table, base), most_outstanding(state, table, base)
    if high - low <= SGLANG_GAP or high <= SGLANG_RATIO * low:
        best = best_match(state, table, base, request, math.inf)
        if best != NONE:
            prompt = state.requests["prefill_tokens"][request]
            if state.replicas["match"][best] > SGLANG_MATCH * prompt:
                return best
    return lowest_cost(state, table, base, LEAST_BUSY, request)


@jit
def aibrix(state: State, table: Table, base: int, request: int) -> int:
    """prefix-cache: longest match with in flight <= mean + sigma; among the idlest when unbalanced."""
    low, high = least_outstanding(state, table, base), most_outstanding(state, table, base)
    first, last = state.control["first"][0], state.control["last"][0]
    total = squares = 0.0
    for replica in range(first, last):
        load = float(table["outstanding"][base + replica])
        total += load
        squares += load * load
    mean = total / (last - first)
    limit = mean + AIBRIX_SIGMAS * math.sqrt(max(squares / (last - first) - mean * mean, 0.0))
    best = best_match(state, table, base, request, float(low) if high - low > AIBRIX_GAP else limit)
    return best if best != NONE else lowest_cost(state, table, base, LEAST_BUSY, request)


@jit
def ray_prefix(state: State, table: Table, base: int, request: int) -> int:
    """Two choices when unbalanced; else the longest match, or the replica that was sent the least text."""
    low, high = least_outstanding(state, table, base), most_outstanding(state, table, base)
    if high - low > RAY_GAP:
        return two_choices(state, table, base, request)
    best = best_match(state, table, base, request, math.inf)
    if best != NONE:
        prompt = state.requests["prefill_tokens"][request]
        if state.replicas["match"][best] >= RAY_MATCH * prompt:
            return best
    return least_text(state, table, base, request)


@jit
def two_choices(state: State, table: Table, base: int, request: int) -> int:
    """The one with fewer in flight of two random replicas."""
    first, last = state.control["first"][0], state.control["last"][0]
    count = last - first
    one = int(state.requests["coin_a"][request] * count)
    if count == 1:
        return first
    other = first + (one + 1 + int(state.requests["coin_b"][request] * (count - 1))) % count
    if table["outstanding"][base + other] < table["outstanding"][base + first + one]:
        return other
    return first + one


@jit
def least_text(state: State, table: Table, base: int, request: int) -> int:
    """Fewest prompt tokens computed or to be computed: the size of a tree that forgets nothing."""
    first, last = state.control["first"][0], state.control["last"][0]
    replica = first + int(state.requests["coin_a"][request] * (last - first))
    best, least = replica, math.inf
    for _ in range(first, last):
        row = base + replica
        size = float(table["prefill_done"][row] + table["pending_prefill"][row])
        if size < least:
            best, least = replica, size
        replica += 1
        if replica == last:
            replica = first
    return best


@jit
def preble_seconds(state: State, table: Table, base: int, replica: int, request: int) -> float:
    """Seconds of work in flight and of this request's misses."""
    row = base + replica
    group = table["group"][row]
    misses = state.requests["prefill_tokens"][request] - state.replicas["match"][replica]
    prompts = table["pending_prefill"][row] + misses
    groups = state.groups
    return prompts * groups["prefill_s"][group] + table["expected_decode"][row] * groups["decode_s"][group]


@jit
def preble(state: State, table: Table, base: int, request: int) -> int:
    """E2: exploit where more than half of the prompt is cached, unless that is far busier; else explore."""
    first, last = state.control["first"][0], state.control["last"][0]
    longest = 0
    for replica in range(first, last):
        longest = max(longest, state.replicas["match"][replica])
    exploits = 2 * longest > state.requests["prefill_tokens"][request]
    replica = first + int(state.requests["coin_a"][request] * (last - first))
    holder = explorer = replica
    least_held = least = math.inf
    for _ in range(first, last):
        seconds = preble_seconds(state, table, base, replica, request)
        if seconds < least:
            explorer, least = replica, seconds
        if state.replicas["match"][replica] == longest and seconds < least_held:
            holder, least_held = replica, seconds
        replica += 1
        if replica == last:
            replica = first
    if exploits and least_held < PREBLE_RATIO * least:
        return holder
    return explorer


@jit
def mixed(key: int, replica: int) -> int:
    """A hash in [0, PRIME) that neither overflows nor needs unsigned numbers."""
    value = (int(key) * 48271 + int(replica) * 16807 + 12345) % PRIME
    for _ in range(3):
        value = (value * value + 48271 * value + 11) % PRIME
    return value


@jit
def hash_key(state: State, request: int) -> int:
    """What identifies a caller: the session, or the beginning of the prompt, or nothing (NONE)."""
    requests = state.requests
    if requests["session"][request] != NONE:
        return 2 * requests["session"][request]
    if requests["path_len"][request] > 0:
        return 2 * state.path_node[requests["path_at"][request]] + 1
    return NONE


@jit
def bounded_hash(state: State, table: Table, base: int, request: int) -> int:
    """First in the key's order of replicas whose load stays within ``BOUND`` times the mean."""
    key = hash_key(state, request)
    if key == NONE:
        return lowest_cost(state, table, base, LEAST_BUSY, request)
    first, last = state.control["first"][0], state.control["last"][0]
    total = 1
    for replica in range(first, last):
        total += table["outstanding"][base + replica]
    most = math.ceil(BOUND * total / (last - first))
    best, highest = NONE, -1
    for replica in range(first, last):
        weight = mixed(key, replica)
        if weight > highest and table["outstanding"][base + replica] + 1 <= most:
            best, highest = replica, weight
    return best


@jit
def hashed_session(state: State, request: int) -> int:
    """production-stack's session: the hash decides; without a session, the fewest requests so far."""
    session = state.requests["session"][request]
    best = state.control["first"][0]
    for replica in range(best + 1, state.control["last"][0]):
        if session == NONE:
            better = state.replicas["routed"][replica] < state.replicas["routed"][best]
        else:
            better = mixed(2 * session, replica) > mixed(2 * session, best)
        if better:
            best = replica
    return best
