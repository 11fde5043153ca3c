"""The look-ahead teacher: try each replica, simulate the near future, say what it would cost.

The future is simulated behind a compiled router (``base``), with the very arrivals that will come: what
differs between two replicas is what the choice does, to the request itself and to those after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import Outcome
from trimtab.engine.state import LAYOUT, State
from trimtab.routers import Router

# Never written while a run goes on, or written for reports only.
CONSTANT = (
    "groups", "path_node", "path_tokens", "faults", "classes", "curves", "policy",
    "sample_times", "samples", "iterations", "itl", "decisions",
)  # fmt: skip


@dataclass(frozen=True)
class Outlook:
    """How far to look and what to count: each first token late by t s costs (t / scale)^power, each
    request-second spent in the fleet ``dwelling`` / scale, an unserved request ``lost``."""

    horizon: float = 2.0  # s
    scale: float = 0.1  # s
    power: float = 2.0
    dwelling: float = 0.01
    lost: float = 100.0


@dataclass
class Teacher:
    """Costs of every replica for the request that waits for an answer in ``state``."""

    state: State
    outlook: Outlook
    base: int  # Router
    copy: State = field(init=False)

    def __post_init__(self) -> None:
        self.copy = State(**{name: getattr(self.state, name).copy() for name in LAYOUT})

    def costs(self) -> NDArray[np.float64]:
        """(pool,) cost of each replica of the pool; inf where it does not accept."""
        control = self.state.control
        first, last = int(control["first"][0]), int(control["last"][0])
        accepting = self.state.replicas["accepting"][first:last]
        found = np.full(last - first, np.inf)
        for replica in np.flatnonzero(accepting):
            found[replica] = self._try(first + int(replica))
        return found

    def _try(self, replica: int) -> float:
        from trimtab.cluster.whole import advance_whole, answer_whole

        copy, source = self.copy, self.state
        for name in LAYOUT:
            if name not in CONSTANT:
                np.copyto(getattr(copy, name), getattr(source, name))
        request, now = int(source.control["asking"][0]), float(source.control["now"][0])
        until = now + self.outlook.horizon
        answer_whole(copy, replica)
        copy.control["router"] = self.base
        advance_whole(copy, until)
        return self._cost(request, until)

    def _cost(self, request: int, until: float) -> float:
        copy, outlook = self.copy, self.outlook
        requests, replicas = copy.requests, copy.replicas
        came = requests["arrival"] >= requests["arrival"][request]
        came &= requests["arrival"] <= until
        first = requests["first_token"][came]
        late = np.where(np.isnan(first), until, first) - requests["arrival"][came]
        area = replicas["waiting_area"] + replicas["running_area"]
        area += (until - replicas["last_change"]) * replicas["outstanding"]
        lost = int(copy.control["failed"][0] + copy.control["aborted"][0])
        cost = ((late / outlook.scale) ** outlook.power).sum() + outlook.lost * lost
        return float(cost + outlook.dwelling * area.sum() / outlook.scale)


def ask(state: State, until: float) -> bool:
    """Run until the router is asked after ``until``; what is asked before is answered by its own kind.

    Returns False where the run ends first.
    """
    from trimtab.cluster.whole import advance_whole

    kind = int(state.control["router"][0])
    if advance_whole(state, until) == Outcome.DONE:
        return False
    state.control["router"] = int(Router.OUTSIDE)
    outcome = advance_whole(state, np.inf)
    state.control["router"] = kind
    return bool(outcome == Outcome.ASKING)
