"""What befalls replicas and requests: crash, recovery, stragglers, drain, retries, clients that give up.

The rules are in ``docs/background/faults.md``; ``tests/oracle/faults.py`` says them in plain Python.
"""

from __future__ import annotations

import math

from trimtab.cluster.entrance import close, refresh, waits_with_kv
from trimtab.cluster.scaling import evaluate, in_service, put_in_service, switch_off
from trimtab.cluster.transfer import drop_received, free_kv, go_on, uncount_coming
from trimtab.engine.batches import release_static, ring_size
from trimtab.engine.dtypes import NEVER, NONE, Event, Fault, Power, Scheduler, Status
from trimtab.engine.heap import drop_all, push
from trimtab.engine.jit import jit
from trimtab.engine.lanes import close_slot, forget_decode, lanes_per_replica, release, wake_next_turn
from trimtab.engine.prefix import forget_prefixes
from trimtab.engine.queue import unlink
from trimtab.engine.record import touch
from trimtab.engine.signals import count_answer
from trimtab.engine.state import State

BATCH_END, FAULT, BREAKER = int(Event.BATCH_END), int(Event.FAULT), int(Event.BREAKER)
ARRIVAL, FIRST_TOKEN_TIMEOUT = int(Event.ARRIVAL), int(Event.FIRST_TOKEN_TIMEOUT)
CRASH, RECOVER, SLOW = int(Fault.CRASH), int(Fault.RECOVER), int(Fault.SLOW)
DRAIN, UNDRAIN = int(Fault.DRAIN), int(Fault.UNDRAIN)
WAITING, RUNNING, ABORTING = int(Status.WAITING), int(Status.RUNNING), int(Status.ABORTING)
FAILED, ABORTED = int(Status.FAILED), int(Status.ABORTED)
RETRYING, HELD = int(Status.RETRYING), int(Status.HELD)
HANDOVER, SENDING, RECEIVED = int(Event.HANDOVER), int(Status.SENDING), int(Status.RECEIVED)
STATIC = int(Scheduler.FASTER_TRANSFORMER)
LEAVING = int(Power.LEAVING)
PROVISIONED, SCALE = int(Event.PROVISIONED), int(Event.SCALE)
GOLDEN = 0.618033988749895  # a retry moves the request's coin on by this


@jit
def befall(state: State, kind: int, who: int, now: float) -> int:
    """An event from outside: the next fault of the list, a breaker (``who``: its replica) that closes, a
    scaler that looks, a replica that it ordered, or a client (``who``: its request) that gives up.

    Returns the replica that may now form a batch, or NONE.
    """
    if kind == FAULT:
        strike(state, who, now)
        return NONE
    if kind == BREAKER:
        state.replicas["open"][who] = 0
        refresh(state, who, now)
        return NONE
    if kind == PROVISIONED:
        put_in_service(state, who, now)
        return NONE
    if kind == SCALE:
        evaluate(state, who, now)
        return NONE
    return abort(state, who, kind == FIRST_TOKEN_TIMEOUT, now)


@jit
def strike(state: State, who: int, now: float) -> None:
    """Fault number ``who`` of the list happens, and the next one is due."""
    faults, replicas = state.faults, state.replicas
    what, replica = faults["kind"][who], faults["replica"][who]
    if who + 1 < len(faults):
        push(state, faults["at"][who + 1], FAULT, who + 1)
    if what == CRASH:
        crash(state, replica, now)
    elif what == RECOVER:
        recover(state, replica, now)
    elif what == SLOW:
        replicas["slow"][replica] = faults["factor"][who]
    else:
        if what == DRAIN:
            replicas["draining"][replica] = 1
        elif what == UNDRAIN:
            replicas["draining"][replica] = 0
        else:
            replicas["seen_up"][replica] = replicas["up"][replica]
        refresh(state, replica, now)


@jit
def crash(state: State, replica: int, now: float) -> None:
    """All that the replica held and computed is lost; each of its requests has failed an attempt."""
    replicas = state.replicas
    if not replicas["up"][replica] or not in_service(state, replica):
        return
    touch(state, replica, now)
    replicas["up"][replica] = 0
    replicas["down_since"][replica] = now
    replicas["crashes"][replica] += 1
    if state.control["health_delay"][0] == 0.0:
        replicas["seen_up"][replica] = 0
        refresh(state, replica, now)
    drop_batches(state, replica, now)
    if replicas["hands_over"][replica]:
        cut_transfers(state, replica, now)
        empty_queue(state, replica, replicas["received_head"][replica], now)
        replicas["received_head"][replica] = NONE
        replicas["received_tail"][replica] = NONE
    forget_prefixes(state, replica)
    for lane in range(replica * lanes_per_replica(state), (replica + 1) * lanes_per_replica(state)):
        empty_lane(state, replica, lane, now)
    empty_queue(state, replica, replicas["queue_head"][replica], now)
    replicas["queue_head"][replica] = NONE
    replicas["queue_tail"][replica] = NONE
    replicas["waiting"][replica] = 0
    replicas["running"][replica] = 0
    replicas["outstanding"][replica] = 0
    replicas["pending_prefill"][replica] = 0
    replicas["expected_decode"][replica] = 0.0
    replicas["kv_used"][replica] = 0
    replicas["waiting_iters"][replica] = 0
    replicas["aborting"][replica] = 0
    if replicas["power"][replica] == LEAVING:
        switch_off(state, replica, now)


@jit
def drop_batches(state: State, replica: int, now: float) -> None:
    """Batches in flight never land. Time that they were yet to take is taken out of ``busy``."""
    batches, replicas = state.batches, state.replicas
    drop_all(state, BATCH_END, replica)
    ring = ring_size(state)
    for index in range(replicas["in_flight"][replica]):
        batch = replica * ring + (replicas["batch_head"][replica] + index) % ring
        start, end = batches["start"][batch], batches["end"][batch]
        if end > now and end > start:  # in proportion where the batch is spread over a pipeline
            replicas["busy"][replica] -= batches["spent"][batch] * min(1.0, (end - now) / (end - start))
        row = batches["row"][batch]
        if row != NONE:
            state.iterations["start"][row] = min(start, now)
            state.iterations["end"][row] = now
    for cell in range(ring):
        batches["stage_free"][replica * ring + cell] = 0.0
    replicas["in_flight"][replica] = 0
    replicas["batch_head"][replica] = 0


@jit
def empty_queue(state: State, replica: int, request: int, now: float) -> None:
    """Each request of a queue, from ``request`` on, has failed an attempt."""
    while request != NONE:
        following = state.requests["next_waiting"][request]
        if state.control["count_answers"][0]:
            count_answer(state, replica, request)
        attempt_failed(state, replica, request, now)
        request = following


@jit
def cut_transfers(state: State, replica: int, now: float) -> None:
    """KV that the crashed replica was to send is lost, and KV on its way there comes to nothing."""
    requests, replicas = state.requests, state.replicas
    replicas["send_free"][replica] = now
    replicas["receive_free"][replica] = now
    for request in range(len(requests)):
        sender, receiver = requests["replica"][request], requests["bound_for"][request]
        if waits_with_kv(state, request):
            if sender != replica:
                continue
            state.pools["held"][state.pools["decode"][requests["pool"][request]]] -= 1
        elif receiver != NONE and (sender == replica or receiver == replica):
            drop_all(state, HANDOVER, request)
            uncount_coming(state, receiver, request)
        else:
            continue
        if sender != replica:
            free_kv(state, sender, request, now)
        if requests["status"][request] == ABORTING:
            replicas["aborting"][sender] -= 1
            requests["status"][request] = ABORTED
            state.control["aborted"][0] += 1
        else:
            requests["replica"][request] = replica
            attempt_failed(state, replica, request, now)
        if sender != replica:
            go_on(state, sender, now)


@jit
def empty_lane(state: State, replica: int, lane: int, now: float) -> None:
    lanes, slots = state.lanes, state.slots
    for slot in range(lanes["count"][lane]):
        request = slots["request"][lane, slot]
        if slots["finish"][lane, slot] != NEVER:
            forget_decode(state, lane, slot)
        if state.control["count_answers"][0]:
            count_answer(state, replica, request)
        if state.requests["status"][request] == ABORTING:
            state.requests["status"][request] = ABORTED
            state.control["aborted"][0] += 1
        else:
            attempt_failed(state, replica, request, now)
    lanes["count"][lane] = 0
    lanes["prefilling"][lane] = 0
    lanes["held"][lane] = 0


@jit
def attempt_failed(state: State, replica: int, request: int, now: float) -> None:
    """Try again after a pause that doubles each time, from the prompt on; or fail."""
    requests, replicas, control = state.requests, state.replicas, state.control
    requests["target"][request] = requests["prefill_tokens"][request]
    requests["processed"][request] = 0
    requests["shared"][request] = 0
    requests["next_waiting"][request] = NONE
    requests["prefill_replica"][request] = NONE
    requests["transfer"][request] = 0.0
    replicas["failures"][replica] += 1
    most = control["breaker_failures"][0]
    if most > 0 and replicas["failures"][replica] >= most and not replicas["open"][replica]:
        replicas["open"][replica] = 1
        push(state, now + control["breaker_open"][0], BREAKER, replica)
        refresh(state, replica, now)
    tried = requests["retries"][request]
    if tried >= control["max_retries"][0]:
        close(state, request, FAILED, now)
        return
    requests["retries"][request] = tried + 1
    requests["status"][request] = RETRYING
    coin = requests["coin_a"][request] + GOLDEN
    requests["coin_a"][request] = coin - 1.0 if coin >= 1.0 else coin
    pause = control["backoff"][0]
    for _ in range(tried):
        pause *= 2.0
    push(state, now + pause, ARRIVAL, request)


@jit
def recover(state: State, replica: int, now: float) -> None:
    """The replica is back, empty."""
    replicas = state.replicas
    if replicas["up"][replica]:
        return
    replicas["up"][replica] = 1
    replicas["down"][replica] += now - replicas["down_since"][replica]
    if state.control["health_delay"][0] == 0.0:
        replicas["seen_up"][replica] = 1
        refresh(state, replica, now)


@jit
def abort(state: State, request: int, for_first_token: bool, now: float) -> int:
    """The client gives up. Returns the replica that now has room for others, or NONE.

    What is being computed or sent leaves when its batch or transfer ends, everything else at once.
    """
    requests = state.requests
    status, replica = requests["status"][request], requests["replica"][request]
    if for_first_token and not math.isnan(requests["first_token"][request]):
        return NONE
    if status in (HELD, RETRYING):
        if status == HELD:
            state.pools["held"][requests["pool"][request]] -= 1
        close(state, request, ABORTED, now)
        return NONE
    if status == SENDING:
        return abort_sending(state, request, replica, now)
    if status != WAITING and status != RUNNING and status != RECEIVED:
        return NONE
    touch(state, replica, now)
    if status != RUNNING:
        if status == WAITING:
            unlink(state, replica, request)
        else:
            drop_received(state, replica, request)
        let_go(state, replica, request)
        close(state, request, ABORTED, now)
        return replica
    requests["status"][request] = ABORTING
    state.replicas["aborting"][replica] += 1
    wake_next_turn(state, request, now)
    for lane in range(replica * lanes_per_replica(state), (replica + 1) * lanes_per_replica(state)):
        leave_lane(state, replica, lane)
    return replica


@jit
def abort_sending(state: State, request: int, sender: int, now: float) -> int:
    if waits_with_kv(state, request):
        state.pools["held"][state.pools["decode"][state.requests["pool"][request]]] -= 1
        free_kv(state, sender, request, now)
        close(state, request, ABORTED, now)
        return sender
    state.requests["status"][request] = ABORTING
    state.replicas["aborting"][sender] += 1
    wake_next_turn(state, request, now)
    return NONE


@jit
def let_go(state: State, replica: int, request: int) -> None:
    """Take a request that is not done out of the replica's loads."""
    replicas, requests = state.replicas, state.requests
    if state.control["count_answers"][0]:
        count_answer(state, replica, request)
    replicas["outstanding"][replica] -= 1
    left = requests["target"][request] - requests["processed"][request]
    replicas["pending_prefill"][replica] -= left
    replicas["expected_decode"][replica] -= requests["expected_decode"][request]


@jit
def leave_aborting(state: State, replica: int) -> None:
    """After a batch end: the given-up requests that no other batch computes leave."""
    for lane in range(replica * lanes_per_replica(state), (replica + 1) * lanes_per_replica(state)):
        leave_lane(state, replica, lane)


@jit
def leave_lane(state: State, replica: int, lane: int) -> None:
    group = state.replicas["group"][replica]
    slot = 0
    left = 0
    while slot < state.lanes["count"][lane]:
        request = state.slots["request"][lane, slot]
        if state.requests["status"][request] != ABORTING or computing(state, replica, lane, slot):
            slot += 1
            continue
        left += 1
        let_go(state, replica, request)
        state.replicas["running"][replica] -= 1
        state.replicas["aborting"][replica] -= 1
        if state.groups["scheduler"][group] == STATIC:
            state.lanes["held"][lane] += state.groups["reserve"][group]
        else:
            release(state, replica, lane, slot)
        close_slot(state, lane, slot)
        state.requests["status"][request] = ABORTED
        state.control["aborted"][0] += 1
    if left > 0 and state.groups["scheduler"][group] == STATIC:
        release_static(state, replica, lane)


@jit
def computing(state: State, replica: int, lane: int, slot: int) -> bool:
    """Whether a batch in flight computes tokens of the request in this slot."""
    batches, replicas = state.batches, state.replicas
    ring = ring_size(state)
    decoding = state.slots["finish"][lane, slot] != NEVER
    for index in range(replicas["in_flight"][replica]):
        batch = replica * ring + (replicas["batch_head"][replica] + index) % ring
        if batches["lane"][batch] != lane:
            continue
        if decoding:
            if batches["decodes"][batch] > 0:
                return True
            continue
        for chunk in range(batches["prefills"][batch]):
            if state.chunks["request"][batch, chunk] == state.slots["request"][lane, slot]:
                return True
    return False
