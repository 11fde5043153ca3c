"""What a person states: models, cluster, batches, lengths, algorithm, goal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError, unknown
from trimtab.hardware import Device, Model, default_node
from trimtab.rlhf.flags import LATEST

Array = NDArray[np.float64]
GIB = 2**30

# Our name -> OpenRLHF's advantage estimator.
ALGORITHMS = {"ppo": "gae", "grpo": "group_norm", "rloo": "rloo", "reinforce++": "reinforce"}
GROUPED = ("group_norm", "rloo", "reinforce_baseline", "dr_grpo")  # need several samples of a prompt
GOALS = ("fastest", "fewest", "safest")
SPREAD = 0.7  # coefficient of variation of response lengths where none is given
QUANTILES = 256


@dataclass(frozen=True)
class Cluster:
    """``nodes`` servers of ``gpus_per_node`` devices with ``host_gib`` of memory each."""

    device: Device
    nodes: int
    gpus_per_node: int = 8
    host_gib: float = 1024.0
    network_gb_s: float | None = None  # GB/s per GPU between nodes; None: the device's usual node

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "host_gib"):
            if getattr(self, name) <= 0:
                raise TrimtabError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def network(self) -> float:
        """Bytes per second of one GPU to another node."""
        usual = default_node(self.device).network_gb_s
        return 1e9 * (self.network_gb_s or usual)


@dataclass(frozen=True)
class Lengths:
    """Tokens of one side (prompts or responses): mean, spread and limit, or ``given`` lengths.

    Lengths are lognormal with coefficient of variation ``spread``, cut off at ``limit`` such that the mean
    of what is left is ``mean``; ``given`` (from a file of an earlier step) replaces that.
    """

    mean: float
    limit: int
    spread: float = SPREAD
    given: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.limit < 1 or not 0 < self.mean <= self.limit:
            raise TrimtabError(
                f"a mean length of {self.mean:g} tokens with a limit of {self.limit}; "
                "it must be above 0 and at most the limit"
            )

    @cached_property
    def quantiles(self) -> Array:
        """(256,) lengths at the midpoints of 256 equal shares, rising."""
        shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
        if self.given:
            return np.quantile(np.minimum(self.given, self.limit).astype(np.float64), shares)
        return _cut_lognormal(shares, self.mean, self.limit, self.spread)

    def sample(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """``count`` lengths, each from 1 to the limit."""
        if self.given:
            drawn = generator.choice(np.asarray(self.given, np.float64), count)
        else:
            drawn = _cut_lognormal(generator.random(count), self.mean, self.limit, self.spread)
        return np.asarray(np.clip(np.rint(drawn), 1, self.limit), np.int64)

    @cached_property
    def second_moment(self) -> float:
        """Mean square, for attention's work."""
        return float(np.mean(self.quantiles**2))


def _cut_lognormal(shares: Array, mean: float, limit: int, spread: float) -> Array:
    from statistics import NormalDist

    if spread <= 0:
        return np.full(len(shares), mean)
    sigma = float(np.sqrt(np.log(1 + spread * spread)))
    normal = NormalDist()
    reference = np.array([normal.inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)])
    low, high = np.log(mean) - 3 * sigma, np.log(limit) + 6 * sigma + 3
    for _ in range(60):
        middle = (low + high) / 2
        if np.minimum(np.exp(middle + sigma * reference), limit).mean() < mean:
            low = middle
        else:
            high = middle
    deviates = np.array([normal.inv_cdf(min(max(share, 1e-12), 1 - 1e-12)) for share in shares.tolist()])
    return np.asarray(np.minimum(np.exp(low + sigma * deviates), limit))


@dataclass(frozen=True)
class Job:
    """One training job. ``critic`` and ``reward`` take the actor's model where none is given.

    ``prompts`` of a rollout get ``samples`` responses each; ``train_batch`` of these make one optimiser step.
    """

    actor: Model
    cluster: Cluster
    prompt: Lengths
    response: Lengths
    algorithm: str = "ppo"
    critic: Model | None = None
    reward: Model | None = None
    remote_reward: str | None = None
    prompts: int = 1024
    samples: int = 1
    train_batch: int = 128
    kl: float = 0.01
    goal: str = "fastest"
    version: str = LATEST
    lora_rank: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise unknown("algorithm", self.algorithm, ALGORITHMS)
        if self.goal not in GOALS:
            raise unknown("goal", self.goal, GOALS)
        for name in ("prompts", "samples", "train_batch"):
            if getattr(self, name) < 1:
                raise TrimtabError(f"{name} must be at least 1, got {getattr(self, name)}")
        if ALGORITHMS[self.algorithm] in GROUPED and self.samples < 2:
            raise TrimtabError(f"{self.algorithm} needs several samples of a prompt, got {self.samples}")
        if self.total_samples < self.train_batch:
            raise TrimtabError(
                f"{self.prompts} prompts x {self.samples} samples = {self.total_samples} are less than "
                f"one training batch of {self.train_batch}"
            )

    @property
    def total_samples(self) -> int:
        return self.prompts * self.samples

    @property
    def critic_model(self) -> Model | None:
        """The model of the critic; None without one."""
        if ALGORITHMS[self.algorithm] != "gae":
            return None
        return self.critic or (self.actor if self.remote_reward else self.reward_model)

    @property
    def reward_model(self) -> Model | None:
        """The reward model on the cluster; None where it is remote."""
        return None if self.remote_reward else (self.reward or self.actor)

    @property
    def ref_model(self) -> Model | None:
        """The reference model; none is loaded without a KL term."""
        return self.actor if self.kl > 0 else None

    @property
    def max_tokens(self) -> int:
        """Longest prompt and response together."""
        return self.prompt.limit + self.response.limit

    @property
    def mean_tokens(self) -> float:
        return float(self.prompt.quantiles.mean() + self.response.quantiles.mean())

    @property
    def total_tokens(self) -> float:
        """Tokens of prompts and responses of one step."""
        return self.total_samples * self.mean_tokens

    @cached_property
    def square_tokens(self) -> float:
        """Sum over samples of their squared lengths."""
        prompt, response = self.prompt.quantiles, self.response.quantiles
        mean = self.prompt.second_moment + self.response.second_moment + 2 * prompt.mean() * response.mean()
        return float(self.total_samples * mean)


@lru_cache(maxsize=4)
def read_lengths(path: Path, limit: int) -> Lengths:
    """Lengths of responses from a text file, one per line.

    Raises
    ------
    TrimtabError
        for a file that cannot be read or holds something else.
    """
    try:
        values = [int(float(word)) for word in path.read_text(encoding="utf-8").replace(",", " ").split()]
    except OSError as error:
        raise TrimtabError(f"cannot read lengths {str(path)!r}: {error.strerror}") from None
    except (ValueError, UnicodeDecodeError):
        raise TrimtabError(f"{path} must hold one length in tokens per line") from None
    if not values or min(values) < 1:
        raise TrimtabError(f"{path} must hold lengths of at least 1 token")
    kept = tuple(min(value, limit) for value in values)
    return Lengths(float(np.mean(kept)), limit, given=kept)
