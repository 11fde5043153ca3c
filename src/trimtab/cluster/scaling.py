"""Autoscaling: how many replicas a group should have, who is called and who is sent away.

The recommendation is that of the Kubernetes Horizontal Pod Autoscaler, desired = ceil(replicas * metric /
target) with a tolerance; the highest of the latest ones bounds scaling down. The rules and their sources are
in ``docs/background/autoscaling.md``; ``tests/oracle/scaling.py`` says them in plain Python.
"""

from __future__ import annotations

import math

from trimtab.cluster.entrance import give_up, refresh
from trimtab.engine.dtypes import Event, Power, ScaleBy, Status
from trimtab.engine.heap import drop_all, push
from trimtab.engine.jit import jit
from trimtab.engine.prefix import forget_prefixes
from trimtab.engine.record import touch
from trimtab.engine.state import State

PROVISIONED, SCALE = int(Event.PROVISIONED), int(Event.SCALE)
ON, LEAVING = int(Power.ON), int(Power.LEAVING)
PROVISIONING, OFF = int(Power.PROVISIONING), int(Power.OFF)
QUEUE, OUTSTANDING, SLO = int(ScaleBy.QUEUE), int(ScaleBy.OUTSTANDING), int(ScaleBy.SLO)
REJECTED, FAILED, ABORTED = int(Status.REJECTED), int(Status.FAILED), int(Status.ABORTED)
TOLERANCE = 0.1  # of the ratio of metric and target: within it nothing changes
FASTEST = 2.0  # by SLO a group at most doubles at one evaluation


@jit
def evaluate(state: State, scaler: int, now: float) -> None:
    """Compare the group with its target, act, and look again after the interval."""
    scalers = state.scalers
    let_leave(state)
    present = num_present(state, scaler)
    advised = recommend(state, scaler, present, now)
    keep = scalers["keep"][scaler]
    count = scalers["evaluations"][scaler]
    state.advice[scaler, count % keep] = advised
    highest = advised
    for index in range(keep):
        highest = max(highest, state.advice[scaler, index])
    called = 0
    if advised > present:
        called = call(state, scaler, advised - present, now)
    elif highest < present:
        send_away(state, scaler, present - highest, now)
    scalers["evaluations"][scaler] = count + 1
    following = scalers["since"][scaler] + (count + 2) * scalers["interval"][scaler]
    push(state, following, SCALE, scaler)
    end_hopeless_wait(state, scaler, called)


@jit
def is_active(state: State, replica: int) -> bool:
    """On, and as far as anybody knows it serves."""
    replicas = state.replicas
    works = replicas["seen_up"][replica] == 1 and replicas["draining"][replica] == 0
    return works and replicas["power"][replica] == ON


@jit
def num_present(state: State, scaler: int) -> int:
    """Replicas of the group that are active or on their way."""
    count = 0
    for replica in range(state.scalers["first"][scaler], state.scalers["last"][scaler]):
        if is_active(state, replica) or state.replicas["power"][replica] == PROVISIONING:
            count += 1
    return count


@jit
def recommend(state: State, scaler: int, present: int, now: float) -> int:
    """Replicas that the group should have, between its least and most."""
    scalers = state.scalers
    first, last = scalers["first"][scaler], scalers["last"][scaler]
    held = 0
    for pool in range(len(state.pools)):
        if state.pools["first"][pool] <= first < state.pools["last"][pool]:
            held += state.pools["held"][pool]
    if scalers["metric"][scaler] == SLO:
        advised = by_attainment(state, scaler, present, now)
    else:
        load = total_load(state, scaler, held)
        target = scalers["target"][scaler]
        advised = present
        if present == 0 or abs(load / (target * present) - 1.0) > TOLERANCE:
            advised = math.ceil(min(load / target, float(last - first)))
    if held > 0:  # somebody waits for a replica, whatever the metric says
        advised = max(advised, 1)
    return min(max(advised, scalers["least"][scaler]), last - first)


@jit
def total_load(state: State, scaler: int, held: int) -> float:
    """The metric summed over the active replicas; held requests are those of a replica to come."""
    replicas = state.replicas
    metric = state.scalers["metric"][scaler]
    load = 0.0
    if metric in (QUEUE, OUTSTANDING):
        load += held
    for replica in range(state.scalers["first"][scaler], state.scalers["last"][scaler]):
        if not is_active(state, replica):
            continue
        if metric == QUEUE:
            load += replicas["waiting"][replica]
        elif metric == OUTSTANDING:
            load += replicas["outstanding"][replica]
        else:
            load += replicas["kv_used"][replica] / replicas["kv_total"][replica]
    return load


@jit
def by_attainment(state: State, scaler: int, present: int, now: float) -> int:
    """The same formula on the share of late first tokens, against the share that may be late.

    No first token is late where there is slack, however much of it: down goes one replica at a time.
    """
    scalers = state.scalers
    late = late_share(state, scaler, now)
    ratio = late / (1.0 - scalers["target"][scaler])
    if abs(ratio - 1.0) <= TOLERANCE:
        return present
    if ratio < 1.0:
        return present - 1
    active = 0
    for replica in range(scalers["first"][scaler], scalers["last"][scaler]):
        if is_active(state, replica):
            active += 1
    return max(present, math.ceil(active * min(ratio, FASTEST)))


@jit
def late_share(state: State, scaler: int, now: float) -> float:
    """Of the group's first tokens in the window, the share that came too late; none is 0."""
    scalers, requests, control = state.scalers, state.requests, state.control
    since = now - scalers["window"][scaler]
    oldest = scalers["oldest"][scaler]
    arrived = control["next_arrival"][0]
    while oldest < arrived and is_past(state, oldest, since):
        oldest += 1
    scalers["oldest"][scaler] = oldest
    came, late = 0, 0
    for request in range(oldest, len(requests)):
        if arrived <= request < control["num_timed"][0]:
            continue
        first_token = requests["first_token"][request]
        replica = requests["replica"][request]
        if not first_token > since or not scalers["first"][scaler] <= replica < scalers["last"][scaler]:
            continue
        came += 1
        if first_token - requests["arrival"][request] > state.classes["bound"][requests["klass"][request]]:
            late += 1
    if came == 0:
        return 0.0
    return late / came


@jit
def is_past(state: State, request: int, since: float) -> bool:
    """Its first token came before, or never will."""
    first_token = state.requests["first_token"][request]
    if math.isnan(first_token):
        return state.requests["status"][request] in (REJECTED, FAILED, ABORTED)
    return first_token <= since


@jit
def call(state: State, scaler: int, count: int, now: float) -> int:
    """Take back who is leaving, then order. Returns how many could be called."""
    replicas = state.replicas
    first, last = state.scalers["first"][scaler], state.scalers["last"][scaler]
    called = 0
    for replica in range(first, last):
        if called < count and replicas["power"][replica] == LEAVING:
            called += 1
            replicas["ordered"][replica] += 1
            change_power(state, replica, ON, now)
            refresh(state, replica, now)
    for replica in range(first, last):
        if called < count and replicas["power"][replica] == OFF:
            called += 1
            replicas["ordered"][replica] += 1
            change_power(state, replica, PROVISIONING, now)
            replicas["on_since"][replica] = now
            push(state, now + state.scalers["provision"][scaler], PROVISIONED, replica)
    return called


@jit
def send_away(state: State, scaler: int, count: int, now: float) -> None:
    """Cancel orders, then drain active replicas; the newest first."""
    replicas = state.replicas
    first, last = state.scalers["first"][scaler], state.scalers["last"][scaler]
    for back in range(last - first):
        replica = last - 1 - back
        if count > 0 and replicas["power"][replica] == PROVISIONING:
            count -= 1
            replicas["released"][replica] += 1
            drop_all(state, PROVISIONED, replica)
            touch(state, replica, now)
            switch_off(state, replica, now)
    for back in range(last - first):
        replica = last - 1 - back
        if count > 0 and is_active(state, replica):
            count -= 1
            replicas["released"][replica] += 1
            change_power(state, replica, LEAVING, now)
            refresh(state, replica, now)
    let_leave(state)


@jit
def put_in_service(state: State, replica: int, now: float) -> None:
    """What was ordered is there: empty, and healthy."""
    change_power(state, replica, ON, now)
    refresh(state, replica, now)


@jit
def in_service(state: State, replica: int) -> bool:
    """Whether there is a replica that could crash: on, or leaving with work left."""
    power = state.replicas["power"][replica]
    return power == ON or (power == LEAVING and state.replicas["outstanding"][replica] > 0)


@jit
def let_leave(state: State) -> None:
    """Who was leaving and has finished went off with its last request, which was its last change."""
    replicas = state.replicas
    for replica in range(len(replicas)):
        if replicas["power"][replica] == LEAVING and replicas["outstanding"][replica] == 0:
            switch_off(state, replica, replicas["last_change"][replica])


@jit
def switch_off(state: State, replica: int, at: float) -> None:
    """Nothing is paid from now on; what comes back one day is another machine, empty and healthy."""
    replicas = state.replicas
    replicas["on"][replica] += at - replicas["on_since"][replica]
    if not replicas["up"][replica]:
        replicas["down"][replica] += at - replicas["down_since"][replica]
    replicas["up"][replica] = 1
    replicas["seen_up"][replica] = 1
    replicas["failures"][replica] = 0
    forget_prefixes(state, replica)
    note_power(state, replica, OFF, at)


@jit
def change_power(state: State, replica: int, power: int, now: float) -> None:
    touch(state, replica, now)
    note_power(state, replica, power, now)


@jit
def note_power(state: State, replica: int, power: int, at: float) -> None:
    """Set it, and write it down while there is room; the count goes on."""
    state.replicas["power"][replica] = power
    row = state.control["scalings"][0]
    state.control["scalings"][0] = row + 1
    if row < len(state.scalings):
        state.scalings["time"][row] = at
        state.scalings["replica"][row] = replica
        state.scalings["power"][row] = power


@jit
def end_hopeless_wait(state: State, scaler: int, called: int) -> None:
    """Once only evaluations lie ahead and none of them calls anybody, held requests wait in vain."""
    scalers = state.scalers
    if called > 0 or not only_evaluations(state):
        for index in range(len(scalers)):
            scalers["idle"][index] = 0
        return
    scalers["idle"][scaler] = 1
    for index in range(len(scalers)):
        if not scalers["idle"][index]:
            return
    if not give_up(state):
        state.control["heap_size"][0] = 0  # nobody waits, yet not all is done: the caller reports it


@jit
def only_evaluations(state: State) -> bool:
    """No arrival, no batch, no fault: nothing but autoscaling is to come."""
    control = state.control
    if control["next_arrival"][0] < control["num_timed"][0]:
        return False
    cell = 0
    while cell < control["heap_size"][0] and state.events["kind"][cell] == SCALE:
        cell += 1
    return cell == control["heap_size"][0]
