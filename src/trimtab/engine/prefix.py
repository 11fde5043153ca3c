"""The prefix cache of a replica, as vLLM v1 keeps it, at the grain of content nodes.

A prompt is a path of nodes (see ``workload.content``); a node is a run of tokens that everybody who
passes through it shares. A block belongs to the node in which it ends. What a replica caches of a
node is always its beginning, because blocks are evicted from the tail, so one number per replica
and node says it all. Nodes on the path of a running request are pinned; the others wait in order of
their last use. Parents are used after their children when a request leaves, so that the deepest
node goes first. Pinned blocks count as used, the others as cached: evictable, hence free. Private blocks
that are given up take their place in the same order, blank, so that they push out older prefixes; that
is what happens in vLLM, where every freed block goes to the end of one queue.

Blocks can be hit from the end of the prefill that computed them. A block computed twice at the same
time stays private to the second request.
"""

from __future__ import annotations

from trimtab.engine.dtypes import NONE
from trimtab.engine.jit import jit
from trimtab.engine.state import State


@jit
def caches_prefixes(state: State, replica: int, request: int) -> bool:
    """Whether the request has content to share and the replica keeps a prefix cache."""
    group = state.replicas["group"][replica]
    return state.requests["path_len"][request] > 0 and state.groups["prefix_caching"][group] != 0


@jit
def hit_blocks(state: State, replica: int, request: int, least_pins: int) -> int:
    """Blocks of the prompt that are cached, from its start; at least one token is left to compute.

    Only those in nodes that ``least_pins`` running requests or more use are counted.
    """
    if not caches_prefixes(state, replica, request):
        return 0
    cache = state.cache
    block = state.groups["block_size"][state.replicas["group"][replica]]
    first = state.requests["path_at"][request]
    most = (state.requests["target"][request] - 1) // block
    tokens = 0
    hits = 0
    for step in range(first, first + state.requests["path_len"][request]):
        before = tokens // block
        tokens += state.path_tokens[step]
        node = state.path_node[step]
        wanted = tokens // block - before
        hit = min(wanted, cache["blocks"][replica, node], most)
        most = most - hit if hit == wanted else 0
        if cache["pins"][replica, node] >= least_pins:
            hits += hit
    return hits


@jit
def prefix_hit_tokens(state: State, replica: int, request: int) -> int:
    """Prompt tokens that the replica would not have to compute."""
    block = state.groups["block_size"][state.replicas["group"][replica]]
    return hit_blocks(state, replica, request, 0) * block


@jit
def enter(state: State, replica: int, request: int) -> None:
    """A request taken into service starts behind its hits and pins the nodes of its path.

    Of a node that nobody else uses it keeps what it hits and no more, so that all pinned blocks are in
    use: a request that fits alone can always be admitted, and go on.
    """
    if not caches_prefixes(state, replica, request):
        return
    requests, replicas, cache = state.requests, state.replicas, state.cache
    block = state.groups["block_size"][replicas["group"][replica]]
    most = (requests["target"][request] - 1) // block
    first = requests["path_at"][request]
    tokens = 0
    hits = 0
    for step in range(first, first + requests["path_len"][request]):
        before = tokens // block
        tokens += state.path_tokens[step]
        node = state.path_node[step]
        wanted = tokens // block - before
        have = cache["blocks"][replica, node]
        hit = min(wanted, have, most)
        most = most - hit if hit == wanted else 0
        hits += hit
        if cache["pins"][replica, node] == 0 and have > 0:
            cache["blank"][replica, node] += have - hit
            replicas["kv_blank"][replica] += have - hit
            unlink(state, replica, node)
            cache["blocks"][replica, node] = hit
            replicas["kv_cached"][replica] -= have
            replicas["kv_used"][replica] += hit
        cache["pins"][replica, node] += 1
    requests["processed"][request] = hits * block
    requests["shared"][request] = hits
    requests["hit_tokens"][request] = hits * block
    replicas["hit_tokens"][replica] += hits * block
    replicas["pending_prefill"][replica] -= hits * block


@jit
def publish(state: State, replica: int, request: int, tokens: int) -> None:
    """The first ``tokens`` of a request are computed: their full blocks can be hit from now on."""
    if not caches_prefixes(state, replica, request):
        return
    requests, cache = state.requests, state.cache
    block = state.groups["block_size"][state.replicas["group"][replica]]
    first = requests["path_at"][request]
    last = first + requests["path_len"][request] - 1
    seen = 0
    for step in range(first, last + 1):
        before = seen // block
        seen += state.path_tokens[step]
        if step == last and requests["grows"][request]:
            seen = max(seen, tokens)
        wanted = min(seen, tokens) // block - before
        node = state.path_node[step]
        have = cache["blocks"][replica, node]
        if wanted > have:
            cache["blocks"][replica, node] = wanted
            requests["shared"][request] += wanted - have


@jit
def leave(state: State, replica: int, request: int, private: int) -> None:
    """A request gives up its private blocks, then its nodes, the deepest first."""
    requests, replicas, cache = state.requests, state.replicas, state.cache
    if state.groups["prefix_caching"][replicas["group"][replica]]:
        replicas["kv_blank"][replica] += private
        replicas["blank_newest"][replica] += private
    if not caches_prefixes(state, replica, request):
        return
    requests["shared"][request] = 0
    first = requests["path_at"][request]
    step = first + requests["path_len"][request] - 1
    while step >= first:
        node = state.path_node[step]
        cache["pins"][replica, node] -= 1
        if cache["pins"][replica, node] == 0 and cache["blocks"][replica, node] > 0:
            link_newest(state, replica, node)
            replicas["kv_cached"][replica] += cache["blocks"][replica, node]
            replicas["kv_used"][replica] -= cache["blocks"][replica, node]
        step -= 1


@jit
def evict(state: State, replica: int) -> None:
    """Give free blocks up for used ones, longest unused first, a node from its tail."""
    replicas, cache = state.replicas, state.cache
    free = replicas["kv_cached"][replica] + replicas["kv_blank"][replica]
    over = replicas["kv_used"][replica] + free - replicas["kv_total"][replica]
    while over > 0:
        node = replicas["lru_oldest"][replica]
        if node == NONE:
            replicas["blank_newest"][replica] -= over
            replicas["kv_blank"][replica] -= over
            return
        blank = min(over, cache["blank"][replica, node])
        cache["blank"][replica, node] -= blank
        replicas["kv_blank"][replica] -= blank
        over -= blank
        blocks = min(over, cache["blocks"][replica, node])
        cache["blocks"][replica, node] -= blocks
        replicas["kv_cached"][replica] -= blocks
        over -= blocks
        if cache["blocks"][replica, node] == 0:
            unlink(state, replica, node)


@jit
def link_newest(state: State, replica: int, node: int) -> None:
    """Append an unpinned node to the order of eviction."""
    replicas, cache = state.replicas, state.cache
    newest = replicas["lru_newest"][replica]
    cache["blank"][replica, node] = replicas["blank_newest"][replica]
    replicas["blank_newest"][replica] = 0
    cache["older"][replica, node] = newest
    cache["newer"][replica, node] = NONE
    if newest == NONE:
        replicas["lru_oldest"][replica] = node
    else:
        cache["newer"][replica, newest] = node
    replicas["lru_newest"][replica] = node


@jit
def unlink(state: State, replica: int, node: int) -> None:
    """Take a node out of the order of eviction; the blank blocks before it stay in their place."""
    replicas, cache = state.replicas, state.cache
    older, newer = cache["older"][replica, node], cache["newer"][replica, node]
    if older == NONE:
        replicas["lru_oldest"][replica] = newer
    else:
        cache["newer"][replica, older] = newer
    blank = cache["blank"][replica, node]
    cache["blank"][replica, node] = 0
    if newer == NONE:
        replicas["lru_newest"][replica] = older
        replicas["blank_newest"][replica] += blank
    else:
        cache["older"][replica, newer] = older
        cache["blank"][replica, newer] += blank


@jit
def forget_prefixes(state: State, replica: int) -> None:
    """A replica that crashes comes back with an empty cache."""
    replicas, cache = state.replicas, state.cache
    if not state.groups["prefix_caching"][replicas["group"][replica]]:
        return
    for node in range(cache.shape[1]):
        cache["blocks"][replica, node] = 0
        cache["pins"][replica, node] = 0
        cache["blank"][replica, node] = 0
    replicas["kv_cached"][replica] = 0
    replicas["kv_blank"][replica] = replicas["kv_total"][replica]
    replicas["blank_newest"][replica] = replicas["kv_total"][replica]
    replicas["lru_oldest"][replica] = NONE
    replicas["lru_newest"][replica] = NONE
