"""Which replica gets the next request. The catalogue is data; the formulas are in ``heuristics``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from trimtab.errors import unknown


class Router(IntEnum):
    """Kinds known to the compiled loop. OUTSIDE asks Python for every request."""

    OUTSIDE = 0
    RANDOM = 1
    ROUND_ROBIN = 2
    POWER_OF_TWO = 3
    LEAST_OUTSTANDING = 4
    VLLM_DP = 5
    LEAST_PENDING_PREFILL = 6
    LEAST_KV = 7
    LEAST_WORK = 8
    STICKY_SESSION = 9
    REPLAY = 10
    VIDUR_LOR = 11
    # published gateways (``production``, ``prefix_aware``)
    LEAST_BUSY = 12
    LITELLM_LATENCY = 13
    DYNAMO_KV = 14
    LLM_D = 15
    GIE = 16
    LMETRIC = 17
    LLUMNIX = 18
    STACK_LOADAWARE = 19
    STACK_PREFIXAWARE = 20
    STACK_SESSION = 21
    SGLANG = 22
    AIBRIX = 23
    RAY_PREFIX = 24
    PREBLE = 25
    BOUNDED_HASH = 26
    LEARNED = 27  # a trained policy (``learned``)


FIRST_PUBLISHED = Router.LEAST_BUSY  # from here on: routers of production gateways


@dataclass(frozen=True)
class RouterInfo:
    """``formula`` is minimised over replicas; ties go to a random one (by the request's coin).

    ``source`` names where a published formula is from, ``defaults`` the published values of its parameters;
    ``matches`` says that it asks for prefix matches.
    """

    name: str
    kind: Router
    summary: str
    formula: str = ""
    aliases: tuple[str, ...] = ()
    compared: bool = True  # part of ``--routers all``
    source: str = ""
    defaults: str = ""
    matches: bool = False


PUBLISHED = (
    RouterInfo(
        "least-busy",
        Router.LEAST_BUSY,
        "LiteLLM's least-busy: fewest requests in flight, whatever the speed",
        "in flight",
        source="BerriAI/litellm: router_strategy/least_busy.py",
    ),
    RouterInfo(
        "litellm-latency",
        Router.LITELLM_LATENCY,
        "LiteLLM's latency-based: lowest mean of ten latencies per output token; the first nine stay",
        "mean(first nine and the latest of (end - arrival) / output tokens), 0 before the first",
        source="BerriAI/litellm: router_strategy/lowest_latency.py",
        defaults="max_latency_list_size 10, lowest_latency_buffer 0",
    ),
    RouterInfo(
        "dynamo-kv",
        Router.DYNAMO_KV,
        "NVIDIA Dynamo's KV router: blocks to prefill plus blocks in use",
        "(pending_prefill + prompt - match) / block + kv_used",
        source="ai-dynamo/dynamo: lib/kv-router/src/scheduling/selector/default.rs",
        defaults="overlap_score_credit 1, prefill_load_scale 1, router.temperature 0 (argmin)",
        matches=True,
    ),
    RouterInfo(
        "llm-d",
        Router.LLM_D,
        "llm-d's scheduler with precise prefixes: weighted scorers in [0, 1], the highest sum wins",
        "-(2 match/prompt + (max waiting - waiting)/(max - min) + 1 - kv_used/kv_total)",
        source="llm-d precise-prefix profile; gateway-api-inference-extension: plugins/scorer",
        defaults="router.weights [prefix 2, queue 1, kv 1]",
        matches=True,
    ),
    RouterInfo(
        "gie",
        Router.GIE,
        "Gateway API inference extension: the scorers of llm-d with its own default weights",
        "-(3 match/prompt + 2 (max waiting - waiting)/(max - min) + 2 (1 - kv_used/kv_total))",
        source="kubernetes-sigs/gateway-api-inference-extension: pkg/epp/scheduling",
        defaults="router.weights [prefix 3, queue 2, kv 2]",
        matches=True,
    ),
    RouterInfo(
        "lmetric",
        Router.LMETRIC,
        "LMetric: prompt tokens to compute times requests in the batch; nothing to tune",
        "(pending_prefill + prompt - match) * (in flight + 1)",
        source="arXiv 2603.15202; sgl-project/sglang: policies/lmetric.rs",
        matches=True,
    ),
    RouterInfo(
        "llumnix",
        Router.LLUMNIX,
        "Llumnix's dispatch by freeness: most free blocks per request (no migration)",
        "-(kv_total - kv_used - pending_prefill/block) / in flight, -inf when empty",
        source="AlibabaPAI/llumnix: load_computation.py, remaining_steps",
    ),
    RouterInfo(
        "stack-loadaware",
        Router.STACK_LOADAWARE,
        "vLLM production-stack's loadaware: matched share against load in excess of the mean",
        "beta * (in flight - mean) / max(1, mean) - match/prompt",
        source="vllm-project/production-stack: PR 1035",
        defaults="beta 1",
        matches=True,
    ),
    RouterInfo(
        "stack-prefixaware",
        Router.STACK_PREFIXAWARE,
        "vLLM production-stack's prefixaware: longest match, at random without one; blind to load",
        "-match",
        source="vllm-project/production-stack: routing_logic.py",
        matches=True,
    ),
    RouterInfo(
        "stack-session",
        Router.STACK_SESSION,
        "vLLM production-stack's session: hashed; without a session the replica with fewest requests so far",
        source="vllm-project/production-stack: routing_logic.py",
    ),
    RouterInfo(
        "sglang-cache-aware",
        Router.SGLANG,
        "SGLang's gateway: longest match while the load is balanced, else fewest in flight",
        "in flight, if max - min > 64 and max > 1.5 min, or no match > 0.3 prompt; else -match",
        aliases=("cache-aware",),
        source="sgl-project/sglang: sgl-model-gateway/src/policies/cache_aware.rs, defaults of its command",
        defaults="cache_threshold 0.3, balance_abs 64, balance_rel 1.5 (as a library: 0.5, 32, 1.1)",
        matches=True,
    ),
    RouterInfo(
        "aibrix-prefix",
        Router.AIBRIX,
        "AIBrix's prefix-cache: longest match among replicas that are not far above the mean load",
        "-match where in flight <= mean + sigma (the least if max - min > 8); else in flight",
        source="vllm-project/aibrix: pkg/plugins/gateway/algorithms/prefix_cache.go",
        defaults="imbalance 8, sigmas 1",
        matches=True,
    ),
    RouterInfo(
        "ray-prefix",
        Router.RAY_PREFIX,
        "Ray Serve's prefix-aware: longest match, or the least cached text; two choices when unbalanced",
        "two choices, if max - min in flight > 10; else -match, if >= 0.1 prompt; else prompt tokens sent",
        source="ray-project/ray: llm/_internal/serve/request_router/prefix_aware",
        defaults="imbalanced_threshold 10 (infinite in the newest), match_rate_threshold 0.1, no eviction",
        matches=True,
    ),
    RouterInfo(
        "preble",
        Router.PREBLE,
        "Preble's E2: exploit where over half of the prompt is cached, unless far busier; else explore",
        "(pending_prefill + prompt - match) * prefill_s + expected_decode * decode_s, among the best matches",
        source="WukLab/preble: global_scheduler_with_time.py (simplified)",
        defaults="exploit if cached > missed; explore if 1.5 times the least cost or more",
        matches=True,
    ),
    RouterInfo(
        "bounded-hash",
        Router.BOUNDED_HASH,
        "consistent hashing with bounded loads, of the session or else the prompt's beginning",
        "-hash(key, replica) where in flight + 1 <= ceil(1.25 mean)",
        aliases=("chwbl",),
        source="Mirrokni, Thorup, Zadimoghaddam (2018); substratusai/kubeai: PrefixHash",
        defaults="load factor 1.25",
    ),
)

ROUTERS: dict[str, RouterInfo] = {
    info.name: info
    for info in (
        RouterInfo("random", Router.RANDOM, "uniformly at random (by speed on mixed hardware)"),
        RouterInfo("round-robin", Router.ROUND_ROBIN, "each replica in turn", aliases=("rr", "round_robin")),
        RouterInfo(
            "power-of-two",
            Router.POWER_OF_TWO,
            "the less loaded of d random replicas (Envoy, Ray Serve)",
            "outstanding among `choices` random replicas, the first unlike the others",
            aliases=("p2c", "power_of_two"),
        ),
        RouterInfo(
            "least-outstanding",
            Router.LEAST_OUTSTANDING,
            "fewest requests waiting or running (join the shortest queue)",
            "(waiting + running + 1) / speed",
            aliases=("lor", "jsq", "least-request"),
        ),
        RouterInfo(
            "vllm-dp",
            Router.VLLM_DP,
            "vLLM's data-parallel load balancer",
            "(4 * waiting + running + 1) / speed",
            aliases=("4w+r",),
        ),
        RouterInfo(
            "least-pending-prefill",
            Router.LEAST_PENDING_PREFILL,
            "fewest prompt tokens still to compute, this request's included",
            "(pending_prefill + prompt) / speed",
        ),
        RouterInfo(
            "least-kv",
            Router.LEAST_KV,
            "smallest share of KV blocks in use, queued prompts counted",
            "(kv_used + blocks of queued prompts + blocks of this prompt) / kv_total",
        ),
        RouterInfo(
            "least-work",
            Router.LEAST_WORK,
            "least estimated seconds of work; outputs by their expected length",
            "pending_prefill * prefill_s + expected_decode * decode_s",
        ),
        RouterInfo(
            "sticky-session",
            Router.STICKY_SESSION,
            "a session stays where its first request went (least outstanding)",
            aliases=("session",),
        ),
        RouterInfo(
            "vidur-lor",
            Router.VIDUR_LOR,
            "Vidur's LOR: waiting requests only, ties to the lowest index (packs replica 0)",
            "waiting",
            compared=False,
        ),
        RouterInfo(
            "replay",
            Router.REPLAY,
            "the replicas given in router.assignment",
            compared=False,
        ),
        *PUBLISHED,
        RouterInfo(
            "learned",
            Router.LEARNED,
            "a small network trained by trimtab train; router.policy is its file, by default the shipped one",
            "-score(features of the replica, of the others, of the request)",
            aliases=("ppo",),
            matches=True,
        ),
    )
}


def get_router(name: str) -> RouterInfo:
    """Look a router up by name or alias."""
    for info in ROUTERS.values():
        if name == info.name or name in info.aliases:
            return info
    raise unknown("router", name, ROUTERS)
