"""Who holds which KV block: three models of a replica's memory, from plain counting to vLLM's blocks.

``NoCache`` counts. ``NodeCache`` is the engine's rule in plain words: one cached beginning per node of
content, nodes in use pinned, the others given up from the tail of the one that was used longest ago.
``BlockCache`` is vLLM v1's: every block by itself, keyed by all tokens up to its end, reference counts, and
one queue of free blocks, hittable until they are taken. All three agree on when blocks become hittable:
those of a prompt when its prefill is complete, those of an answer when it is.
"""

from __future__ import annotations

from oracle.parts import OracleReplica, Request


def blocks_for(tokens: int, block_size: int) -> int:
    """KV blocks that hold ``tokens``."""
    return -(-tokens // block_size)


class NoCache:
    """Every request has its blocks for itself."""

    def __init__(self, settings: OracleReplica):
        self.block_size = settings.block_size
        self.num_blocks = settings.num_blocks
        self.used = 0  # blocks that running requests hold, shared ones once

    @property
    def free(self) -> int:
        """Blocks that can be had: empty ones, and cached ones that nobody holds."""
        return self.num_blocks - self.used

    def most_hits(self, request: Request) -> int:
        """Full blocks that leave at least one token to compute."""
        return (request.target - 1) // self.block_size

    def hits(self, request: Request) -> int:
        """Blocks of ``request`` that need not be computed."""
        return 0

    def needed(self, request: Request) -> int:
        """Free blocks that its admission and all its tokens so far would take."""
        return blocks_for(request.target, self.block_size)

    def enter(self, request: Request) -> None:
        """Hold what is hit."""

    def take(self, request: Request, blocks: int) -> None:
        self.used += blocks

    def computed(self, request: Request, tokens: int) -> None:
        """The first ``tokens`` of the request are computed: their full blocks can be hit."""

    def leave(self, request: Request) -> None:
        """Give up all blocks of a request that is done or preempted."""
        self.used -= request.blocks

    def settle(self) -> None:
        """The batch is formed."""


class NodeCache(NoCache):
    """A block belongs to the node in which it ends; of each node a beginning is cached.

    Free blocks wait in one queue, each under its node, or under None if it holds nothing to be hit.

    Blocks are given up when a batch is formed, so that all requests that enter it find the same cache.
    A request that enters a node that nobody uses cuts off what it does not use of it: whatever is
    pinned is in use, and a request that fits alone is always admitted.
    """

    def __init__(self, settings: OracleReplica):
        super().__init__(settings)
        self.cached: dict[int, int] = {}  # node -> blocks
        self.pins: dict[int, int] = {}  # node -> running requests
        self.queue: list[int | None] = [None] * self.num_blocks  # free blocks, longest unused first

    def shares(self, request: Request, tokens: int) -> list[tuple[int, int]]:
        """(node, full blocks that end in it) along the path, for the first ``tokens`` tokens."""
        shares, seen = [], 0
        for position, (node, length) in enumerate(request.path):
            start = seen
            seen += length
            if request.grows and position == len(request.path) - 1:
                seen = max(seen, tokens)
            end = min(seen, tokens)
            shares.append((node, max(0, end // self.block_size - start // self.block_size)))
        return shares

    def uses(self, request: Request) -> list[tuple[int, int]]:
        """(node, blocks hit in it): all wanted ones, and no more after the first that is missing."""
        uses, left, whole = [], self.most_hits(request), True
        prompt = sum(length for _, length in request.path)
        for node, wanted in self.shares(request, prompt):
            hit = min(wanted, self.cached.get(node, 0), left) if whole else 0
            whole = whole and hit == wanted
            left -= hit
            uses.append((node, hit))
        return uses

    def hits(self, request: Request) -> int:
        return sum(hit for _, hit in self.uses(request))

    def needed(self, request: Request) -> int:
        back = sum(hit for node, hit in self.uses(request) if not self.pins.get(node))
        return blocks_for(request.target, self.block_size) - self.hits(request) + back

    def enter(self, request: Request) -> None:
        for node, hit in self.uses(request):
            if not self.pins.get(node):
                unused = self.cached.get(node, 0) - hit
                self.queue = self.without(node, unused)
                self.cached[node] = hit
                self.used += hit
            self.pins[node] = self.pins.get(node, 0) + 1

    def take(self, request: Request, blocks: int) -> None:
        self.used += blocks
        request.private += blocks

    def computed(self, request: Request, tokens: int) -> None:
        """Private blocks become the node's, except those that somebody else computed at the same time."""
        for node, wanted in self.shares(request, tokens):
            fresh = max(0, wanted - self.cached[node])
            self.cached[node] += fresh
            request.private -= fresh
        assert request.private >= 0

    def leave(self, request: Request) -> None:
        self.used -= request.private
        self.queue += [None] * request.private
        request.private = 0
        for node, _ in reversed(request.path):
            self.pins[node] -= 1
            if self.pins[node] == 0:
                self.queue += [node] * self.cached[node]
                self.used -= self.cached[node]

    def without(self, node: int, blanks: int) -> list[int | None]:
        """The queue without the blocks of a node, but with ``blanks`` of them in their place."""
        at = self.queue.index(node) if node in self.queue else 0
        kept = [other for other in self.queue if other != node]
        return kept[:at] + [None] * blanks + kept[at:]

    def settle(self) -> None:
        """A node's blocks stand together; it does not matter which of them are taken."""
        taken = self.used + len(self.queue) - self.num_blocks
        for node in self.queue[:taken]:
            if node is not None:
                self.cached[node] -= 1
        self.queue = self.queue[taken:]


class Block:
    """One block: what it holds (None: nothing that can be hit) and how many requests hold it."""

    def __init__(self) -> None:
        self.key: int | None = None
        self.holders = 0


class BlockCache(NoCache):
    """vLLM v1's block pool (v1/core/block_pool.py, kv_cache_manager.py).

    Free blocks wait in one queue, those of a request from its last to its first, with what they hold; a
    new block is taken from its head. Private blocks wait there like all others, so they push shared ones
    out; and a preempted request may find its own again.
    """

    def __init__(self, settings: OracleReplica):
        super().__init__(settings)
        self.queue: dict[Block, None] = {Block(): None for _ in range(settings.num_blocks)}
        self.held: dict[Request, list[Block]] = {}
        self.found: dict[int, dict[Block, None]] = {}  # key -> blocks that hold it
        self.numbers: dict[tuple[int, tuple[object, ...]], int] = {}
        self.keys: dict[Request, list[int]] = {}

    def key_of(self, request: Request, block: int) -> int:
        """A number for all tokens up to the end of the request's ``block``-th block."""
        keys = self.keys.setdefault(request, [])
        while len(keys) <= block:
            start = len(keys) * self.block_size
            tokens = tuple(request.token(start + offset) for offset in range(self.block_size))
            before = keys[-1] if keys else -1
            keys.append(self.numbers.setdefault((before, tokens), len(self.numbers)))
        return keys[block]

    def hit_list(self, request: Request) -> list[Block]:
        blocks: list[Block] = []
        while len(blocks) < self.most_hits(request):
            same = self.found.get(self.key_of(request, len(blocks)))
            if not same:
                break
            blocks.append(next(iter(same)))
        return blocks

    def hits(self, request: Request) -> int:
        return len(self.hit_list(request))

    def needed(self, request: Request) -> int:
        hits = self.hit_list(request)
        back = sum(block.holders == 0 for block in hits)
        return blocks_for(request.target, self.block_size) - len(hits) + back

    def enter(self, request: Request) -> None:
        self.held[request] = self.hit_list(request)
        for block in self.held[request]:
            if block.holders == 0:
                del self.queue[block]
                self.used += 1
            block.holders += 1

    def take(self, request: Request, blocks: int) -> None:
        for _ in range(blocks):
            block = next(iter(self.queue))
            del self.queue[block]
            if block.key is not None:
                del self.found[block.key][block]
                block.key = None
            block.holders = 1
            self.held[request].append(block)
        self.used += blocks

    def computed(self, request: Request, tokens: int) -> None:
        for index in range(tokens // self.block_size):
            block = self.held[request][index]
            if block.key is None:
                block.key = self.key_of(request, index)
                self.found.setdefault(block.key, {})[block] = None

    def leave(self, request: Request) -> None:
        for block in reversed(self.held.pop(request)):
            block.holders -= 1
            if block.holders == 0:
                self.queue[block] = None
                self.used -= 1


CACHES: dict[str, type[NoCache]] = {"off": NoCache, "nodes": NodeCache, "blocks": BlockCache}
