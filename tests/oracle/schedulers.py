"""How a replica forms its next batch: one class per scheduler, the rules spelt out.

vllm, sarathi, orca, faster_transformer and lightllm follow Vidur's replica schedulers
(microsoft/vidur 7d47513) without their faults; vllm_v1 follows vLLM's v1/core/sched/scheduler.py.
A request in flight is in no list that ``next_batch`` may take from.
"""

from __future__ import annotations

from oracle.parts import Batch, Entry, OracleReplica, Request
from oracle.prefix import CACHES, blocks_for


class Scheduler:
    """What all share: a waiting queue, the admitted requests, and a count of used KV blocks."""

    def __init__(self, settings: OracleReplica):
        self.settings = settings
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # admitted and not finished, in order of admission
        self.idle: list[Request] = []  # of these, the ones not in flight, in order of coming back
        self.used_blocks = 0
        self.accepted_drafts = 0  # of each decode in the next batch

    def enqueue(self, request: Request) -> None:
        self.waiting.append(request)

    def next_batch(self) -> Batch | None:
        raise NotImplementedError

    def end_batch(self, batch: Batch) -> None:
        """Finished requests leave with their blocks; the others can be batched again."""
        for entry in batch.entries:
            if entry.request.done:
                self.running.remove(entry.request)
                self.free(entry.request)
            else:
                self.idle.append(entry.request)

    def leave(self, request: Request) -> None:
        """A client gave up: its request, which is not in flight, goes wherever it is."""
        if request in self.waiting:
            self.waiting.remove(request)
            return
        for group in (self.running, self.idle):
            if request in group:
                group.remove(request)
        self.free(request)

    @property
    def free_blocks(self) -> int:
        return self.settings.num_blocks - self.used_blocks

    @property
    def batch_cap(self) -> int:
        """Sequences per batch: the cap is shared by the batches in flight."""
        return self.settings.max_num_seqs // self.settings.num_stages

    def allocate(self, request: Request, blocks: int) -> None:
        request.blocks += blocks
        self.used_blocks += blocks
        assert self.used_blocks <= self.settings.num_blocks

    def free(self, request: Request) -> None:
        self.used_blocks -= request.blocks
        request.blocks = 0

    def admit(self, blocks: int) -> Request:
        """Move the head of the queue to the admitted requests and give it ``blocks``."""
        request = self.waiting.pop(0)
        self.running.append(request)
        self.allocate(request, blocks)
        return request

    def evict(self, request: Request) -> None:
        """Preempt: free the blocks and go back to the head of the queue."""
        self.running.remove(request)
        self.free(request)
        request.preempt()
        self.waiting.insert(0, request)


def decode_entry(request: Request) -> Entry:
    return Entry(request, tokens=1, past=request.processed, decode=True)


def prefill_entry(request: Request, tokens: int) -> Entry:
    return Entry(request, tokens, past=request.processed, decode=False)


def next_entry(request: Request) -> Entry:
    """One decode, or the whole prompt at once."""
    return decode_entry(request) if request.decoding else prefill_entry(request, request.target)


class VidurPaged(Scheduler):
    """Paged KV with a watermark, as Vidur's vllm and sarathi share it."""

    def head_fits(self) -> bool:
        """The whole prompt of the queue's head fits and leaves the watermark free."""
        needed = blocks_for(self.waiting[0].target, self.settings.block_size)
        return self.free_blocks - needed >= self.settings.watermark_blocks

    def admit_head(self) -> Request:
        return self.admit(blocks_for(self.waiting[0].target, self.settings.block_size))

    def make_room(self, request: Request) -> bool:
        """See that a decode can go on; False if it had to be preempted itself.

        Vidur asks for one free block even where the request needs none. Victims come from the
        end of the idle list.
        """
        while self.free_blocks < 1:
            if not self.idle:
                self.evict(request)
                return False
            self.evict(self.idle.pop())
        if request.processed > request.blocks * self.settings.block_size:
            self.allocate(request, 1)
        return True


class Vllm(VidurPaged):
    """vLLM before v1: prompts first and alone, whole; decodes when no prompt can be admitted."""

    def next_batch(self) -> Batch | None:
        entries = self.prefill_batch() or self.decode_batch()
        return Batch(entries) if entries else None

    def prefill_batch(self) -> list[Entry]:
        entries: list[Entry] = []
        while self.waiting and self.head_fits():
            longest = max([self.waiting[0].target] + [entry.tokens for entry in entries])
            padded = longest * (len(entries) + 1)
            if entries and padded > self.settings.token_budget:
                break
            if len(self.running) == self.settings.max_num_seqs or len(entries) == self.batch_cap:
                break
            request = self.admit_head()
            entries.append(prefill_entry(request, request.target))
        return entries

    def decode_batch(self) -> list[Entry]:
        self.idle.sort(key=lambda request: request.arrival)  # stable, as Vidur's
        entries: list[Entry] = []
        while self.idle and len(entries) < self.batch_cap:
            request = self.idle.pop(0)
            if self.make_room(request):
                entries.append(decode_entry(request))
        return entries


class Sarathi(VidurPaged):
    """Decodes, then started prompts, then new prompts, in chunks that fill up a token budget.

    A new prompt reserves blocks for all of its tokens at once.
    """

    def next_batch(self) -> Batch | None:
        entries: list[Entry] = []
        started: list[Request] = []
        while self.idle and len(entries) < self.batch_cap:
            request = self.idle.pop(0)
            if not request.decoding:
                started.append(request)
            elif self.make_room(request):
                entries.append(decode_entry(request))
        for request in started:
            chunk = self.next_chunk(request, entries)
            if chunk > 0:
                entries.append(prefill_entry(request, chunk))
            else:
                self.idle.append(request)
        self.idle.sort(key=lambda request: request.arrival)  # stable, as Vidur's
        while self.waiting and len(self.running) < self.settings.max_num_seqs:
            chunk = self.next_chunk(self.waiting[0], entries)
            if len(entries) >= self.batch_cap or not self.head_fits() or chunk == 0:
                break
            entries.append(prefill_entry(self.admit_head(), chunk))
        return Batch(entries) if entries else None

    def next_chunk(self, request: Request, entries: list[Entry]) -> int:
        left = self.settings.token_budget - sum(entry.tokens for entry in entries)
        return max(0, min(request.target - request.processed, left))


class Orca(Scheduler):
    """Iteration-level batching of whole prompts with decodes; a fixed reservation per request."""

    def next_batch(self) -> Batch | None:
        entries: list[Entry] = []
        reserve = self.settings.max_blocks_per_sequence
        while self.idle and len(entries) < self.settings.max_num_seqs:
            entries.append(next_entry(self.idle.pop(0)))
        while self.waiting and len(entries) < self.settings.max_num_seqs and self.free_blocks >= reserve:
            entries.append(next_entry(self.admit(reserve)))
        return Batch(entries) if entries else None


class FasterTransformer(Scheduler):
    """Request-level batching: a group runs until all are done, then its reservations are freed.

    (Vidur frees only the requests of the group's last iteration, and hangs: a fault.)
    """

    def __init__(self, settings: OracleReplica):
        super().__init__(settings)
        self.groups: list[list[Request]] = []

    def next_batch(self) -> Batch | None:
        group = self.groups.pop(0) if self.groups else self.new_group()
        if not group:
            return None
        return Batch([next_entry(request) for request in group if not over(request)], group)

    def new_group(self) -> list[Request]:
        group: list[Request] = []
        reserve = self.settings.max_blocks_per_sequence
        while self.waiting and len(group) < self.settings.max_num_seqs and self.free_blocks >= reserve:
            group.append(self.admit(reserve))
        return group

    def end_batch(self, batch: Batch) -> None:
        for entry in batch.entries:
            if entry.request.done:
                self.running.remove(entry.request)
        self.groups.append(batch.group)
        self.end_groups()

    def leave(self, request: Request) -> None:
        """The reservation of a request that was in a group stays until the group ends."""
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self.running.remove(request)
            self.end_groups()

    def end_groups(self) -> None:
        for group in list(self.groups):
            if all(over(request) for request in group):
                for request in group:
                    self.free(request)
                self.groups.remove(group)


def over(request: Request) -> bool:
    return request.done or request.end == "aborted"


class LightLlm(Scheduler):
    """Token-level KV, admitted so that the largest future need fits; prompts every few decodes."""

    def __init__(self, settings: OracleReplica):
        super().__init__(settings)
        assert settings.block_size == 1
        assert settings.num_stages == 1
        self.decodes_since_prefill = 0

    def next_batch(self) -> Batch | None:
        if not self.idle:
            entries = self.prefill_batch()
            if entries:
                self.decodes_since_prefill = 0
            return Batch(entries) if entries else None
        if self.decodes_since_prefill >= self.settings.max_waiting_iters:
            self.decodes_since_prefill = 0
            entries = self.prefill_batch()
            if entries:
                return Batch(entries)
        self.decodes_since_prefill += 1
        return Batch(self.decode_batch())

    def prefill_batch(self) -> list[Entry]:
        entries: list[Entry] = []
        needs = [(request.processed, max(0, remaining(request) - 1)) for request in self.idle]
        while self.waiting and len(self.running) < self.settings.max_num_seqs:
            head = self.waiting[0]
            tokens = head.target + sum(entry.tokens for entry in entries)
            needs.append((head.target + 1, max(0, head.output - 2)))
            if (entries and tokens > self.settings.token_budget) or largest_need(
                needs
            ) >= self.settings.num_blocks:
                break
            entries.append(prefill_entry(self.admit(head.target), head.target))
        return entries

    def decode_batch(self) -> list[Entry]:
        assert self.free_blocks >= len(self.idle), "admission promised that this cannot happen"
        entries = []
        for request in self.idle:
            self.allocate(request, 1)
            entries.append(decode_entry(request))
        self.idle = []
        return entries


def remaining(request: Request) -> int:
    """Output tokens still to come."""
    return request.prompt + request.output - request.processed


def largest_need(needs: list[tuple[int, int]]) -> int:
    """Most tokens ever held at once by requests of (held, still to come), the longest-lived last.

    When the k-th of them (most still to come first) ends, k requests have each grown by what it
    still had to come, and only they are left.
    """
    largest = 0
    held_so_far = 0
    ordered = sorted(needs, key=lambda need: -need[1])
    for rank, (held, to_come) in enumerate(ordered, start=1):
        held_so_far += held
        largest = max(largest, to_come * rank + held_so_far)
    return largest


def urgency(request: Request) -> tuple[int, float, int]:
    """Priority order: smaller goes first; requests that are equal otherwise go by index."""
    return (request.priority, request.arrival, request.index)


class VllmV1(Scheduler):
    """vLLM v1: one token budget for decodes and prompt chunks; blocks only for this step's tokens.

    Admitted requests come first, in order of admission, those in flight passed over. If one does not
    fit, the last admitted (policy "priority": the one with the largest priority, then the youngest)
    is preempted, and nothing is admitted in that step. A victim in flight cannot be preempted: the
    step ends and waits for it. (vLLM takes its blocks at once. Choosing another victim instead lets
    two long prompts in a pipeline preempt each other for ever.)

    With ``prefix_caching`` an admitted request starts behind the blocks of its prompt that are cached.

    With ``speculation`` a decode takes its drafts and itself from the budget, all or none, but blocks for
    the tokens that it will keep only.
    """

    def __init__(self, settings: OracleReplica):
        super().__init__(settings)
        self.cache = CACHES[settings.prefix_caching](settings)

    def enqueue(self, request: Request) -> None:
        self.waiting.append(request)
        self.order_waiting()

    def order_waiting(self) -> None:
        if self.settings.policy == "priority":
            self.waiting.sort(key=urgency)

    def next_batch(self) -> Batch | None:
        """One step; a step that only preempted is followed by the next at once, as in vLLM's loop."""
        self.entries: list[Entry] = []
        while True:
            before = len(self.waiting)
            if self.continue_running():
                self.admit_waiting()
            if self.entries:
                self.cache.settle()
                return Batch(self.entries)
            if len(self.waiting) == before:
                return None

    def end_batch(self, batch: Batch) -> None:
        """Decodes are done with before prompts, those of fewer tokens first."""

        def turn(entry: Entry) -> tuple[bool, int]:
            ahead = entry.request.prompt + entry.request.output - entry.past if entry.decode else 0
            return (not entry.decode, ahead)

        for entry in sorted(batch.entries, key=turn):
            request = entry.request
            if not entry.decode and request.decoding:
                self.cache.computed(request, request.target)
            if request.done:
                # The last token of an answer is never fed back, so it has no KV to be found.
                self.cache.computed(request, request.prompt + request.output - 1)
                self.running.remove(request)
                self.free(request)

    def allocate(self, request: Request, blocks: int) -> None:
        self.cache.take(request, blocks)
        request.blocks += blocks
        self.used_blocks = self.cache.used
        assert self.used_blocks <= self.settings.num_blocks

    def free(self, request: Request) -> None:
        self.cache.leave(request)
        request.blocks = 0
        self.used_blocks = self.cache.used

    @property
    def budget_left(self) -> int:
        return self.settings.token_budget - sum(self.cost(entry) for entry in self.entries)

    def cost(self, entry: Entry) -> int:
        """Tokens of the budget."""
        if entry.decode:
            return 1 + (self.settings.speculation.tokens if self.settings.speculation else 0)
        return entry.tokens

    def continue_running(self) -> bool:
        """Decodes and started prompts; False if blocks ran short."""
        enough = True
        for request in list(self.running):
            if self.budget_left == 0:
                break
            if request not in self.running or request.in_flight:
                continue
            entry = self.next_entry(request)
            if self.cost(entry) > self.budget_left:
                break
            while self.blocks_missing(request, entry) > self.free_blocks:
                enough = False
                victim = self.victim()
                if victim.in_flight:
                    return False
                self.evict(victim)
                self.order_waiting()
                self.entries = [kept for kept in self.entries if kept.request is not victim]
                if victim is request:
                    return False
            self.allocate(request, self.blocks_missing(request, entry))
            self.entries.append(entry)
        return enough

    def admit_waiting(self) -> None:
        while self.waiting and self.budget_left > 0 and len(self.running) < self.settings.max_num_seqs:
            head = self.waiting[0]
            if self.cache.needed(head) > self.free_blocks:
                break
            head.blocks = self.cache.hits(head)
            head.processed = head.hit_tokens = head.blocks * self.settings.block_size
            self.cache.enter(head)
            entry = self.next_entry(head)
            self.admit(self.blocks_missing(head, entry))
            self.entries.append(entry)

    def next_entry(self, request: Request) -> Entry:
        if request.decoding:
            return Entry(request, 1 + self.accepted_drafts, past=request.processed, decode=True)
        return prefill_entry(request, min(request.target - request.processed, self.budget_left))

    def blocks_missing(self, request: Request, entry: Entry) -> int:
        """A decode's own token is already counted in ``processed``."""
        tokens = request.processed + min(entry.tokens, request.left) - entry.decode
        return blocks_for(tokens, self.settings.block_size) - request.blocks

    def victim(self) -> Request:
        if self.settings.policy == "priority":
            return max(self.running, key=urgency)
        return self.running[-1]


SCHEDULERS: dict[str, type[Scheduler]] = {
    "vllm": Vllm,
    "sarathi": Sarathi,
    "orca": Orca,
    "faster_transformer": FasterTransformer,
    "lightllm": LightLlm,
    "vllm_v1": VllmV1,
}
