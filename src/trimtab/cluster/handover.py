"""Who decodes a request that has been prefilled: the second of two routing decisions.

The scenario's router sends an arrival to a replica that prefills; when its first token is out the decode
router chooses among the replicas that decode. While none of those accepts, the request waits where its KV
is. Compiled with ``cluster.whole``, so only when something unusual is asked for.
"""

from __future__ import annotations

from trimtab.cluster.entrance import reachable
from trimtab.cluster.faults import attempt_failed
from trimtab.cluster.published import choose_published
from trimtab.cluster.transfer import book, detach, free_kv, go_on, receive, transfer_seconds, uncount_coming
from trimtab.engine.batches import ring_size
from trimtab.engine.dtypes import NONE, Status
from trimtab.engine.jit import jit
from trimtab.engine.signals import look_at
from trimtab.engine.state import State
from trimtab.routers import FIRST_PUBLISHED
from trimtab.routers.choose import choose

RUNNING, SENDING = int(Status.RUNNING), int(Status.SENDING)
ABORTING, ABORTED = int(Status.ABORTING), int(Status.ABORTED)
PUBLISHED = int(FIRST_PUBLISHED)
GOLDEN = 0.618033988749895  # the second choice moves the request's coin on by this


@jit
def hand_over_prefilled(state: State, replica: int, now: float) -> None:
    """A batch has just landed: the requests whose prompts it completed go to who decodes them."""
    requests = state.requests
    ring = ring_size(state)
    batch = replica * ring + (state.replicas["batch_head"][replica] + ring - 1) % ring
    for index in range(state.batches["prefills"][batch]):
        request = state.chunks["request"][batch, index]
        complete = requests["processed"][request] == requests["target"][request]
        # A preempted request is recomputed, and goes on, where it was: it has been handed over before.
        if (
            complete
            and requests["status"][request] == RUNNING
            and requests["prefill_replica"][request] == NONE
        ):
            hand_over(state, replica, request, now)


@jit
def hand_over(state: State, sender: int, request: int, now: float) -> None:
    """It goes on where it is, goes elsewhere, or waits for somebody who can decode it."""
    requests, replicas = state.requests, state.replicas
    coin = requests["coin_a"][request] + GOLDEN
    requests["coin_a"][request] = coin - 1.0 if coin >= 1.0 else coin
    requests["prefill_replica"][request] = sender
    replicas["failures"][sender] = 0
    # It must not stand in its own way: to the decode router it is nobody's load.
    replicas["running"][sender] -= 1
    replicas["outstanding"][sender] -= 1
    replicas["expected_decode"][sender] -= requests["expected_decode"][request]
    pool = state.pools["decode"][requests["pool"][request]]
    receiver = choose_decoder(state, request, pool, now)
    if receiver == NONE and state.pools["first"][pool] <= sender < state.pools["last"][pool]:
        receiver = sender  # a draining replica finishes what it has
    if receiver == sender:
        replicas["running"][sender] += 1
        replicas["outstanding"][sender] += 1
        replicas["expected_decode"][sender] += requests["expected_decode"][request]
        return
    detach(state, sender, request, now)
    if receiver == NONE:
        state.pools["held"][pool] += 1
    else:
        send_kv(state, request, receiver, now)


@jit
def choose_decoder(state: State, request: int, pool: int, now: float) -> int:
    """The decode router's choice from the pool, or NONE where nobody accepts."""
    if state.pools["accepting"][pool] == 0:
        return NONE
    control = state.control
    look_at(state, request, pool, now)
    kind = control["router"][0]
    control["router"][0] = control["decode_router"][0]
    if control["router"][0] >= PUBLISHED:
        replica = choose_published(state, request)
    else:
        replica = choose(state, request)
    control["router"][0] = kind
    return reachable(state, replica)


@jit
def send_kv(state: State, request: int, receiver: int, now: float) -> None:
    """Book the transfer; a receiver that is down, unseen, refuses it and the attempt has failed."""
    if state.replicas["up"][receiver]:
        book(state, request, receiver, now)
        return
    free_kv(state, state.requests["replica"][request], request, now)
    state.requests["replica"][request] = receiver
    attempt_failed(state, receiver, request, now)


@jit
def go_further(state: State, request: int, now: float) -> None:
    """A HANDOVER event: the KV has come, or somebody accepts a request that waited for that."""
    requests, replicas = state.requests, state.replicas
    sender, receiver = requests["replica"][request], requests["bound_for"][request]
    if receiver == NONE:
        pool = state.pools["decode"][requests["pool"][request]]
        receiver = choose_decoder(state, request, pool, now)
        if receiver != NONE:
            state.pools["held"][pool] -= 1
            send_kv(state, request, receiver, now)
            go_on(state, sender, now)
        return
    replicas["sending"][sender] += transfer_seconds(state, sender, request)
    free_kv(state, sender, request, now)
    if requests["status"][request] == ABORTING:
        uncount_coming(state, receiver, request)
        replicas["aborting"][sender] -= 1
        requests["status"][request] = ABORTED
        state.control["aborted"][0] += 1
    else:
        receive(state, request, receiver, now)
        go_on(state, receiver, now)
    go_on(state, sender, now)
