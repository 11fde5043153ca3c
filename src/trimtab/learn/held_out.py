"""How good a policy is, on scenarios of the training's kind that it never sees: what ``best`` means."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trimtab.cluster import Fleet
from trimtab.engine.dtypes import Status
from trimtab.engine.state import State
from trimtab.errors import TrimtabError
from trimtab.learn.facts import busiest_share
from trimtab.learn.rewards import lateness, missed_slo
from trimtab.learn.rollout import Acting, Episode, play, spread
from trimtab.learn.scenarios import HARD, Draw, build_episode
from trimtab.routers import get_router
from trimtab.scenario import Scenario
from trimtab.simulation import start
from trimtab.workload import Traffic

FIRST_HELD_OUT = 500_000  # below every seed of training, above those of evaluation
NUM_SCENARIOS = 16
YARDSTICK = "least-pending-prefill"  # any fixed router gives the same order of policies


@dataclass
class HeldOut:
    """``NUM_SCENARIOS`` scenarios, made when first needed, and how the yardstick fares on each."""

    draw: Draw
    cases: list[tuple[Scenario, Traffic, list[Fleet], float]] = field(default_factory=list)

    def measure(self, acting: Acting) -> dict[str, float]:
        """As it is deployed: the best replica each time, without the bias of training.

        ``eval/p99_ttft_ratio``: geometric mean over scenarios of the 99th percentile of the time to the
        first token, over that of the yardstick; less is better.
        ``eval/goodput``: share of requests that met the SLO."""
        if not self.cases:
            self.cases = spread(self._case, range(NUM_SCENARIOS))
        steady = Acting(acting.values, acting.hidden, 0.0)
        episodes: list[Episode] = spread(lambda case: play(case[0], case[1], case[2], steady), self.cases)
        ratios = [_tail(one) / case[3] for one, case in zip(episodes, self.cases, strict=True)]
        good = [float((_done(one.state) & ~missed_slo(one)).mean()) for one in episodes]
        shares = [share for share in map(busiest_share, episodes) if np.isfinite(share)]
        return {
            "eval/p99_ttft_ratio": float(np.exp(np.mean(np.log(ratios)))),
            "eval/p99_ttft_ratio_worst": float(np.max(ratios)),
            "eval/goodput": float(np.mean(good)),
            "eval/share_max_equal": float(np.mean(shares)) if shares else float("nan"),
        }

    def _case(self, index: int) -> tuple[Scenario, Traffic, list[Fleet], float]:
        from trimtab.cluster.whole import advance_whole

        rng = np.random.default_rng(FIRST_HELD_OUT + index)
        while True:
            try:
                scenario = self.draw(rng, HARD)
                traffic, fleets = build_episode(scenario)
            except TrimtabError:
                continue  # a fleet that cannot hold the longest request: draw another
            state = start(scenario, traffic, fleets, get_router(YARDSTICK).kind, max_iterations=1)
            advance_whole(state, np.inf)
            return scenario, traffic, fleets, _tail(Episode(scenario, state))


def _tail(episode: Episode) -> float:
    return max(float(np.quantile(lateness(episode), 0.99)), 1e-3)


def _done(state: State) -> np.ndarray:
    finished: np.ndarray = state.requests["status"] == Status.FINISHED
    return finished
