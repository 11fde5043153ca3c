"""What routers know of the fleet: snapshots taken now and then, seen late, plus what they sent themselves.

Router v of V takes its snapshot k (k >= 1) at ``every * (k - v / V + jitter * u)`` s with a uniform u of the
seed, after everything of that instant, and sees it from ``delay`` s later on. Snapshot 0 is the empty
fleet at time zero. Requests go to the routers in turn. With fresh signals nothing here is copied: the
router's formulas read the replica table itself.
"""

from __future__ import annotations

import math

from trimtab.engine.jit import jit
from trimtab.engine.prefix import prefix_hit_tokens
from trimtab.engine.state import State


@jit
def tick_time(state: State, view: int, snapshot: int) -> float:
    """When a router takes its snapshot of that number, s."""
    if snapshot == 0:
        return 0.0
    control = state.control
    count = len(state.views)
    coin = state.requests["coin_b"][(snapshot * count + view) % len(state.requests)]
    late = control["signal_jitter"][0] * coin
    return control["signal_every"][0] * (snapshot - view / count + late)


@jit
def kept(state: State) -> int:
    """Snapshots that each router keeps; number k is kept at place k modulo this."""
    return len(state.seen) // (len(state.views) * len(state.replicas))


@jit
def refresh_until(state: State, now: float) -> None:
    """Take the snapshots that are due before ``now``."""
    views = state.views
    earliest = math.inf
    for view in range(len(views)):
        if views["next"][view] == 0.0:
            views["next"][view] = tick_time(state, view, 1)
        while views["next"][view] < now:
            number = views["taken"][view] + 1
            row = (view * kept(state) + number % kept(state)) * len(state.replicas)
            for replica in range(len(state.replicas)):
                copy_signals(state, replica, row + replica)
            views["taken"][view] = number
            views["next"][view] = tick_time(state, view, number + 1)
        earliest = min(earliest, views["next"][view])
    state.control["next_signal"][0] = earliest


@jit
def copy_signals(state: State, replica: int, row: int) -> None:
    """Everything of a replica that changes and that a router may read."""
    replicas, seen = state.replicas, state.seen
    seen["waiting"][row] = replicas["waiting"][replica]
    seen["running"][row] = replicas["running"][replica]
    seen["outstanding"][row] = replicas["outstanding"][replica]
    seen["pending_prefill"][row] = replicas["pending_prefill"][replica]
    seen["expected_decode"][row] = replicas["expected_decode"][replica]
    seen["kv_used"][row] = replicas["kv_used"][replica]
    seen["prefill_done"][row] = replicas["prefill_done"][replica]


@jit
def look(state: State, request: int, now: float) -> None:
    """A request comes to the next router, which looks at the replicas that may serve it."""
    control = state.control
    view = control["dispatched"][0] % len(state.views)
    control["dispatched"][0] += 1
    state.requests["view"][request] = view
    look_at(state, request, state.requests["pool"][request], now)


@jit
def look_at(state: State, request: int, pool: int, now: float) -> None:
    """The request's router looks at a pool: its newest visible snapshot, and prefixes if it asks.

    Prefix caches are seen as they are: routers follow them by events, not by polling.
    """
    control, views = state.control, state.views
    view = state.requests["view"][request]
    control["view"][0] = view
    control["pool"][0] = pool
    control["first"][0] = state.pools["first"][pool]
    control["last"][0] = state.pools["last"][pool]
    if control["matching"][0]:
        for replica in range(control["first"][0], control["last"][0]):
            state.replicas["match"][replica] = prefix_hit_tokens(state, replica, request)
    if not control["stale"][0]:
        return
    shown = views["shown"][view]
    while (
        shown < views["taken"][view] and tick_time(state, view, shown + 1) + control["signal_delay"][0] < now
    ):
        shown += 1
    views["shown"][view] = shown
    control["seen_at"][0] = (view * kept(state) + shown % kept(state)) * len(state.replicas)
    control["signal_age"][0] = now - tick_time(state, view, shown)


@jit
def count_answer(state: State, replica: int, request: int) -> None:
    """A request has left its replica: the router that sent it there takes it off its snapshots."""
    first = state.requests["view"][request] * kept(state) * len(state.replicas) + replica
    for number in range(kept(state)):
        row = first + number * len(state.replicas)
        state.seen["outstanding"][row] -= 1
        state.seen["expected_decode"][row] -= state.requests["expected_decode"][request]


@jit
def count_own(state: State, replica: int, request: int) -> None:
    """The router that was asked adds a dispatched request to its snapshots, those on their way included."""
    seen, requests = state.seen, state.requests
    first = state.control["view"][0] * kept(state) * len(state.replicas) + replica
    for number in range(kept(state)):
        row = first + number * len(state.replicas)
        seen["waiting"][row] += 1
        seen["outstanding"][row] += 1
        seen["pending_prefill"][row] += requests["prefill_tokens"][request]
        seen["expected_decode"][row] += requests["expected_decode"][request]
