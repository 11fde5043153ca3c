"""The pieces of PPO for language models, each usable alone: KL, rewards, advantages, clipped losses.

Arrays are (sequences, tokens) unless said otherwise, NumPy or torch, and results are in the library of
what was given; with torch, gradients flow. A ``mask`` has the same shape and is 1 where a token was
generated. Formulas are those of OpenRLHF, and tests hold them to its own code; ``trimtab.learn`` trains
routers with the same pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from trimtab.errors import TrimtabError, unknown

Array = Any  # NumPy's or torch's; they share no type

KL_KINDS = ("k1", "k2", "k3")
GROUP_ESTIMATORS = ("grpo", "rloo", "reinforce_baseline", "dr_grpo")
ESTIMATORS = ("gae", "reinforce", *GROUP_ESTIMATORS)
NORMALIZED = ("gae", "reinforce", "reinforce_baseline")  # over the whole batch, as OpenRLHF does
MOST_ERROR = 0.2  # of the adaptive controller: Ziegler et al. 2019


# --- how far from the reference -----------------------------------------------------------------


def approx_kl(log_prob: Array, reference: Array, kind: str = "k1", bound: float | None = 10.0) -> Array:
    """KL(policy | reference) in nats per token, estimated from the tokens that the policy drew.

    Schulman 2020 (joschu.net/blog/kl-approx.html). With d = log_prob - reference: k1 is d, unbiased and
    of either sign; k2 is d^2 / 2; k3 is exp(-d) - 1 + d, unbiased and never negative.

    Parameters
    ----------
    log_prob, reference : log-probabilities of the drawn tokens, any shape
    bound : each token's estimate is held within plus and minus this; None leaves it

    Raises
    ------
    TrimtabError
        for an unknown kind.
    """
    difference = log_prob - reference
    if kind == "k1":
        estimate = difference
    elif kind == "k2":
        estimate = difference**2 / 2.0
    elif kind == "k3":
        estimate = array_namespace(difference).exp(-difference) - 1 + difference
    else:
        raise unknown("KL estimator", kind, KL_KINDS)
    return estimate if bound is None else estimate.clip(-bound, bound)


def adapted(coefficient: float, kl: float, target: float, horizon: float, steps: int = 1) -> float:
    """The KL coefficient after ``steps`` samples whose mean divergence was ``kl``: Ziegler et al. 2019.

    ``target`` and ``kl`` must be on one scale: per token, or summed over a sequence.
    """
    error = min(max(kl / target - 1.0, -MOST_ERROR), MOST_ERROR)
    return coefficient * (1.0 + error * steps / horizon)


@dataclass
class FixedKL:
    """A KL coefficient that stays."""

    coefficient: float

    def update(self, kl: float, steps: int = 1) -> float:
        """The coefficient, whatever was measured."""
        return self.coefficient


@dataclass
class AdaptiveKL:
    """A KL coefficient that grows while the divergence is above ``target``, and shrinks while below.

    ``target`` is on the scale of what ``update`` is given, which in OpenRLHF is the mean per token: 0.01
    to 0.1 is a target there, and 6, of the first papers, was a sum over a sequence.

    Raises
    ------
    TrimtabError
        for a target or horizon that is not positive, and in ``update`` for so many samples at once that
        the coefficient could reach zero or change sign.
    """

    coefficient: float
    target: float
    horizon: float = 10_000

    def __post_init__(self) -> None:
        for name in ("target", "horizon"):
            if not getattr(self, name) > 0:
                raise TrimtabError(f"KL {name} must be above 0; given {getattr(self, name):g}")

    def update(self, kl: float, steps: int = 1) -> float:
        """The coefficient after ``steps`` samples of mean divergence ``kl``."""
        if MOST_ERROR * steps >= self.horizon:
            raise TrimtabError(
                f"{steps} samples an update against a KL horizon of {self.horizon:g} could turn the "
                f"coefficient negative; the horizon must be above {MOST_ERROR * steps:g}"
            )
        self.coefficient = adapted(self.coefficient, kl, self.target, self.horizon, steps)
        return self.coefficient


# --- rewards ------------------------------------------------------------------------------------


def normalized_rewards(rewards: Array, mean: float, std: float) -> Array:
    """Scores of a reward model in standard deviations of those that it was trained on."""
    return (rewards - mean) / max(std, 1e-8)


def token_rewards(
    rewards: Array, kl: Array, coefficient: float, mask: Array, clip: tuple[float, float] | None = None
) -> Array:
    """Rewards (sequences, tokens): minus ``coefficient`` times the KL, and the score at the last token.

    Parameters
    ----------
    rewards : (sequences,) scores, held within ``clip`` where it is given
    kl : (sequences, tokens) of ``approx_kl``
    """
    xp = array_namespace(kl, rewards)
    if clip is not None:
        rewards = rewards.clip(clip[0], clip[1])
    position = xp.arange(kl.shape[1])
    last = xp.max(xp.where(mask > 0, position, -1), axis=1)
    scores = xp.where(position == last[:, None], rewards[:, None], 0.0 * kl)
    return scores - max(coefficient, 0.0) * kl


def group_rewards(rewards: Array, estimator: str) -> Array:
    """Scores (prompts, samples) against the other samples of their prompt.

    grpo: (score - mean) / standard deviation (Shao et al. 2024); dr_grpo and reinforce_baseline: score -
    mean (Liu et al. 2025, Hu 2025), the latter normalised over the batch afterwards; rloo: score - mean of
    the others (Ahmadian et al. 2024).

    Raises
    ------
    TrimtabError
        for an unknown estimator, and for a single sample per prompt.
    """
    if estimator not in GROUP_ESTIMATORS:
        raise unknown("group estimator", estimator, GROUP_ESTIMATORS)
    samples = rewards.shape[-1]
    if samples < 2:
        raise TrimtabError(f"{estimator} compares samples of a prompt; it needs at least 2, given {samples}")
    xp = array_namespace(rewards)
    if estimator == "rloo":
        others = (xp.sum(rewards, axis=-1, keepdims=True) - rewards) / (samples - 1)
        return rewards - others
    centred = rewards - xp.mean(rewards, axis=-1, keepdims=True)
    if estimator == "grpo":
        return centred / (xp.std(rewards, axis=-1, correction=1, keepdims=True) + 1e-9)
    return centred


# --- advantages ---------------------------------------------------------------------------------


def gae(rewards: Array, values: Array, gamma: float, lam: float, mask: Array = None) -> Array:
    """Generalised advantage estimates (Schulman et al. 2016) along the last axis; nothing follows its end.

    Returns are advantages + values. Tokens outside ``mask`` count as zero.
    """
    if mask is not None:
        rewards, values = rewards * mask, values * mask
    steps, total, following = [], 0.0, 0.0
    for step in range(rewards.shape[-1] - 1, -1, -1):
        delta = rewards[..., step] + gamma * following - values[..., step]
        total = delta + gamma * lam * total
        steps.append(total)
        following = values[..., step]
    return _forwards(steps, rewards)


def rewards_to_go(rewards: Array, gamma: float, mask: Array = None) -> Array:
    """Discounted sums of a reward and those that follow it, along the last axis."""
    if mask is not None:
        rewards = rewards * mask
    steps, total = [], 0.0
    for step in range(rewards.shape[-1] - 1, -1, -1):
        total = rewards[..., step] + gamma * total
        steps.append(total)
    return _forwards(steps, rewards)


def _forwards(steps: list[Array], like: Array) -> Array:
    return array_namespace(like).stack(steps[::-1], axis=-1) if steps else like


def normalized_advantages(advantages: Array, mask: Array, divide: bool = True) -> Array:
    """Advantages less their mean and, with ``divide``, over their deviation, both over all masked tokens."""
    centred = advantages - masked_mean(advantages, mask)
    if not divide:
        return centred
    return centred / masked_mean(centred**2, mask).clip(1e-8, None) ** 0.5


def advantages_of(
    estimator: str,
    rewards: Array,
    kl: Array,
    mask: Array,
    *,
    values: Array = None,
    samples: int = 1,
    coefficient: float = 0.01,
    clip: tuple[float, float] | None = (-10.0, 10.0),
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Array, Array]:
    """(advantages, returns) of a batch, from scores to the normalisation that belongs to the estimator.

    Parameters
    ----------
    estimator : one of ESTIMATORS; "gae" needs ``values``, those of a group ``samples`` of at least 2
    rewards : (sequences,) scores, the samples of a prompt next to each other
    gamma, lam : discount per token, and GAE's lambda; the group estimators know no discount

    Raises
    ------
    TrimtabError
        for an unknown estimator, missing values, or sequences that are no whole groups.
    """
    if estimator not in ESTIMATORS:
        raise unknown("advantage estimator", estimator, ESTIMATORS)
    if estimator in GROUP_ESTIMATORS:
        if rewards.shape[0] % samples:
            raise TrimtabError(f"{rewards.shape[0]} sequences are no groups of {samples} samples")
        rewards, gamma = group_rewards(rewards.reshape(-1, samples), estimator).reshape(-1), 1.0
    earned = token_rewards(rewards, kl, coefficient, mask, clip)
    if estimator == "gae":
        if values is None:
            raise TrimtabError("gae needs the critic's values; the other estimators work without a critic")
        found = gae(earned, values, gamma, lam, mask)
        returns = found + values * mask
    else:
        found = returns = rewards_to_go(earned, gamma, mask)
    return (normalized_advantages(found, mask) if estimator in NORMALIZED else found), returns


# --- losses -------------------------------------------------------------------------------------


def surrogate(
    ratio: Array, advantage: Array, clip_low: float, clip_high: float, dual_clip: float = 0.0
) -> Array:
    """What a token gains: its ratio to the old policy times its advantage, clipped (Schulman et al. 2017).

    A larger ``clip_high`` than ``clip_low`` is DAPO's (Yu et al. 2025) and looser, not more careful.
    ``dual_clip`` above 1 bounds the loss of a bad token at that times its advantage (Ye et al. 2020).
    """
    xp = array_namespace(ratio, advantage)
    gain = xp.minimum(ratio * advantage, ratio.clip(1 - clip_low, 1 + clip_high) * advantage)
    if dual_clip > 1.0:
        gain = xp.where(advantage < 0, xp.maximum(gain, dual_clip * advantage), gain)
    return gain


def policy_loss(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    mask: Array,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
) -> tuple[Array, Array, Array]:
    """(loss, share of tokens that the clip binds, mean k1 KL from the old policy), means over all tokens."""
    xp = array_namespace(log_prob)
    ratio = xp.exp(log_prob - old_log_prob)
    loss = -masked_mean(surrogate(ratio, advantage, clip_low, clip_high, dual_clip), mask)
    bound = ratio.clip(1 - clip_low, 1 + clip_high) * advantage < ratio * advantage
    return loss, masked_mean(1.0 * bound, mask), masked_mean(old_log_prob - log_prob, mask)


def value_error(value: Array, old_value: Array, target: Array, clip: float | None = None) -> Array:
    """Squared error per token; with ``clip`` the larger of it and that of a value held near the old one."""
    error = (value - target) ** 2
    if clip is None:
        return error
    near = old_value + (value - old_value).clip(-clip, clip)
    return array_namespace(value).maximum(error, (near - target) ** 2)


def value_loss(value: Array, old_value: Array, target: Array, mask: Array, clip: float | None = 0.5) -> Array:
    """Half the mean of ``value_error`` over all tokens."""
    return 0.5 * masked_mean(value_error(value, old_value, target, clip), mask)


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean over the tokens where ``mask`` is 1, of all sequences together."""
    xp = array_namespace(values)
    return xp.sum(values * mask) / xp.sum(mask)
