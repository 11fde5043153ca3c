"""The event loop: arrivals and batch ends in order of time, over all replicas.

Simultaneous events: batch ends first (lower replica first), then KV that has come to who decodes (lower
request first), faults (in the order of their list), breakers that close, clients that give up, autoscaling,
replicas that it ordered, arrivals and retries (lower request first), then replicas form their batches (lower
first), then load samples and routers' snapshots are taken.
``tests/cluster/test_event_order.py`` pins this.
"""

from __future__ import annotations

from trimtab.engine.batches import begin, land, launch
from trimtab.engine.dtypes import NONE, Event, Outcome, Scheduler
from trimtab.engine.heap import drop_first, push
from trimtab.engine.invariants import check
from trimtab.engine.jit import DEBUG, door, jit
from trimtab.engine.queue import enqueue
from trimtab.engine.ranking import rank
from trimtab.engine.record import sample_until, touch
from trimtab.engine.signals import count_own, look, refresh_until
from trimtab.engine.state import State
from trimtab.routers import FIRST_PUBLISHED, Router
from trimtab.routers.choose import choose
from trimtab.schedulers.lightllm import form_lightllm
from trimtab.schedulers.request_level import form_faster_transformer, form_orca
from trimtab.schedulers.sarathi import form_sarathi
from trimtab.schedulers.vllm import form_vllm
from trimtab.schedulers.vllm_v1 import form_vllm_v1

BATCH_END, ARRIVAL, FORM = int(Event.BATCH_END), int(Event.ARRIVAL), int(Event.FORM)
DONE, PAUSED, ASKING = int(Outcome.DONE), int(Outcome.PAUSED), int(Outcome.ASKING)
HAPPENING = int(Outcome.HAPPENING)
OUTSIDE, PUBLISHED = int(Router.OUTSIDE), int(FIRST_PUBLISHED)
VLLM, SARATHI = int(Scheduler.VLLM), int(Scheduler.SARATHI)
ORCA, LIGHTLLM = int(Scheduler.ORCA), int(Scheduler.LIGHTLLM)
FASTER_TRANSFORMER = int(Scheduler.FASTER_TRANSFORMER)


@jit
def form(state: State, replica: int, batch: int, now: float) -> None:
    """Let the replica's scheduler fill the batch."""
    kind = state.groups["scheduler"][state.replicas["group"][replica]]
    if kind == VLLM:
        form_vllm(state, replica, batch, now)
    elif kind == SARATHI:
        form_sarathi(state, replica, batch, now)
    elif kind == ORCA:
        form_orca(state, replica, batch, now)
    elif kind == FASTER_TRANSFORMER:
        form_faster_transformer(state, replica, batch, now)
    elif kind == LIGHTLLM:
        form_lightllm(state, replica, batch, now)
    else:
        form_vllm_v1(state, replica, batch, now)


@jit
def schedule(state: State, replica: int, now: float) -> None:
    """Form and launch batches while the pipeline has room for one."""
    stages = state.groups["stages"][state.replicas["group"][replica]]
    while state.replicas["in_flight"][replica] < stages:
        batch = begin(state, replica)
        form(state, replica, batch, now)
        if state.batches["prefills"][batch] + state.batches["decodes"][batch] == 0:
            return
        launch(state, replica, batch, now)


@jit
def settle(state: State, replica: int, now: float) -> None:
    """Form batches now, or after what else happens at this very instant."""
    control = state.control
    following = control["next_arrival"][0]
    more = control["heap_size"][0] > 0 and state.events["time"][0] == now
    if following < control["num_timed"][0] and state.requests["arrival"][following] == now:
        more = True
    if not more:
        schedule(state, replica, now)
    elif not state.replicas["forming"][replica]:
        state.replicas["forming"][replica] = 1
        push(state, now, FORM, replica)


@jit
def place(state: State, request: int, replica: int, now: float) -> None:
    """A routed request enters its replica's queue."""
    replicas, requests = state.replicas, state.requests
    if replica < 0 or replica >= len(replicas):
        raise IndexError("router chose a replica that does not exist")
    touch(state, replica, now)
    requests["replica"][request] = replica
    replicas["routed"][replica] += 1
    replicas["outstanding"][replica] += 1
    replicas["pending_prefill"][replica] += requests["prefill_tokens"][request]
    replicas["expected_decode"][replica] += requests["expected_decode"][request]
    if state.control["ranked"][0]:
        rank(state, replica)
    if state.control["count_own"][0]:
        count_own(state, replica, request)
    enqueue(state, replica, request)
    settle(state, replica, now)


@door
def answer(state: State, replica: int) -> None:
    """Place the request that an outside router was asked about."""
    request = state.control["asking"][0]
    state.control["asking"][0] = NONE
    place(state, request, replica, state.control["now"][0])


@jit
def happening(state: State, kind: int, about: int) -> int:
    """Leave something to the caller of the loop."""
    state.control["happening"][0] = kind
    state.control["about"][0] = about
    return HAPPENING


@jit
def all_closed(state: State) -> bool:
    """Served + failed + aborted + rejected = all."""
    control = state.control
    closed = control["finished"][0] + control["failed"][0] + control["aborted"][0] + control["rejected"][0]
    return closed == len(state.requests)


@door
def advance(state: State, until: float) -> int:
    """Run until nothing is left, the next event lies beyond ``until``, a router is asked for, or
    something happens that is ``cluster.whole``'s to see to.

    Returns an ``Outcome``.
    """
    control, requests, events = state.control, state.requests, state.events
    while True:
        if DEBUG:
            check(state)
        following = control["next_arrival"][0]
        timed = following < control["num_timed"][0]
        pending = control["heap_size"][0] > 0
        if not timed and not pending:
            return DONE
        arrives = timed
        if timed and pending:
            arrival = requests["arrival"][following]
            if events["time"][0] < arrival:
                arrives = False
            elif events["time"][0] == arrival and events["kind"][0] <= ARRIVAL:
                arrives = events["kind"][0] == ARRIVAL and events["who"][0] > following
        if not arrives and BATCH_END < events["kind"][0] < ARRIVAL and all_closed(state):
            return DONE  # what comes from outside moves nothing once every request is done with
        now = requests["arrival"][following] if arrives else events["time"][0]
        if now > until:
            return PAUSED
        if control["next_sample"][0] < now:
            sample_until(state, now)
        if control["next_signal"][0] < now:
            refresh_until(state, now)
        control["now"][0] = now
        if not arrives and events["kind"][0] != ARRIVAL:
            kind, replica = events["kind"][0], events["who"][0]
            drop_first(state)
            if kind == FORM:
                state.replicas["forming"][replica] = 0
                schedule(state, replica, now)
                continue
            if kind != BATCH_END:
                return happening(state, kind, replica)
            touch(state, replica, now)
            land(state, replica, now)
            if state.replicas["aborting"][replica] > 0 or state.replicas["hands_over"][replica]:
                return happening(state, kind, replica)
            settle(state, replica, now)
            continue
        if arrives:
            control["next_arrival"][0] = following + 1
            request = following
        else:
            request = events["who"][0]
            drop_first(state)
        if control["watching"][0]:
            return happening(state, ARRIVAL, request)
        look(state, request, now)
        if control["router"][0] == OUTSIDE or control["router"][0] >= PUBLISHED:
            control["asking"][0] = request
            return ASKING
        place(state, request, choose(state, request), now)
