"""The measures of training: their names, which never change, where they should stay, and a watch on them.

Names are CleanRL's for PPO where it has them; a test holds them to what is measured. The ranges begin with
those of the documents that started this project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trimtab.learn.presets import TrainConfig

MEASURES: dict[str, str] = {
    "charts/decisions": "routing decisions trained on so far",
    "charts/learning_rate": "of Adam",
    "charts/reward": "mean per decision, before normalisation",
    "charts/reward_std": "its standard deviation within an episode",
    "charts/temperature": "of the softmax that actions are drawn from",
    "charts/kl_ref_coef": "weight of the KL divergence from the cloned policy",
    "losses/policy_loss": "clipped surrogate",
    "losses/value_loss": "half the squared error of the critic, clipped",
    "losses/entropy": "nats per decision",
    "losses/approx_kl": "between the policy before and after the update",
    "losses/clipfrac": "share of decisions whose ratio was clipped",
    "losses/explained_variance": "of returns by the critic; 1 is perfect, 0 is as good as the mean",
    "losses/grad_norm": "before clipping",
    "kl_ref": "nats per decision from the cloned policy",
    "route/entropy": "entropy over that of a coin, 0 to 1",
    "route/certainty": "mean probability of the likeliest replica",
    "route/share_max": "share of the busiest replica, over fleets of the commonest size",
    "route/share_max_times_replicas": "the same times the number of replicas",
    "route/share_max_equal": "busiest share times replicas, over fleets of equal replicas; 1 is even",
    "queue/variance": "of outstanding requests over replicas, as decisions found them",
    "reward/late_s": "mean time to the first token, s",
    "reward/delay_to_others_s": "mean delay that a prompt causes to others, request-seconds",
    "reward/missed": "share of requests that missed the SLO",
    "reward/lost": "share of requests that were not served",
    "reward/spread": "(most - least) / most outstanding over replicas",
    "reward/variation": "coefficient of variation of outstanding over replicas",
    "eval/p99_ttft_ratio": "held-out: p99 time to first token over least-pending-prefill's, geometric mean",
    "eval/p99_ttft_ratio_worst": "the same, of the worst scenario",
    "eval/goodput": "held-out: share of requests that met the SLO",
    "eval/share_max_equal": "held-out: as route/share_max_equal",
    "time/sps": "routing decisions trained per second, everything included",
    "time/sps_simulated": "routing decisions simulated per second with the policy in the loop",
}
EVOLUTION: dict[str, str] = {
    "evolve/excess": "mean over its trials: logarithm of the tail over the best rival's, and what it cost",
    "evolve/excess_hardest": "the same, of the hardest scenario of each trial",
    "evolve/step": "mean change of a weight",
}
MOST_SHARES = 16
COLUMNS = ("update", *MEASURES, *(f"route/share_{replica}" for replica in range(MOST_SHARES)))


@dataclass(frozen=True)
class Normal:
    """Where a measure should stay, why it would leave, and which parameters bring it back."""

    measure: str
    least: float
    most: float
    cause: str
    change: str
    grace: int = 0  # updates before it counts


INF = math.inf
NORMAL = (
    Normal("route/share_max_equal", 0.0, 1.3, "one replica is sent more than its share of an equal fleet",
           "raise ppo.kl_ref_coef_initial, reward.balance_penalty_weight or ppo.bias_rate"),
    Normal("route/entropy", 0.02, INF, "the policy has stopped exploring",
           "raise ppo.entropy_coef, ppo.entropy_min or ppo.min_temperature"),
    Normal("losses/approx_kl", -INF, 0.5, "updates are too large",
           "lower ppo.learning_rate, ppo.epochs or ppo.target_kl"),
    Normal("kl_ref", -INF, 0.5, "the policy has left the cloned one",
           "raise ppo.kl_ref_coef_final or ppo.kl_ref_decay_steps"),
    Normal("losses/clipfrac", -INF, 0.3, "most of an update is clipped away",
           "lower ppo.learning_rate or ppo.epochs"),
    Normal("losses/policy_loss", -0.5, 0.5, "advantages are out of scale",
           "set ppo.normalize_advantages, lower ppo.reward_clip"),
    Normal("losses/value_loss", 0.0, 10.0, "returns are out of scale",
           "set ppo.normalize_rewards, lower ppo.reward_clip or ppo.gamma"),
    Normal("losses/explained_variance", 0.0, INF, "the critic is worse than the mean",
           "raise ppo.value_coef or ppo.stabilization_updates, or set ppo.plays to 2 or more", grace=20),
)  # fmt: skip


@dataclass
class Watch:
    """Says once that a measure left its range, and again only after it was back."""

    config: TrainConfig
    outside: set[str] = field(default_factory=set)

    def look(self, update: int, facts: dict[str, float]) -> list[str]:
        """One line per measure that is newly outside."""
        lines = []
        for normal in NORMAL:
            value = facts.get(normal.measure, 0.0 if normal.least <= 0.0 else normal.least)
            if update < normal.grace or self._idle(normal.measure, value):
                continue
            if normal.least <= value <= normal.most:
                self.outside.discard(normal.measure)
            elif normal.measure not in self.outside:
                self.outside.add(normal.measure)
                lines.append(_complaint(update, normal, value))
        return lines

    def _idle(self, measure: str, value: float) -> bool:
        """Measured on nothing, or not used: with several plays the critic is not asked."""
        if measure == "losses/explained_variance" and self.config.ppo.plays > 1:
            return True
        return math.isnan(value) and measure in ("route/share_max_equal", "losses/explained_variance")


def _complaint(update: int, normal: Normal, value: float) -> str:
    span = f"{normal.least:g} to {normal.most:g}"
    if normal.least == -INF or (normal.least == 0.0 and normal.most < INF):
        span = f"at most {normal.most:g}"
    elif normal.most == INF:
        span = f"at least {normal.least:g}"
    return (
        f"update {update}: {normal.measure} is {value:.3g}, normal is {span}: {normal.cause}; {normal.change}"
    )
