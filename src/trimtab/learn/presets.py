"""Every parameter of training, and three sets of them.

``original`` and ``optimized`` are the two tables of the documents that started this project, by their own
names; ``lossfree`` is ours: no penalty for imbalance, a bias outside the gradient instead.

Their schedules count optimiser steps of 64 decisions, of which a rollout of 128 decisions and 8 epochs makes
16; here they count updates, which are such rollouts. A training of theirs had 20,000 decisions, 156 rollouts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from trimtab.errors import TrimtabError, unknown
from trimtab.learn.rewards import RewardConfig


@dataclass(frozen=True)
class CloneConfig:
    """Demonstrations and behaviour cloning. ``every``: one request in so many is demonstrated."""

    teachers: tuple[str, ...] = ("look-ahead", "preble", "least-pending-prefill", "lmetric")
    steps_per_policy: int = 20_000  # demonstrated decisions of each teacher
    include_imbalanced: bool = True
    every: int = 10
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class PpoConfig:
    """One update: ``groups`` scenarios, each played ``plays`` times with the same arrivals."""

    updates: int = 20
    groups: int = 8
    plays: int = 8
    epochs: int = 1
    minibatch: int = 4096
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    gamma: float = 0.0
    gae_lambda: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 4.0
    value_clip: float = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.002
    entropy_warmup_coef: float = 0.0
    warmup_updates: int = 5
    entropy_min: float = 0.05  # of log(replicas); below it a penalty pulls back
    temperature: float = 1.0
    min_temperature: float = 0.5
    max_temperature: float = 2.0
    entropy_target: float | None = None  # of log(replicas); the temperature moves to hold it
    temperature_rate: float = 0.02
    kl_ref_coef_initial: float = 0.1
    kl_ref_coef_final: float = 0.0
    kl_ref_decay_steps: int = 20  # updates
    kl_target: float | None = None  # adaptive coefficient instead of the schedule
    kl_horizon: float = 50.0  # updates
    target_kl: float = 0.05  # stops an update's epochs
    normalize_rewards: bool = True
    normalize_advantages: bool = True
    reward_clip: float = 10.0
    max_grad_norm: float = 0.5
    stabilization_updates: int = 0  # act, learn the critic, leave the policy
    bias_rate: float = 0.05  # while PPO plays; the deployed policy has no bias
    curriculum_updates: int = 5


@dataclass(frozen=True)
class EvolveConfig:
    """Evolution strategies on ``courses`` of ``pool`` scenarios a generation, ``pairs`` of trials each.

    ``hardness`` weighs the courses where a rival is better; ``mean``, ``slower`` and ``missed`` the mean time
    to first token, a mean E2E more than 2 % above the best rival's, and SLOs that it met.
    """

    generations: int = 250
    pool: int = 240
    courses: int = 12
    pairs: int = 10
    sigma: float = 0.03
    learning_rate: float = 0.02
    hardness: float = 1.0
    mean: float = 0.15
    slower: float = 2.0
    missed: float = 3.0


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run of ``trimtab train`` depends on."""

    preset: str = "lossfree"
    seed: int = 0
    hidden: int = 6
    residual: float = 20.0  # sharpness of the heuristic that the policy starts from; 0: from nothing
    clone: CloneConfig = field(default_factory=CloneConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    evolve: EvolveConfig = field(default_factory=EvolveConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_STEPS = 16  # of their optimiser in one rollout
_SEED_PPO = PpoConfig(
    updates=20_000 // 128, groups=16, plays=1, epochs=4, clip_high=0.2, dual_clip=0.0, gamma=0.95,
    learning_rate=3e-4, entropy_coef=0.002, warmup_updates=round(500 / _STEPS), curriculum_updates=0,
    bias_rate=0.0,
)  # fmt: skip
_SEED_CLONE = CloneConfig(
    teachers=("round-robin", "least-outstanding", "random"), steps_per_policy=700, every=1
)

_NO_EVOLUTION = EvolveConfig(generations=0)

PRESETS: dict[str, TrainConfig] = {
    "original": TrainConfig(
        preset="original",
        hidden=16,
        residual=0.0,
        evolve=_NO_EVOLUTION,
        clone=replace(_SEED_CLONE, include_imbalanced=False),
        ppo=replace(
            _SEED_PPO,
            entropy_warmup_coef=0.4,
            entropy_min=0.3,
            temperature=0.7,  # theirs fell with load and latency, and so lay at its floor
            min_temperature=0.7,
            kl_ref_coef_initial=0.4,
            kl_ref_coef_final=0.05,
            kl_ref_decay_steps=round(1500 / _STEPS),
        ),
        reward=RewardConfig("hybrid", alpha=0.3, balance_penalty_weight=0.1, load_balance_penalty=0.2),
    ),
    "optimized": TrainConfig(
        preset="optimized",
        hidden=16,
        residual=0.0,
        evolve=_NO_EVOLUTION,
        clone=_SEED_CLONE,
        ppo=replace(
            _SEED_PPO,
            entropy_warmup_coef=0.0,
            entropy_min=0.3,
            temperature=0.5,
            min_temperature=0.5,
            kl_ref_coef_initial=0.6,
            kl_ref_coef_final=0.1,
            kl_ref_decay_steps=round(3000 / _STEPS),
        ),
        reward=RewardConfig("hybrid", alpha=0.2, balance_penalty_weight=0.3, load_balance_penalty=0.3),
    ),
    "lossfree": TrainConfig(),
}


def get_preset(name: str) -> TrainConfig:
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def override(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """Dotted names to values: ``ppo.updates``, ``clone.epochs``, ``reward.alpha``, ``seed``.

    Raises
    ------
    TrimtabError
        for a name that is none, and a value of another kind than the default's.
    """
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        section = getattr(config, head, None) if rest else config
        if section is None or not hasattr(section, "__dataclass_fields__"):
            raise unknown("training parameter", path, _paths())
        name = rest or head
        if name not in section.__dataclass_fields__ or hasattr(
            getattr(section, name), "__dataclass_fields__"
        ):
            raise unknown("training parameter", path, _paths())
        changed: Any = replace(section, **{name: _alike(path, value, getattr(section, name))})
        config = replace(config, **{head: changed}) if rest else changed
    return config


def _paths() -> list[str]:
    sections = {"clone": CloneConfig, "ppo": PpoConfig, "evolve": EvolveConfig, "reward": RewardConfig}
    names = [f"{head}.{each.name}" for head, kind in sections.items() for each in fields(kind)]
    return ["seed", "hidden", "residual", *names]


def _alike(path: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple) and isinstance(value, (list, str)):
        return tuple(value.split(",")) if isinstance(value, str) else tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and type(value) is not type(default):
        raise TrimtabError(
            f"{path} must be {type(default).__name__}, as its default {default!r}, got {value!r}"
        )
    return value
