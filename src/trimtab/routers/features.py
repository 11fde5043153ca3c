"""What the learned router knows: a row of numbers per replica, and a few about the request.

Training, the gym environment and the compiled router all read these, and nothing else. Times and counts
enter as logarithms, so that a replica twice as slow is as far from its neighbour on an idle fleet as on a
busy one; all are bounded. With stale signals everything but matches is what the snapshot says, with what
was dispatched since; queued prompts and decoding are also worked off since (``beliefs``).
"""

from __future__ import annotations

import math

from trimtab.engine.jit import jit
from trimtab.engine.ranking import Table
from trimtab.engine.state import State
from trimtab.routers.beliefs import believe

# name: (unit of the fact, what it is); the network sees squash(fact / scale)
FEATURES: dict[str, tuple[str, str]] = {
    "first_token": ("s", "queued prompts, this prompt's misses and what is left of the running iteration"),
    "queued_prompts": ("s", "prompt tokens not yet computed, at the replica's own rate (see ``beliefs``)"),
    "own_prompt": (
        "s",
        "this prompt's tokens that its prefix cache does not hold, at the replica's own rate",
    ),
    "iteration_left": ("s", "until the running iteration ends; 0 with stale signals"),
    "decoding": ("s", "output tokens expected of outstanding requests, at the replica's own rate"),
    "waiting": ("requests", "queued"),
    "running": ("requests", "holding KV"),
    "kv_after": ("share", "KV blocks in use once the queued prompts and this one are in"),
    "match": ("share", "of this prompt, held by the replica's prefix cache"),
    "speed": ("share", "relative to the fleet's fastest"),
    "work": ("s", "prompts and decoding outstanding; with stale signals, as if none were done since"),
}
CONTEXT: dict[str, tuple[str, str]] = {
    "prompt": ("tokens", "of this request"),
    "expected_output": ("tokens", "of this request, as far as the router knows"),
    "replicas": ("replicas", "that may serve it"),
    "age_of_signal": ("s", "since the replicas' facts were read"),
}
NUM_FEATURES, NUM_CONTEXT = len(FEATURES), len(CONTEXT)
BOUND = 3.0  # of every entry
SHORT, MANY, LONG = 0.02, 1.0, 16.0  # scales: s, requests, tokens


@jit
def squash(value: float, scale: float) -> float:
    """log(1 + value / scale) / 4, at most ``BOUND``; 0 for nothing."""
    return min(BOUND, 0.25 * math.log1p(max(value, 0.0) / scale))


@jit
def iteration_left(state: State, replica: int) -> float:
    """Seconds until the oldest batch in flight ends."""
    if state.replicas["in_flight"][replica] == 0 or state.control["stale"][0]:
        return 0.0
    ring = len(state.batches) // len(state.replicas)
    oldest = replica * ring + state.replicas["batch_head"][replica]
    return max(0.0, state.batches["end"][oldest] - state.control["now"][0])


@jit
def observe(state: State, table: Table, base: int, request: int) -> None:
    """Write the features of every replica of the pool, and the context."""
    control, groups, features = state.control, state.groups, state.features
    prompt = state.requests["prefill_tokens"][request]
    stale = control["stale"][0]
    if stale:
        believe(state, table, base)
    for replica in range(control["first"][0], control["last"][0]):
        row = base + replica
        group = table["group"][row]
        match = state.replicas["match"][replica] if control["matching"][0] else 0
        queued = table["pending_prefill"][row] * groups["prefill_s"][group]
        decoding = table["expected_decode"][row] * groups["decode_s"][group]
        features[replica, 10] = squash(queued + decoding, SHORT)
        if stale:
            mine = control["view"][0] * len(state.replicas) + replica
            queued, decoding = state.beliefs["prompts"][mine], state.beliefs["decodes"][mine]
        own = (prompt - match) * groups["prefill_s"][group]
        left = iteration_left(state, replica)
        block = groups["block_size"][group]
        blocks = table["kv_used"][row] + (table["pending_prefill"][row] + prompt - match) / block
        features[replica, 0] = squash(queued + own + left, SHORT)
        features[replica, 1] = squash(queued, SHORT)
        features[replica, 2] = squash(own, SHORT)
        features[replica, 3] = squash(left, SHORT)
        features[replica, 4] = squash(decoding, SHORT)
        features[replica, 5] = squash(table["waiting"][row], MANY)
        features[replica, 6] = squash(table["running"][row], MANY)
        features[replica, 7] = min(BOUND, blocks / table["kv_total"][row])
        features[replica, 8] = match / prompt
        features[replica, 9] = table["speed"][row]
    context = state.context
    context[0] = squash(prompt, LONG)
    context[1] = squash(state.requests["expected_decode"][request], LONG)
    context[2] = squash(control["last"][0] - control["first"][0], MANY)
    context[3] = squash(control["signal_age"][0], SHORT)
