"""The routing problem as a Gymnasium environment: one step is one request sent to a replica.

Importing this module registers ``trimtab/Router-v0``, alone and vectorised::

    gym.make("trimtab.learn.env:trimtab/Router-v0", scenario="mixed-fleet")
    gym.make_vec("trimtab.learn.env:trimtab/Router-v0", num_envs=64, threads=2)

``docs/how-to/gym-environment.md`` has the observation, the reward and what to train with.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from trimtab.cluster.episodes import ASKING, OUTCOME, SENT
from trimtab.errors import TrimtabError
from trimtab.learn.task import Runs, Task, make_task
from trimtab.routers.features import BOUND, NUM_FEATURES
from trimtab.routers.learned import POOLED

ENV_ID = "trimtab/Router-v0"

Observation = dict[str, NDArray[Any]]
Info = dict[str, Any]


def observation_space(task: Task) -> spaces.Dict:
    """``replicas`` (M, F), ``context`` (2 F + C,), ``accepting`` (M,): all finite, in [0, BOUND]."""
    return spaces.Dict(
        {
            "accepting": spaces.MultiBinary(task.width),
            "context": spaces.Box(0.0, BOUND, (POOLED,), np.float32),
            "replicas": spaces.Box(0.0, BOUND, (task.width, NUM_FEATURES), np.float32),
        }
    )


class RouterEnv(gymnasium.Env[Any, Any]):
    """One cluster, asked for one replica per request. ``options``: see ``Task``.

    The action is a replica. One that does not exist or does not accept is not an error: it is counted round
    the pool and goes to the next replica that accepts (``info["replica"]``), so that learners without
    action masks work; ``info["action_mask"]`` and ``action_masks()`` say what would be valid.

    Terminated when every request is done with; truncated after ``max_episode_steps`` decisions.

    Raises
    ------
    TrimtabError
        one line, for options or a scenario that cannot be.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium declares it so

    def __init__(self, render_mode: None = None, **options: Any):
        self.render_mode = render_mode
        self.task = make_task(options)
        self.observation_space = observation_space(self.task)
        self.action_space = spaces.Discrete(self.task.width)
        self.runs = Runs(self.task, 1)
        self._action = np.zeros(1, np.int64)
        self._asked = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """The next episode; with a seed, the first of those that belong to it."""
        super().reset(seed=seed)
        if seed is not None or self.runs.states[0] is None:
            self.runs.reseed(0, self.np_random)
        self.runs.begin(0)
        self._asked = True
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[Observation, float, bool, bool, Info]:
        """Send the request that waits to ``action``, and go on to the next question."""
        if not self._asked:
            raise ResetNeeded("no request waits for a replica; call reset() first")
        if not 0 <= action < self.task.width:
            raise TrimtabError(f"action must be 0 to {self.task.width - 1}, got {action}")
        runs = self.runs
        self._action[0] = action
        runs.step(self._action)
        terminated = bool(runs.notes[0, OUTCOME] != ASKING)
        most = self.task.max_episode_steps
        truncated = not terminated and most is not None and bool(runs.steps[0] >= most)
        self._asked = not (terminated or truncated)
        info = self._info()
        info["replica"] = int(runs.notes[0, SENT])
        return self._observation(), float(runs.rewards[0]), terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """(M,) True where the waiting request may go; the name is that of sb3-contrib."""
        mask: NDArray[np.bool_] = self.runs.accepting[0].astype(np.bool_)
        return mask

    @property
    def requests(self) -> NDArray[Any]:
        """(N,) REQUEST of the episode, as far as it has come (see ``engine.dtypes``); not a copy."""
        state = self.runs.states[0]
        if state is None:
            raise ResetNeeded("there is no episode yet; call reset() first")
        return state.requests

    def _observation(self) -> Observation:
        runs = self.runs
        return {
            "accepting": runs.accepting[0].copy(),
            "context": runs.context[0].copy(),
            "replicas": runs.replicas[0].copy(),
        }

    def _info(self) -> Info:
        return {"action_mask": self.runs.accepting[0].copy()}


gymnasium.register(
    ENV_ID,
    entry_point="trimtab.learn.env:RouterEnv",
    vector_entry_point="trimtab.learn.vector_env:RouterVectorEnv",
)
