"""Where the measures of a run should stay, by profile, and how a symptom is told.

The limits of the profile ``default`` are engineering priors: OpenRLHF's measures in healthy runs, and the
runs of examples/rlhf_cpu. Those of ``guide`` are the tuning guide's that the project began with; its table
calls 0.1 to 0.3 of clipped tokens normal, where healthy runs clip below 0.05, and a divergence of 0.5 per
token, where the policy has long left its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from trimtab.rlhf.log_files import Point

Measures = dict[str, list[Point]]
INF = math.inf


@dataclass(frozen=True)
class Symptom:
    """A pattern, the point that shows it, and what to change; ``fix`` has {flag}s to be spelt."""

    name: str
    cause: str
    confidence: str
    point: Point
    evidence: str
    fix: tuple[str, ...]
    source: str = ""
    hides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Range:
    """Where the median of a measure over the last quarter of a run should lie."""

    name: str
    measure: str
    least: float
    most: float
    cause: str
    fix: tuple[str, ...]
    hides: tuple[str, ...] = ()
    source: str = ""
    confidence: str = "medium"


GENTLER = (
    "lower {actor_learning_rate}, to a third or less",
    "lower {max_epochs}, or raise {train_batch_size}: fewer steps on the same samples",
    "lower {eps_clip} to 0.1; {eps_clip_low_high} 0.2 0.28 is looser, not more careful",
)
NEARER = ("raise {init_kl_coef}, threefold", "lower {actor_learning_rate}")
SCALED = ("normalise rewards: {normalize_reward}, with a reward model that was trained with it",
          "narrow {reward_clip_range}")  # fmt: skip
CORRECTED = (  # the flag was replaced in 0.11.2
    "correct for the gap between rollout and training: {enable_vllm_is_correction}",
    "correct for the gap between rollout and training: {algo.advantage.is_correction_level} token",
)
GUIDE = "the tuning guide's range"
DEFAULT_RANGES = (
    Range("updates-too-large", "ppo_clip_ratio", -INF, 0.05,
          "each update moves the policy so far that much of it is clipped away", GENTLER,
          hides=("kl-high", "gradient-growing"), source="prior: healthy runs clip 0.001 to 0.05"),
    Range("kl-high", "kl", -INF, 0.1, "the policy has gone far from the reference model", NEARER,
          source="prior: 0.1 nats per token is already far"),
    Range("policy-loss-scale", "policy_loss", -0.5, 0.5,
          "advantages are out of scale; normalised ones give a policy loss near 0", SCALED, source=GUIDE),
)  # fmt: skip
GUIDE_RANGES = (
    Range("guide-policy-loss", "policy_loss", -0.5, 0.5, "policy_loss is outside -0.5 to 0.5", GENTLER,
          source=GUIDE),
    Range("guide-value-loss", "critic_loss", 0.0, 10.0,
          "value_loss (OpenRLHF's critic_loss) is outside 0 to 10; its scale is that of the rewards", SCALED,
          source=GUIDE),
    Range("guide-kl", "kl", 0.0, 0.5, "kl is outside 0 to 0.5", NEARER, source=GUIDE),
    Range("guide-clip-ratio", "ppo_clip_ratio", -INF, 0.3,
          "clip_ratio (OpenRLHF's ppo_clip_ratio) is above 0.3", GENTLER, source=GUIDE),
    Range("guide-clip-ratio-low", "ppo_clip_ratio", 0.1, INF,
          "clip_ratio (ppo_clip_ratio) is below 0.1; so it is in healthy runs, and the guide misleads",
          ("change nothing for its sake",), source=GUIDE, confidence="low"),
    Range("guide-entropy", "entropy_loss", 1e-9, INF, "entropy is not above 0",
          ("raise {entropy_loss_coef}", "raise {temperature} to 1"), source=GUIDE),
)  # fmt: skip
PROFILES: dict[str, tuple[Range, ...]] = {"default": DEFAULT_RANGES, "guide": GUIDE_RANGES}


def early(points: list[Point]) -> list[float]:
    """Values of the first quarter."""
    return [point.value for point in points[: max(1, len(points) // 4)]]


def late(points: list[Point]) -> list[float]:
    """Values of the last quarter."""
    return [point.value for point in points[-max(1, len(points) // 4) :]]


def shown(name: str, points: list[Point], about: str) -> str:
    return f"{name} {points[-1].value:.3g} at step {points[-1].step}; {about}"


def outside(limits: Range, measures: Measures) -> Iterator[Symptom]:
    points = measures.get(limits.measure)
    if points is None:
        return
    typical = median(late(points))
    if limits.least <= typical <= limits.most:
        return
    span = f"{limits.least:g} to {limits.most:g}"
    if limits.least == -INF:
        span = f"at most {limits.most:g}"
    elif limits.most == INF:
        span = f"at least {limits.least:g}"
    far = typical > 2.0 * limits.most and limits.most > 0
    seen = next((point for point in points if not limits.least <= point.value <= limits.most), points[-1])
    evidence = (
        f"{limits.measure} {seen.value:.3g} at step {seen.step}, {typical:.3g} in the last quarter; {span}"
    )
    yield Symptom(
        limits.name, limits.cause, "high" if far else limits.confidence, seen, evidence, limits.fix,
        limits.source, limits.hides,
    )  # fmt: skip
