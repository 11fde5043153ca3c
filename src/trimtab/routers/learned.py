"""The learned router: a small network that scores every replica by the same rule.

score(r) = skip . x_r + last . relu(inner . relu(own . x_r + mean . mean(x) + least . min(x)
           + context . c + bias) + inner_bias)

with x_r the features of replica r and c the context (``features``). The network is shared over replicas
and sees the others through their mean and minimum: permuting replicas permutes scores, and any number
of them will do. ``trimtab.learn.policy`` is the same in torch; tests hold the two equal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import jit
from trimtab.engine.ranking import Table
from trimtab.engine.state import Brain, State
from trimtab.routers.beliefs import expect
from trimtab.routers.features import NUM_CONTEXT, NUM_FEATURES, observe

POOLED = 2 * NUM_FEATURES + NUM_CONTEXT  # mean, minimum, context


def policy_size(hidden: int) -> int:
    """Entries of the flat policy with ``hidden`` units per layer, in the order of ``PARTS``."""
    return sum(rows * columns for rows, columns in parts(hidden).values())


def parts(hidden: int) -> dict[str, tuple[int, int]]:
    """Name and (rows, columns) of each part of the flat policy, in order. Rows are inputs."""
    return {
        "own": (NUM_FEATURES, hidden),
        "pooled": (POOLED, hidden),
        "bias": (1, hidden),
        "inner": (hidden, hidden),
        "inner_bias": (1, hidden),
        "last": (1, hidden),
        "skip": (1, NUM_FEATURES),
    }


def make_brain(
    policy: NDArray[np.float64],
    hidden: int,
    num_replicas: int,
    num_requests: int = 0,
    bias_rate: float = 0.0,
    bias_decay: float = 0.01,
) -> Brain:
    """What the engine needs to run ``policy`` (``policy_size(hidden)``,). With ``num_requests`` > 0 every
    decision is kept in ``decisions`` (num_requests, ``decision_width(num_replicas)``)."""
    assert policy.shape == (policy_size(hidden),)
    shape = (num_requests, decision_width(num_replicas)) if num_requests else (1, 1)
    return Brain(
        policy=np.array(policy, dtype=np.float64),
        features=np.zeros((num_replicas, NUM_FEATURES)),
        context=np.zeros(NUM_CONTEXT),
        pooled=np.zeros(POOLED),
        layer=np.zeros(3 * hidden),
        decisions=np.zeros(shape, np.float32),
        hidden=hidden,
        recording=num_requests > 0,
        bias_rate=bias_rate,
        bias_decay=bias_decay,
    )


def decision_width(num_replicas: int) -> int:
    """Columns of one kept decision: choice, replicas, context; accepting, bias, features per replica."""
    return 2 + NUM_CONTEXT + num_replicas * (2 + NUM_FEATURES)


@jit
def learned(state: State, table: Table, base: int, request: int) -> int:
    """The replica with the highest score, or one drawn by softmax(score / temperature)."""
    observe(state, table, base, request)
    score_pool(state)
    replica = draw(state, request) if state.control["temperature"][0] > 0.0 else best(state, request)
    if state.control["recording"][0]:
        record(state, request, replica)
    if state.control["stale"][0]:
        expect(state, table, base, replica, request)
    adjust_bias(state, replica)
    return replica


@jit
def score_pool(state: State) -> None:
    """Scores of all replicas of the pool into ``replicas.cost``."""
    first, last = state.control["first"][0], state.control["last"][0]
    hidden = state.control["hidden"][0]
    pool(state, first, last)
    layer, weights = state.layer, state.policy
    at = NUM_FEATURES * hidden
    for unit in range(hidden):
        layer[unit] = weights[at + POOLED * hidden + unit]
    for index in range(POOLED):
        value = state.pooled[index]
        start = at + index * hidden
        for unit in range(hidden):
            layer[unit] += value * weights[start + unit]
    for replica in range(first, last):
        state.replicas["cost"][replica] = score_one(state, replica, hidden)


@jit
def pool(state: State, first: int, last: int) -> None:
    """Mean and minimum of every feature over the pool, then the context."""
    pooled, features = state.pooled, state.features
    for index in range(NUM_FEATURES):
        total, least = 0.0, math.inf
        for replica in range(first, last):
            total += features[replica, index]
            least = min(least, features[replica, index])
        pooled[index] = total / (last - first)
        pooled[NUM_FEATURES + index] = least
    for index in range(NUM_CONTEXT):
        pooled[2 * NUM_FEATURES + index] = state.context[index]


@jit
def score_one(state: State, replica: int, hidden: int) -> float:
    """``layer`` holds, from 0, what all replicas share; then this one's first and second layer."""
    layer, weights, features = state.layer, state.policy, state.features
    for unit in range(hidden):
        layer[hidden + unit] = layer[unit]
    for index in range(NUM_FEATURES):
        value = features[replica, index]
        start = index * hidden
        for unit in range(hidden):
            layer[hidden + unit] += value * weights[start + unit]
    inner = (NUM_FEATURES + POOLED + 1) * hidden
    for unit in range(hidden):
        layer[2 * hidden + unit] = weights[inner + hidden * hidden + unit]
    for index in range(hidden):
        value = max(0.0, layer[hidden + index])
        start = inner + index * hidden
        for unit in range(hidden):
            layer[2 * hidden + unit] += value * weights[start + unit]
    score = state.replicas["bias"][replica]
    last = inner + (hidden + 1) * hidden
    for unit in range(hidden):
        score += max(0.0, layer[2 * hidden + unit]) * weights[last + unit]
    for index in range(NUM_FEATURES):
        score += features[replica, index] * weights[last + hidden + index]
    return score


@jit
def best(state: State, request: int) -> int:
    """Highest score among those that accept; the scan starts at a random replica, so that ties are random."""
    first, last = state.control["first"][0], state.control["last"][0]
    replica = first + int(state.requests["coin_a"][request] * (last - first))
    chosen, highest = replica, -math.inf
    for _ in range(first, last):
        if state.replicas["accepting"][replica] and state.replicas["cost"][replica] > highest:
            chosen, highest = replica, state.replicas["cost"][replica]
        replica += 1
        if replica == last:
            replica = first
    return chosen


@jit
def draw(state: State, request: int) -> int:
    """One that accepts, with probability ~ exp(score / temperature)."""
    first, last = state.control["first"][0], state.control["last"][0]
    temperature, accepting = state.control["temperature"][0], state.replicas["accepting"]
    scores = state.replicas["cost"]
    highest = -math.inf
    for replica in range(first, last):
        if accepting[replica]:
            highest = max(highest, scores[replica])
    total = 0.0
    for replica in range(first, last):
        if accepting[replica]:
            total += math.exp((scores[replica] - highest) / temperature)
    left = state.requests["coin_b"][request] * total
    chosen = NONE
    for replica in range(first, last):
        if accepting[replica]:
            chosen = replica
            left -= math.exp((scores[replica] - highest) / temperature)
            if left < 0.0:
                break
    return chosen


@jit
def record(state: State, request: int, replica: int) -> None:
    """Keep what was seen and chosen: features of each replica of the pool, accepting or not, context."""
    first, last = state.control["first"][0], state.control["last"][0]
    seen = state.decisions
    seen[request, 0] = replica - first
    seen[request, 1] = last - first
    for index in range(NUM_CONTEXT):
        seen[request, 2 + index] = state.context[index]
    at = 2 + NUM_CONTEXT
    for other in range(first, last):
        seen[request, at] = state.replicas["accepting"][other]
        seen[request, at + 1] = state.replicas["bias"][other]
        for index in range(NUM_FEATURES):
            seen[request, at + 2 + index] = state.features[other, index]
        at += 2 + NUM_FEATURES


@jit
def adjust_bias(state: State, chosen: int) -> None:
    """Loss-free balancing: those above their target share of the load lose a little, the others gain.

    The target is in proportion to speed. Outside the gradient: training takes the bias as given.
    """
    rate = state.control["bias_rate"][0]
    if rate == 0.0:
        return
    replicas = state.replicas
    first, last = state.control["first"][0], state.control["last"][0]
    total = 0.0
    for replica in range(first, last):
        total += replicas["speed"][replica]
    decay = state.control["bias_decay"][0]
    for replica in range(first, last):
        came = 1.0 if replica == chosen else 0.0
        replicas["share"][replica] += decay * (came - replicas["share"][replica])
        target = replicas["speed"][replica] / total
        if replicas["share"][replica] > target:
            replicas["bias"][replica] -= rate
        else:
            replicas["bias"][replica] += rate
