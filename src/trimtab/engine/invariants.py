"""What must hold after every event. Swept when ``TRIMTAB_DEBUG=1``; plain Python, never compiled."""

from __future__ import annotations

import numpy as np

from trimtab.engine.dtypes import NEVER, NONE, Power, Scheduler, Status
from trimtab.engine.lanes import held_blocks
from trimtab.engine.state import State

AT_A_REPLICA = (Status.WAITING, Status.RECEIVED, Status.RUNNING)
ENDS = {
    "finished": Status.FINISHED,
    "failed": Status.FAILED,
    "aborted": Status.ABORTED,
    "rejected": Status.REJECTED,
}


def check(state: State) -> None:
    """Blocks conserved, sums right, each request in exactly one place, clocks monotone."""
    lanes_per_replica = len(state.lanes) // len(state.replicas)
    for replica in range(len(state.replicas)):
        lanes = range(replica * lanes_per_replica, (replica + 1) * lanes_per_replica)
        check_queue(state, replica)
        for lane in lanes:
            check_lane(state, lane, int(state.replicas["group"][replica]))
        check_blocks(state, replica, lanes)
    if state.control["ranked"][0]:
        check_ranks(state)
    check_requests(state)


def check_queue(state: State, replica: int) -> None:
    waiting = 0
    for queue, status in (("queue", Status.WAITING), ("received", Status.RECEIVED)):
        request = int(state.replicas[f"{queue}_head"][replica])
        seen: list[int] = []
        while request != NONE:
            assert state.requests["status"][request] == status
            assert state.requests["replica"][request] == replica
            seen.append(request)
            request = int(state.requests["next_waiting"][request])
        assert len(seen) == len(set(seen))
        assert state.replicas[f"{queue}_tail"][replica] == (seen[-1] if seen else NONE)
        waiting += len(seen)
    assert waiting == state.replicas["waiting"][replica]


def check_lane(state: State, lane: int, group: int) -> None:
    """The lane's sums against its slots."""
    row = state.lanes[lane]
    slots = state.slots[lane][: row["count"]]
    decoding = slots["finish"] != NEVER
    processed = row["epoch"] + slots["offset"][decoding]
    assert row["decodes"] == decoding.sum()
    assert row["prefilling"] == (~decoding).sum()
    assert row["kv_sum"] == processed.sum()
    assert row["fresh"] == (slots["fresh"][decoding] != 0).sum()
    assert row["decodes"] == 0 or row["next_finish"] <= slots["finish"][decoding].min()
    block = int(state.groups["block_size"][group])
    counts = np.bincount((1 - slots["offset"][decoding]) % block, minlength=block)
    assert (state.phases[lane][:block] == counts).all()
    assert np.isin(state.requests["status"][slots["request"]], (Status.RUNNING, Status.ABORTING)).all()


def check_blocks(state: State, replica: int, lanes: range) -> None:
    """KV in use lies between what requests hold and the cache; empty replicas hold none."""
    row = state.replicas[replica]
    at_home = state.requests["replica"] == replica
    running = sum(int(state.lanes["count"][lane]) for lane in lanes)
    sent = blocks_sent(state, replica)
    coming = (state.requests["bound_for"] == replica).sum()
    assert row["running"] == running
    assert row["coming"] == coming
    assert row["outstanding"] == row["waiting"] + row["running"] + coming
    assert (
        row["up"] or row["outstanding"] == row["in_flight"] == row["kv_used"] == row["pending_prefill"] == 0
    )
    assert row["aborting"] == (at_home & (state.requests["status"] == Status.ABORTING)).sum()
    here = np.isin(state.requests["status"], AT_A_REPLICA)
    here |= (state.requests["status"] == Status.ABORTING) & (state.requests["bound_for"] == NONE)
    assert row["outstanding"] == (at_home & here).sum() + coming
    on = row["power"] == Power.ON
    assert row["accepting"] == (on and row["seen_up"] and not row["draining"] and not row["open"])
    assert row["power"] in (Power.ON, Power.LEAVING) or row["outstanding"] == 0
    assert 0 <= row["kv_used"] <= row["kv_total"]
    if state.groups["prefix_caching"][row["group"]]:
        check_cache(state, replica, lanes, sent)
        return
    static = state.groups["scheduler"][row["group"]] == Scheduler.FASTER_TRANSFORMER
    reserve = int(state.groups["reserve"][row["group"]])
    if reserve:
        held = sum(int(state.lanes["held"][lane]) for lane in lanes)
        assert row["kv_used"] == reserve * running + (held if static else 0)
    elif running == 0:
        assert row["kv_used"] == sent


def check_ranks(state: State) -> None:
    """Every leaf is its replica's load, every other cell the least of its two children."""
    ranks, leaves = state.ranks, len(state.ranks) // 2
    loads = state.replicas["outstanding"] + 1.0
    if state.control["speed_aware"][0]:
        loads /= state.replicas["speed"]
    assert (ranks[leaves : leaves + len(loads)] == loads).all()
    assert np.isinf(ranks[leaves + len(loads) :]).all()
    assert (ranks[1:leaves] == np.minimum(ranks[2::2], ranks[3::2])).all()


def blocks_sent(state: State, replica: int) -> int:
    """Private blocks that the replica holds for requests that decode elsewhere."""
    requests = state.requests
    block = int(state.groups["block_size"][state.replicas["group"][replica]])
    held = (requests["status"] == Status.SENDING) | (requests["bound_for"] != NONE)
    held &= requests["replica"] == replica
    return int((-(-requests["target"] // block) - requests["shared"])[held].sum())


def check_cache(state: State, replica: int, lanes: range, private: int) -> None:
    """Pinned and private blocks are used, unpinned ones cached and in order of eviction, once.

    ``private`` blocks are held for requests that decode elsewhere.
    """
    row, cache = state.replicas[replica], state.cache[replica]
    pinned = cache["pins"] > 0
    assert row["kv_cached"] == cache["blocks"][~pinned].sum()
    assert row["kv_blank"] == row["blank_newest"] + cache["blank"].sum()
    # More where blocks went to a request that was preempted before its batch was launched.
    assert row["kv_used"] + row["kv_cached"] + row["kv_blank"] >= row["kv_total"]
    group = int(row["group"])
    for lane in lanes:
        for slot in range(int(state.lanes["count"][lane])):
            request = state.slots["request"][lane, slot]
            private += held_blocks(state, group, lane, slot) - state.requests["shared"][request]
    if row["in_flight"] == 0:
        assert row["kv_used"] == private + cache["blocks"][pinned].sum()
    node, seen = int(row["lru_oldest"]), []
    while node != NONE:
        seen.append(node)
        node = int(cache["newer"][node])
    assert sorted(seen) == np.flatnonzero(~pinned & (cache["blocks"] > 0)).tolist()


def check_requests(state: State) -> None:
    """Every request is somewhere, once; times are in order."""
    requests = state.requests
    done = requests["status"] == Status.FINISHED
    for name, status in ENDS.items():
        assert (requests["status"] == status).sum() == state.control[name][0]
    for index, pool in enumerate(state.pools):
        held = (requests["status"] == Status.HELD) & (requests["pool"] == index)
        with_kv = (requests["status"] == Status.SENDING) & (requests["bound_for"] == NONE)
        held |= with_kv & (state.pools["decode"][requests["pool"]] == index)
        assert held.sum() == pool["held"]
        assert state.replicas["accepting"][pool["first"] : pool["last"]].sum() == pool["accepting"]
    assert (requests["first_token"][done] <= requests["finished"][done]).all()
    assert (requests["scheduled"][done] <= requests["first_token"][done]).all()
    assert (requests["arrival"][done] <= requests["scheduled"][done]).all()
    assert requests["finished"][done].max(initial=0.0) <= state.control["now"][0]
