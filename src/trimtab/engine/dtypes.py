"""The engine's tables. One row per thing, one unit per field.

Times are float64 seconds, counts are tokens, KV blocks or sequences. Kinds are integers whose names
are the enums at the end. Integers that functions pass to each other are all 64 bits wide, so that
every function compiles for one signature only. Every floor above reads these tables; only the
engine writes them.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

NONE = -1

REQUEST = np.dtype(
    [
        # what was asked (written by the workload)
        ("arrival", "f8"),  # s; inf until a closed loop sets it
        ("prefill_tokens", "i8"),  # prompt
        ("decode_tokens", "i8"),  # output, at least 1
        ("expected_decode", "f4"),  # what a router may assume about the output, tokens
        ("session", "i8"),  # or NONE
        ("turn", "i4"),  # position in its session
        ("next_turn", "i8"),  # request that this one's completion triggers, or NONE
        ("think", "f8"),  # s between that completion and the next arrival
        ("klass", "i2"),  # SLO class
        ("priority", "i2"),  # smaller is served first (scheduler policy "priority")
        ("coin_a", "f8"),  # two uniforms in [0, 1) for routers that toss
        ("coin_b", "f8"),
        # what its prompt shares with others: a path through the forest of content (workload/content.py)
        ("path_at", "i8"),  # first entry of its path
        ("path_len", "i8"),  # nodes; 0 shares nothing
        ("grows", "i8"),  # 1: its answer goes on the last node, because the next turn's prompt has it
        # what happened
        ("replica", "i8"),  # replica that serves it, or NONE; input of the replay router
        ("view", "i8"),  # router that sent it there
        ("pool", "i8"),  # replicas that may serve it
        ("status", "i1"),  # Status
        ("preemptions", "i8"),  # restarts by recompute
        ("retries", "i8"),  # further attempts after a crash
        ("scheduled", "f8"),  # s, first time in a batch
        ("first_token", "f8"),  # s
        ("finished", "f8"),  # s
        ("execution", "f8"),  # s inside running iterations, all attempts
        ("last_token", "f8"),  # s, of the last token before a preemption
        # where it is now
        ("target", "i8"),  # tokens to prefill: the prompt, or all tokens so far after a preemption
        ("processed", "i8"),  # tokens prefilled in this attempt (decodes are counted by lane epoch)
        ("next_waiting", "i8"),  # queue link
        ("shared", "i8"),  # blocks of it that live in the prefix cache
        ("hit_tokens", "i8"),  # prompt tokens found in the prefix cache, in its last attempt
        ("order", "f8"),  # place in its pool: arrival or admission, as the scheduler wants it
        # prefill here, decode there
        ("prefill_replica", "i8"),  # replica that prefilled it, once it is known who decodes; or NONE
        ("bound_for", "i8"),  # replica that its KV is on the way to, or NONE
        ("transfer", "f8"),  # s from the end of its prefill until its KV was where it decodes
    ],
    align=True,
)

REPLICA = np.dtype(
    [
        ("group", "i8"),
        ("speed", "f8"),  # relative to the fleet's fastest, (0, 1]
        ("pool", "i8"),  # lane of the requests that are in no batch
        ("accepting", "i8"),  # 1: routers may choose it (on, seen up, not draining, breaker closed)
        # queue
        ("queue_head", "i8"),
        ("queue_tail", "i8"),
        ("waiting", "i8"),  # requests queued
        ("running", "i8"),  # requests holding KV
        ("outstanding", "i8"),  # waiting + running
        ("pending_prefill", "i8"),  # prompt tokens not yet computed, queued or running
        ("expected_decode", "f8"),  # output tokens expected of outstanding requests
        # KV
        ("kv_used", "i8"),  # blocks
        ("kv_total", "i8"),  # blocks
        ("kv_cached", "i8"),  # blocks of unused prefixes, evictable
        ("lru_oldest", "i8"),  # node to evict first, or NONE
        ("lru_newest", "i8"),
        ("kv_blank", "i8"),  # free blocks that hold nothing to be hit; of these,
        ("blank_newest", "i8"),  # the ones that came after the newest node
        # batches in flight
        ("in_flight", "i8"),
        ("slow", "f8"),  # iterations last this many times as long
        ("aborting", "i8"),  # requests that leave when their batch ends
        ("forming", "i8"),  # 1: a FORM event of this instant is due
        ("batch_head", "i8"),  # oldest batch, index in its ring
        ("waiting_iters", "i8"),  # lightllm: decode iterations since a prefill
        # prefill here, decode there
        ("hands_over", "i8"),  # 1: its model prefills and decodes in different pools
        ("coming", "i8"),  # requests whose KV is on the way to it: outstanding, neither waiting nor running
        ("received_head", "i8"),  # waiting requests whose KV has come
        ("received_tail", "i8"),
        ("send_free", "f8"),  # s, when its link has sent all that is booked,
        ("receive_free", "f8"),  # and received
        ("sending", "f8"),  # s that its link sent, all booked transfers
        # sums over the run
        ("last_change", "f8"),  # s, up to where the areas are summed
        ("waiting_area", "f8"),  # request-seconds
        ("running_area", "f8"),
        ("kv_area", "f8"),  # block-seconds
        ("kv_peak", "i8"),  # blocks
        ("busy", "f8"),  # s, summed over stages
        ("routed", "i8"),  # requests
        ("finished", "i8"),
        ("preemptions", "i8"),
        ("iterations", "i8"),
        ("prefill_done", "i8"),  # tokens computed
        ("hit_tokens", "i8"),  # prompt tokens found in the prefix cache
        ("decode_done", "i8"),  # tokens generated by decode steps
        ("decode_steps", "i8"),  # such steps of single requests; counted with speculation alone
        ("attention_pairs", "f8"),  # sum of q * (q + kv) over all sequences: Vidur's MFU term
        # faults
        ("up", "i8"),  # 1: it serves
        ("seen_up", "i8"),  # 1: the last health check found it up
        ("draining", "i8"),  # 1: it gets nothing new
        ("open", "i8"),  # 1: its circuit breaker is open
        ("failures", "i8"),  # attempts that failed since one succeeded
        ("crashes", "i8"),
        ("down_since", "f8"),  # s
        ("down", "f8"),  # s, of downtimes that have ended
        # autoscaling
        ("power", "i8"),  # Power
        ("on_since", "f8"),  # s, where it is not off
        ("on", "f8"),  # s for which it was paid, of the times that have ended
        ("ordered", "i8"),  # times that autoscaling called for it
        ("released", "i8"),  # times that autoscaling sent it away
        # what only routers read
        ("match", "i8"),  # tokens of the prompt being routed that its prefix cache holds
        ("cost", "f8"),  # of the request being routed, for routers that draw by it; the learned one's score
        ("bias", "f8"),  # of that score
        ("share", "f8"),  # of the requests that come here, a moving average
        ("latency_first", "f8"),  # s per output token, arrival to end, summed over its first nine requests
        ("latency_last", "f8"),  # of its latest request, from the tenth on
    ],
    align=True,
)

GROUP = np.dtype(
    [
        ("scheduler", "i8"),  # Scheduler
        ("stages", "i8"),  # pipeline stages
        ("max_seqs", "i8"),  # requests that may hold KV at once
        ("micro_seqs", "i8"),  # sequences in one batch
        ("token_budget", "i8"),  # tokens of one batch
        ("block_size", "i8"),  # tokens
        ("watermark", "i8"),  # blocks kept free at admission
        ("reserve", "i8"),  # blocks reserved for a request's whole life, or 0
        ("max_waiting_iters", "i8"),
        ("spare", "i8"),  # blocks that must be free before a decode goes on
        ("priority", "i8"),  # 1: priority order, 0: first come first served
        ("prefix_caching", "i8"),  # 1: keep finished prompts for reuse
        # speculative decoding
        ("draft_tokens", "i8"),  # per decode and step; 0: off
        ("acceptance", "f8"),  # probability, of one if those before it were accepted
        ("prefill_s", "f8"),  # s per prompt token and
        ("decode_s", "f8"),  # s per output token that a router may assume
        ("send_s", "f8"),  # s per token of KV that goes to another replica
        # execution time: where each table starts in ``curves`` and its shape (see ExecTables)
        ("vidur", "i8"),
        ("token_round", "i8"),
        ("kv_step", "i8"),
        ("chunk_step", "i8"),
        ("many_prefills", "f8"),
        ("token_at", "i8"),
        ("kv_write_at", "i8"),
        ("send_at", "i8"),
        ("tokens_last", "i8"),
        ("cpu_at", "i8"),
        ("cpu_last", "i8"),
        ("decode_at", "i8"),
        ("decode_rows", "i8"),
        ("decode_last", "i8"),
        ("prefill_at", "i8"),
        ("prefill_rows", "i8"),
        ("prefill_last", "i8"),
    ],
    align=True,
)

LANE = np.dtype(
    [
        ("count", "i8"),  # slots in use
        ("decodes", "i8"),  # of them past their prefill
        ("prefilling", "i8"),
        ("fresh", "i8"),  # decodes whose last token is not the lane's last token
        ("epoch", "i8"),  # decode steps taken
        ("next_finish", "i8"),  # epoch of the earliest finish (a lower bound)
        ("kv_sum", "i8"),  # processed tokens of all decodes
        ("last_token", "f8"),  # s
        ("clock", "f8"),  # s of execution of all steps taken
        ("held", "i8"),  # blocks that a static batch keeps until its last request is done
    ],
    align=True,
)

SLOT = np.dtype(
    [
        ("request", "i8"),
        ("offset", "i8"),  # processed = lane epoch + offset
        ("finish", "i8"),  # lane epoch at which the last token comes; NEVER while prefilling
        ("fresh", "f8"),  # s of its last token where that is not the lane's, else 0
    ],
    align=True,
)
NEVER = np.int64(1) << 60

BATCH = np.dtype(
    [
        ("lane", "i8"),
        ("prefills", "i8"),  # sequences
        ("prefill_tokens", "i8"),
        ("longest", "i8"),  # longest prefill, for padded budgets
        ("decodes", "i8"),  # sequences
        ("emits", "i8"),  # tokens that each of them gets, the end of its answer aside
        ("short", "i8"),  # 1: KV ran short while it was formed
        ("preempted", "i8"),  # requests preempted for it
        ("decode_kv", "i8"),  # KV tokens of all decodes
        ("past", "f8"),  # KV tokens before the prefill chunks (Vidur's grid: in steps)
        ("squares", "f8"),  # sum of squared chunks
        ("work", "f8"),  # sum of chunk * past + chunk^2 / 2
        ("pairs", "f8"),  # sum of q * (q + kv)
        ("start", "f8"),  # s
        ("end", "f8"),  # s
        ("stage", "f8"),  # s on the last stage
        ("spent", "f8"),  # s on all stages, sending included
        ("row", "i8"),  # where the iteration is recorded, or NONE
        ("stage_free", "f8"),  # s, when the stage of this index is free (not of the batch)
    ],
    align=True,
)

CHUNK = np.dtype([("request", "i8"), ("tokens", "i8")], align=True)

NEED = np.dtype(
    [
        ("held", "i8"),  # tokens that a request of the batch holds
        ("left", "i8"),  # tokens that it will still add
    ],
    align=True,
)

CACHE = np.dtype(
    [
        ("blocks", "i8"),  # cached blocks of a node on a replica
        ("pins", "i8"),  # running requests that pass through it
        ("older", "i8"),  # neighbours in order of eviction, or NONE
        ("newer", "i8"),
        ("blank", "i8"),  # free blocks with nothing to be hit that go before it
    ],
    align=True,
)

EVENT = np.dtype([("time", "f8"), ("kind", "i8"), ("who", "i8")], align=True)

FAULT = np.dtype(
    [
        ("at", "f8"),  # s
        ("kind", "i8"),  # Fault
        ("replica", "i8"),
        ("factor", "f8"),  # of SLOW
    ],
    align=True,
)

CLASS = np.dtype(
    [
        ("timeout", "f8"),  # s from arrival to the last token, after which the client gives up; or inf
        ("ttft_timeout", "f8"),  # s from arrival to the first token; or inf
        ("limit", "f8"),  # outstanding requests per accepting replica beyond which it is rejected; or inf
        ("pool", "i8"),  # replicas that may serve it
        ("bound", "f8"),  # s to the first token that its SLO allows; or inf
    ],
    align=True,
)

POOL = np.dtype(
    [
        ("first", "i8"),  # replicas from this one
        ("last", "i8"),  # to before this one
        ("accepting", "i8"),  # of them, those that routers may choose
        ("held", "i8"),  # requests that wait for one
        ("decode", "i8"),  # pool where its requests decode, or NONE: where they were prefilled
    ],
    align=True,
)

SCALER = np.dtype(
    [
        ("first", "i8"),  # it scales the replicas from this one
        ("last", "i8"),  # to before this one
        ("least", "i8"),  # replicas that it keeps
        ("metric", "i8"),  # ScaleBy
        ("target", "f8"),  # of the metric, per replica; with SLO the share of first tokens in time
        ("interval", "f8"),  # s between evaluations
        ("provision", "f8"),  # s from order to service
        ("window", "f8"),  # s of first tokens that SLO looks back on
        ("keep", "i8"),  # latest recommendations, the highest of which bounds scaling down
        ("since", "f8"),  # s, the first arrival; evaluation k is k intervals later
        ("evaluations", "i8"),  # done
        ("idle", "i8"),  # 1: it could do nothing for anybody, and nothing has happened since
        ("oldest", "i8"),  # every request before this one had its first token before the window
    ],
    align=True,
)

SCALING = np.dtype(
    [
        ("time", "f8"),  # s
        ("replica", "i8"),
        ("power", "i8"),  # Power from then on
    ],
    align=True,
)

CONTROL = np.dtype(
    [
        ("now", "f8"),  # s
        ("next_arrival", "i8"),  # first request of the table that has not arrived
        ("num_timed", "i8"),  # requests whose arrival is known from the start
        ("heap_size", "i8"),
        ("finished", "i8"),
        ("iterations", "i8"),  # all, recorded or not
        ("tokens", "i8"),  # output tokens
        ("admissions", "i8"),  # requests taken into service, again after each preemption
        ("router", "i8"),  # Router
        ("choices", "i8"),  # d of power of d
        ("matching", "i8"),  # 1: the router asks for prefix matches
        ("temperature", "f8"),  # of Dynamo's softmax over costs
        ("weight_prefix", "f8"),  # of the llm-d scorers
        ("weight_queue", "f8"),
        ("weight_kv", "f8"),
        ("speed_aware", "i8"),
        ("hidden", "i8"),  # units per layer of the learned router
        ("recording", "i8"),  # 1: its decisions are kept
        ("bias_rate", "f8"),  # of its scores; 0: there is none
        ("bias_decay", "f8"),  # of the shares that move it
        ("seed", "i8"),  # of what the engine itself tosses
        ("asking", "i8"),  # request that waits for an outside router, or NONE
        ("next_sample", "f8"),  # s
        ("sample_every", "f8"),  # s
        ("samples", "i8"),
        # faults, timeouts, admission
        ("watching", "i8"),  # 1: any of them is in use
        ("failed", "i8"),
        ("aborted", "i8"),
        ("rejected", "i8"),
        ("happening", "i8"),  # Event that the caller of the loop is to see to
        ("about", "i8"),  # replica, request or fault that it is about
        ("next_fault", "i8"),  # first of the list that has not happened
        ("max_retries", "i8"),
        ("backoff", "f8"),  # s before the first retry; doubles with each
        ("health_delay", "f8"),  # s; 0: crashes and recoveries are seen at once
        ("breaker_failures", "i8"),  # failures in a row that open a breaker; 0: there is none
        ("breaker_open", "f8"),  # s until it closes
        ("rate", "f8"),  # requests/s that are let in; or inf
        ("burst", "f8"),  # requests that may come at once
        ("bucket", "f8"),  # of these, how many may now
        ("filled", "f8"),  # s, up to where the bucket is filled
        ("scalings", "i8"),  # changes of power, recorded or not
        # prefill here, decode there
        ("decode_router", "i8"),  # Router
        ("link_latency", "f8"),  # s of every transfer
        # what routers see (see ``signals``)
        ("dispatched", "i8"),  # requests routed so far
        ("view", "i8"),  # the router that is asked now, and
        ("pool", "i8"),  # the pool it chooses from: replicas
        ("first", "i8"),  # from this one
        ("last", "i8"),  # to before this one
        ("stale", "i8"),  # 1: routers see snapshots, 0: the replicas themselves
        ("seen_at", "i8"),  # row of the visible snapshot's first replica
        ("signal_age", "f8"),  # s since that snapshot was taken
        ("next_signal", "f8"),  # s, when the next snapshot is due; inf when fresh
        ("signal_every", "f8"),  # s between snapshots
        ("signal_delay", "f8"),  # s from taking to seeing
        ("signal_jitter", "f8"),  # share of the interval
        ("count_own", "i8"),  # 1: a router adds what it dispatched since its snapshot
        ("count_answers", "i8"),  # 1: and subtracts what was answered since
    ],
    align=True,
)

VIEW = np.dtype(
    [
        ("taken", "i8"),  # number of the newest snapshot; 0 is the empty fleet at the start
        ("shown", "i8"),  # number of the visible one
        ("next", "f8"),  # s, when the next is taken
    ],
    align=True,
)

BELIEF = np.dtype(
    [
        ("prompts", "f8"),  # s of queued prompts
        ("decodes", "f8"),  # s of decoding to come
        ("at", "f8"),  # s, when that was so
        ("shown", "i8"),  # number of the snapshot that it started from, plus one
    ],
    align=True,
)

ITERATION = np.dtype(
    [
        ("start", "f8"),  # s, on the first stage
        ("end", "f8"),  # s, on the last stage
        ("replica", "i4"),
        ("stage", "f4"),  # s on the last stage
        ("prefill_tokens", "i4"),
        ("prefills", "i4"),  # sequences
        ("decodes", "i4"),  # sequences, one token each
        ("waiting", "i4"),  # queue after the batch was formed
        ("running", "i4"),
        ("kv_used", "i4"),  # blocks
        ("attention_pairs", "f8"),
    ],
    align=True,
)

SAMPLE = np.dtype(
    [("waiting", "i4"), ("running", "i4"), ("kv_used", "f4"), ("pending_prefill", "f4")]
)  # kv_used as a share of the replica's blocks

ITL_BINS = 10_400
ITL_LOWEST = 1e-6  # s
ITL_GAMMA = 1.002  # bin i holds [ITL_LOWEST * GAMMA**i, ITL_LOWEST * GAMMA**(i+1)): 0.1 % wide


class Event(IntEnum):
    """Order of simultaneous events; equal kinds go by replica or request index."""

    BATCH_END = 0
    HANDOVER = 1  # a request's KV has come, or somebody accepts it who can decode
    FAULT = 2
    BREAKER = 3  # a circuit breaker closes
    TIMEOUT = 4
    FIRST_TOKEN_TIMEOUT = 5
    SCALE = 6  # autoscaling looks at its group; who is let in by a new replica must be seen to be there
    PROVISIONED = 7  # a replica that autoscaling ordered comes into service
    ARRIVAL = 8  # retries too
    FORM = 9  # batches form when all that ends and arrives at an instant is known
    # load samples are taken after every event of their time


class Outcome(IntEnum):
    """Why ``cluster.advance`` returned."""

    DONE = 0  # nothing is left to happen
    PAUSED = 1  # the next event lies beyond the time limit
    ASKING = 2  # control.asking needs a replica from outside
    HAPPENING = 3  # control.happening is about something that the plain loop knows nothing of


class Scheduler(IntEnum):
    VLLM = 0
    SARATHI = 1
    ORCA = 2
    FASTER_TRANSFORMER = 3
    LIGHTLLM = 4
    VLLM_V1 = 5


class Status(IntEnum):
    PENDING = 0  # not arrived
    WAITING = 1
    RUNNING = 2
    FINISHED = 3
    REJECTED = 4  # by admission control
    FAILED = 5  # its replica crashed and no retry was left
    ABORTED = 6  # its client gave up
    RETRYING = 7  # waits for its next attempt
    HELD = 8  # at the router: no replica accepts
    ABORTING = 9  # given up; leaves when its batch or transfer ends
    SENDING = 10  # prefilled; its KV is held there until it has gone to who decodes
    RECEIVED = 11  # its KV has come; waits to be taken into service


class Power(IntEnum):
    """Whether a replica is paid for, and takes requests. All but OFF is paid for."""

    ON = 0
    LEAVING = 1  # finishes what it has, gets nothing new, then it is off
    PROVISIONING = 2  # ordered, not yet in service
    OFF = 3


class ScaleBy(IntEnum):
    """What autoscaling holds near its target."""

    QUEUE = 0  # requests waiting, per replica
    OUTSTANDING = 1  # requests waiting or running, per replica
    KV = 2  # share of KV blocks in use
    SLO = 3  # share of first tokens that are in time


class Fault(IntEnum):
    """What befalls a replica. Equal times go in the order of the list."""

    CRASH = 0
    RECOVER = 1
    SLOW = 2
    DRAIN = 3
    UNDRAIN = 4
    CHECK = 5  # the health check looks
