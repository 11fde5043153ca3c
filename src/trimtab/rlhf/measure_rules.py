"""What the measures of a run say: patterns that betray a cause, beside the ranges of a profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import correlation, fmean, median, stdev

from trimtab.rlhf.log_files import Point
from trimtab.rlhf.measure_ranges import (
    CORRECTED,
    GENTLER,
    PROFILES,
    SCALED,
    Measures,
    Symptom,
    early,
    late,
    outside,
    shown,
)

LEAST_STEPS = 5  # fewer say nothing about a trend
LEAST_FOR_TREND = 12


def symptoms(measures: Measures, profile: str) -> list[Symptom]:
    """What the measures of a run show, ranges first."""
    usable = {
        name: points
        for name, points in measures.items()
        if len(points) >= LEAST_STEPS and all(math.isfinite(point.value) for point in points)
    }
    found = list(not_a_number(measures))
    found += [symptom for limits in PROFILES[profile] for symptom in outside(limits, usable)]
    for rule in RULES:
        found += list(rule(usable))
    return found


def not_a_number(measures: Measures) -> Iterator[Symptom]:
    """Any measure that is not finite; the earliest is nearest to the cause."""
    broken = [
        (point.step, name, point)
        for name, points in measures.items()
        for point in points
        if not math.isfinite(point.value)
    ]
    if broken:
        step, name, point = min(broken, key=lambda each: each[:2])
        yield Symptom(
            "not-a-number",
            "the computation broke down: a measure is not a number",
            "high",
            point,
            f"{name} is {point.value:g} at step {step}",
            (
                "lower {actor_learning_rate} and {critic_learning_rate}",
                "train in bf16, not fp16: {param_dtype} bf16",
                *CORRECTED,
                "look at the samples of this step: empty responses, rewards that are not finite",
            ),
            "verl FAQ",
        )


def implied_coefficients(measures: Measures) -> list[tuple[Point, float]]:
    """The KL coefficient that rewards, returns and divergence imply, at each step where they can tell.

    A sequence's return is its reward less the coefficient times its summed divergence. Estimators that
    compare samples of a prompt centre the reward first; then returns do not follow rewards.
    """
    names = ("reward", "return", "kl", "response_length")
    if not all(name in measures for name in names):
        return []
    columns = [{point.step: point for point in measures[name]} for name in names]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    rows = [tuple(column[step] for column in columns) for step in steps]
    if len(rows) < LEAST_FOR_TREND:
        return []
    rewards, returns = ([row[column].value for row in rows] for column in (0, 1))
    if min(stdev(rewards), stdev(returns)) == 0.0:
        return []
    centred = "group_reward_std" in measures and correlation(rewards, returns) < 0.5
    found = []
    for reward, gained, kl, length in rows:
        paid = (0.0 if centred else reward.value) - gained.value
        total = kl.value * length.value
        if kl.value > 0.002 and total > 0.0:
            found.append((kl, paid / total))
    return found


def kl_target_scale(measures: Measures) -> Iterator[Symptom]:
    """An adaptive coefficient that fades while the divergence grows: its target is out of reach."""
    implied = implied_coefficients(measures)
    if len(implied) < LEAST_FOR_TREND - 4:
        return
    quarter = len(implied) // 4
    first = median(value for _, value in implied[:quarter])
    last = median(value for _, value in implied[-quarter:])
    kl = measures["kl"]
    # With the KL in the loss, returns hold none of it, and what is implied is rounding.
    if first < 1e-4 or last > 0.5 * first or median(late(kl)) <= median(early(kl)):
        return
    point = implied[-1][0]
    yield Symptom(
        "kl-target-scale",
        "the adaptive KL coefficient fades although the divergence grows: its target is on another scale. "
        "6 is a sum over a sequence; OpenRLHF compares it with a mean per token",
        "high",
        point,
        f"kl {point.value:.3g} per token at step {point.step}, while the coefficient that rewards and "
        f"returns imply fell from {first:.2g} to {last:.2g}",
        (
            "leave {kl_target} out, so that {init_kl_coef} stays",
            "or set {kl_target} to 0.01 to 0.1 nats per token",
            "keep 0.2 x {rollout_batch_size} x {n_samples_per_prompt} below {kl_horizon}",
        ),
        "OpenRLHF kl_controller.py: its own note calls the adaptive controller incompatible",
        hides=("kl-high", "guide-kl"),
    )


def no_kl_penalty(measures: Measures) -> Iterator[Symptom]:
    """A divergence of exactly 0 throughout: there is no reference model.

    Silent where rewards lie within 0 and 1, as checked answers have them: there it is often meant (DAPO).
    """
    kl, rewards = measures.get("kl"), measures.get("reward")
    if kl is None or rewards is None or any(point.value != 0.0 for point in kl):
        return
    if all(0.0 <= point.value <= 1.0 for point in rewards) or len({point.value for point in rewards}) == 1:
        return
    yield Symptom(
        "no-kl-penalty",
        "nothing holds the policy near its start: with a KL coefficient of 0 there is no reference model, "
        "and a learned reward is soon exploited",
        "medium",
        kl[-1],
        f"kl is exactly 0 in all {len(kl)} steps while reward goes from "
        f"{rewards[0].value:.3g} to {rewards[-1].value:.3g}",
        ("set {init_kl_coef} to 0.01, more where the reward model is weak",),
        "OpenRLHF: no reference group for init_kl_coef <= 0",
    )


def sampling_differs(measures: Measures) -> Iterator[Symptom]:
    """Rollout's log-probabilities above training's: drawn from a part of the distribution, or rounded."""
    points = measures.get("vllm_kl")
    if points is None or (typical := median(point.value for point in points)) <= 0.01:
        return
    if typical > 0.03 and points[0].value > 0.5 * typical:
        yield Symptom(
            "sampling-narrowed",
            "samples come from a narrower distribution than the one that is trained: top_p, top_k or min_p; "
            "the tail that is never drawn is never corrected",
            "high",
            points[0],
            f"vllm_kl {points[0].value:.3g} at step {points[0].step}, {typical:.3g} throughout, as if only "
            f"{math.exp(-typical):.2f} of the probability were drawn from",
            (
                "set {top_p} 1.0 and no top-k; temper with {temperature}, which training knows of",
                *CORRECTED,
            ),
            "OpenRLHF: top_p is not applied to training log-probabilities",
        )
        return
    yield Symptom(
        "rollout-precision",
        "vLLM and training disagree on the same tokens: kernels or precision differ",
        "medium",
        points[-1],
        shown("vllm_kl", points, f"{typical:.3g} in the median; at most 0.01"),
        (*CORRECTED, "run both in the same precision: {param_dtype}", "disable cascade attention in vLLM"),
        "verl FAQ: above 0.01 is a precision problem",
    )


def kl_negative(measures: Measures) -> Iterator[Symptom]:
    """The mean of k1 is a divergence, which is never negative when sampled from the policy itself."""
    points = measures.get("kl")
    if points is None or median(late(points)) > -0.005:
        return
    yield Symptom(
        "kl-negative",
        "the divergence is negative, which it cannot be: samples are not drawn from the policy in training",
        "high",
        points[-1],
        shown("kl", points, f"{median(late(points)):.3g} in the last quarter"),
        (
            "set {top_p} 1.0, no top-k, and the same {temperature} in every part",
            "check that reference and actor begin with the same weights",
        ),
        "TRL's warning of negative KL",
        hides=("guide-kl",),
    )


def entropy_collapse(measures: Measures) -> Iterator[Symptom]:
    """Entropy below a fifth of what it was."""
    points = measures.get("entropy_loss")
    if points is None or median(late(points)) > 0.2 * median(early(points)):
        return
    yield Symptom(
        "entropy-collapse",
        "the policy says almost the same every time, and learns no more",
        "high",
        points[-1],
        shown("entropy_loss", points, f"{median(early(points)):.3g} at first; 80 % are gone"),
        (
            "give {entropy_loss_coef} a small weight, 0.001",
            "raise {init_kl_coef}",
            "let rare tokens rise: {eps_clip_low_high} 0.2 0.28 (DAPO)",
            "keep {temperature} at 1",
        ),
        "prior",
        hides=("guide-entropy",),
    )


def samples_cut(measures: Measures) -> Iterator[Symptom]:
    """Many samples end at the greatest length."""
    for name in ("truncated", "response_clip_ratio"):
        points = measures.get(name)
        if points is not None and median(late(points)) > 0.2:
            yield Symptom(
                "samples-cut",
                "many samples are cut off at the greatest length, and judged without their end",
                "medium",
                points[-1],
                shown(name, points, "above 0.2 in the last quarter"),
                (
                    "raise {generate_max_len|max_new_tokens}",
                    "discourage length: {overlong_buffer_len}",
                    "check the prompt's format and that the end token is trained",
                ),
                "prior",
            )
            return


def no_group_signal(measures: Measures) -> Iterator[Symptom]:
    """All samples of a prompt are judged alike: differences, and so gradients, vanish."""
    points = measures.get("group_reward_std")
    if points is None or median(late(points)) > 1e-3:
        return
    yield Symptom(
        "no-group-signal",
        "all samples of a prompt get the same reward, so that nothing is learnt from them",
        "high",
        points[-1],
        shown("group_reward_std", points, "about 0 in the last quarter"),
        (
            "drop such prompts: {dynamic_filtering}",
            "raise {n_samples_per_prompt} or {temperature}",
            "take prompts that are neither solved nor hopeless",
        ),
        "DAPO",
    )


def critic_diverges(measures: Measures) -> Iterator[Symptom]:
    """The critic's error grows threefold."""
    points = measures.get("critic_loss")
    if points is None or len(points) < LEAST_FOR_TREND:
        return
    before, after = median(early(points)), median(late(points))
    if after > 3.0 * before and after > 0.1:
        yield Symptom(
            "critic-diverges",
            "the critic's error grows: it does not follow the returns",
            "medium",
            points[-1],
            shown("critic_loss", points, f"{before:.3g} at first"),
            ("lower {critic_learning_rate}", *SCALED, "let the critic learn first: {freezing_actor_steps}"),
            "prior",
        )


def gradient_growing(measures: Measures) -> Iterator[Symptom]:
    """The actor's gradient is ten times what it was."""
    points = measures.get("actor_grad_norm")
    if points is None or len(points) < LEAST_FOR_TREND:
        return
    before, after = median(early(points)), median(late(points))
    if after > 10.0 * before > 0.0:
        yield Symptom(
            "gradient-growing",
            "gradients grow; the run is about to diverge",
            "medium",
            points[-1],
            shown("actor_grad_norm", points, f"{before:.3g} at first"),
            ("lower {actor_learning_rate}", *CORRECTED, "bound the loss of bad tokens: {dual_clip} 4"),
            "verl FAQ",
        )


def reward_exploited(measures: Measures) -> Iterator[Symptom]:
    """Reward and length rise together while samples are cut or all alike."""
    reward, length = measures.get("reward"), measures.get("response_length")
    if reward is None or length is None or len(reward) < LEAST_FOR_TREND:
        return
    longer = median(late(length)) > 1.5 * median(early(length))
    cut, entropy = measures.get("truncated"), measures.get("entropy_loss")
    worse = cut is not None and median(late(cut)) > median(early(cut)) + 0.1
    alike = entropy is not None and median(late(entropy)) < 0.5 * median(early(entropy))
    if longer and median(late(reward)) > median(early(reward)) and (worse or alike):
        yield Symptom(
            "reward-exploited",
            "the reward is being exploited: longer and more alike, not better",
            "medium",
            length[-1],
            shown("response_length", length, f"{median(early(length)):.3g} at first; reward rises too"),
            (
                "read samples of the last steps",
                "raise {init_kl_coef}",
                "punish length: {overlong_buffer_len}",
                "train the reward model on what the policy writes now",
            ),
            "OpenRLHF users; prior",
        )


def reward_falls(measures: Measures) -> Iterator[Symptom]:
    """The reward ends clearly below where it began."""
    points = measures.get("reward")
    if points is None or len(points) < LEAST_FOR_TREND:
        return
    before, after = early(points), late(points)
    noise = math.hypot(stdev(before) / math.sqrt(len(before)), stdev(after) / math.sqrt(len(after)))
    if fmean(after) < fmean(before) - max(4.0 * noise, 1e-6):
        yield Symptom(
            "reward-falls",
            "training makes the reward worse",
            "medium",
            points[-1],
            shown("reward", points, f"{fmean(before):.3g} at first"),
            (
                GENTLER[0],
                "lower {init_kl_coef} if the divergence is near 0 and the penalty dominates",
                "check the reward model on samples that you can judge",
                "check the prompt's format",
            ),
            "prior",
        )


def time_shares(measures: Measures) -> Iterator[Symptom]:
    """A phase that takes more of a step than it should."""
    total = measures.get("timing/step_total")
    if total is None:
        return
    for name, most in (("timing/broadcast", 0.2), ("timing/generation", 0.95)):
        points = measures.get(name)
        if points is None:
            continue
        whole = {point.step: point.value for point in total}
        shares = [point.value / whole[point.step] for point in points if whole.get(point.step, 0.0) > 0.0]
        if len(shares) >= LEAST_STEPS and median(shares) > most:
            yield _slow(name, points, median(shares))


def _slow(name: str, points: list[Point], share: float) -> Symptom:
    if name == "timing/broadcast":
        return Symptom(
            "slow-weight-sync",
            "sending the weights to vLLM takes much of each step",
            "medium",
            points[-1],
            shown(name, points, f"{share:.0%} of a step; at most 20 %"),
            (
                "keep {vllm_sync_backend} nccl, not gloo",
                "share the GPUs: {colocate_all_models} sends through memory",
            ),
            "OpenRLHF #533",
        )
    return Symptom(
        "generation-bound",
        "drawing samples takes nearly all of a step; the longest decides, so that more GPUs do not help",
        "low",
        points[-1],
        shown(name, points, f"{share:.0%} of a step"),
        (
            "overlap it with training: {async_train}",
            "do not wait for the longest: {partial_rollout}",
            "shorten {generate_max_len|max_new_tokens}",
        ),
        "verl #2751; `trimtab rlhf simulate` shows it",
    )


RULES: tuple[Callable[[Measures], Iterator[Symptom]], ...] = (
    kl_target_scale, no_kl_penalty, sampling_differs, kl_negative, entropy_collapse, samples_cut,
    no_group_signal, critic_diverges, gradient_growing, reward_exploited, reward_falls, time_shares,
)  # fmt: skip
