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


@dataclass(frozen=True)
class RouterInfo:
    """``formula`` is minimised over replicas; ties go to a random one (by the request's coin)."""

    name: str
    kind: Router
    summary: str
    formula: str = ""
    aliases: tuple[str, ...] = ()
    compared: bool = True  # part of ``--routers all``


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
    )
}


def get_router(name: str) -> RouterInfo:
    """Look a router up by name or alias."""
    for info in ROUTERS.values():
        if name == info.name or name in info.aliases:
            return info
    raise unknown("router", name, ROUTERS)
