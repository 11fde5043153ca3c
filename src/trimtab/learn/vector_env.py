"""Many routing environments in step: one compiled call per step sends all their requests on.

The engine holds no lock, so that ``threads`` share the environments between them. Environment i with seed
s + i is the single environment with that seed, decision for decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from trimtab.errors import TrimtabError
from trimtab.learn.env import Info, Observation, observation_space
from trimtab.learn.task import Runs, make_task

Flags = NDArray[np.bool_]


class RouterVectorEnv(VectorEnv[Any, Any, Any]):
    """``num_envs`` environments; ``options``: see ``learn.task.Task``.

    An episode that ends is followed by the next one in the same step (``AutoresetMode.SAME_STEP``): the
    observation is the new episode's first, ``infos["final_obs"]`` has the last of the old one.
    ``infos["action_mask"]`` (E, M) belongs to the observation.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium declares it so
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, num_envs: int = 1, threads: int = 1, render_mode: None = None, **options: Any):
        for name, value in (("num_envs", num_envs), ("threads", threads)):
            if value < 1:
                raise TrimtabError(f"{name} must be at least 1, got {value}")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.task = make_task(options)
        self.single_observation_space = observation_space(self.task)
        self.single_action_space = spaces.Discrete(self.task.width)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.runs = Runs(self.task, num_envs, threads)
        self._asked = False

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, Info]:
        """Begin an episode everywhere. A seed s is s + i for environment i; or one seed for each."""
        if seed is None and not self._asked:
            seed = int(np.random.default_rng().integers(2**31))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None:
            if len(seeds) != self.num_envs:
                raise TrimtabError(f"seed needs one entry per environment: {self.num_envs}, got {len(seeds)}")
            for run, each in enumerate(seeds):
                if each is not None or not self._asked:
                    self.runs.reseed(run, np_random(each)[0])
        for run in range(self.num_envs):
            self.runs.begin(run)
        self._asked = True
        return self._observation(), self._infos()

    def step(self, actions: ArrayLike) -> tuple[Observation, NDArray[np.float64], Flags, Flags, Info]:
        """Send every waiting request on: actions (E,) replicas; rewards (E,), ends (E,) twice."""
        chosen = np.ascontiguousarray(actions, dtype=np.int64)
        if chosen.shape != (self.num_envs,) or chosen.min() < 0 or chosen.max() >= self.task.width:
            raise TrimtabError(
                f"actions must be {self.num_envs} replicas from 0 to {self.task.width - 1}, got {actions!r}"
            )
        self.runs.step(chosen)
        rewards, ended, cut = self.runs.rewards.copy(), self.runs.ended, self.runs.cut
        infos: Info = {}
        for run in np.flatnonzero(ended | cut).tolist():
            final = {name: table[run].copy() for name, table in self._tables().items()}
            infos = self._add_info(infos, {"final_obs": final}, run)
            self.runs.begin(run)
        return self._observation(), rewards, ended, cut, {**infos, **self._infos()}

    def action_masks(self) -> Flags:
        """(E, M) True where each waiting request may go."""
        return self.runs.accepting.astype(np.bool_)

    def close_extras(self, **kwargs: Any) -> None:
        self.runs.close()

    def _tables(self) -> Observation:
        return {
            "accepting": self.runs.accepting,
            "context": self.runs.context,
            "replicas": self.runs.replicas,
        }

    def _observation(self) -> Observation:
        return {name: table.copy() for name, table in self._tables().items()}

    def _infos(self) -> Info:
        everywhere = np.ones(self.num_envs, np.bool_)
        return {"action_mask": self.runs.accepting.copy(), "_action_mask": everywhere}
