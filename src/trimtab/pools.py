"""Which replicas may serve which requests: a pool is a span of replicas, and every class has one.

A class that names a model is served by the replicas of that model, wherever they run; a class that names
none by any replica. Groups of one model stand together in the scenario, so that a pool is a span and
routers look at nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import POOL
from trimtab.errors import TrimtabError, unknown
from trimtab.hardware import get_model
from trimtab.scenario import Scenario


def build_pools(scenario: Scenario) -> NDArray[Any]:
    """(Q,) POOL: all replicas, then those of each model that some class names.

    Raises
    ------
    TrimtabError
        for a class of a model that no group serves, groups of one model that stand apart, and replicas
        that no class may use.
    """
    spans: dict[str | None, tuple[int, int]] = {None: (0, scenario.num_replicas)}
    for model in _models(scenario):
        if model is not None:
            spans[model] = _span(scenario, model)
    served = set(_models(scenario))
    if None not in served:
        for group in scenario.replicas:
            if get_model(group.model).name not in served:
                raise TrimtabError(
                    f"no class is served by model {group.model!r}: every class names another model; "
                    f"drop that group or let a class use it"
                )
    return np.array([(first, last, last - first, 0) for first, last in spans.values()], POOL)


def pool_of_classes(scenario: Scenario) -> list[int]:
    """Index of each class's pool (one class, if the scenario states none)."""
    models = _models(scenario)
    order = [None, *dict.fromkeys(model for model in models if model is not None)]
    return [order.index(model) for model in models]


def eligible_groups(scenario: Scenario) -> list[set[int]]:
    """For each class, the indices of the groups that may serve it."""
    names = [get_model(group.model).name for group in scenario.replicas]
    return [
        {index for index, name in enumerate(names) if model in (None, name)} for model in _models(scenario)
    ]


def _models(scenario: Scenario) -> list[str | None]:
    """The model of each class, by its catalogue name; None for any."""
    if not scenario.classes:
        return [None]
    return [get_model(one.model).name if one.model else None for one in scenario.classes]


def _span(scenario: Scenario, model: str) -> tuple[int, int]:
    """First replica of the model's groups, and one past the last."""
    names = [get_model(group.model).name for group in scenario.replicas]
    mine = [index for index, name in enumerate(names) if name == model]
    if not mine:
        raise unknown("model of a class", model, names)
    if mine != list(range(mine[0], mine[-1] + 1)):
        raise TrimtabError(f"replicas: groups of model {model!r} must stand next to each other in the list")
    starts = np.cumsum([0, *(group.slots for group in scenario.replicas)])
    return int(starts[mine[0]]), int(starts[mine[-1] + 1])
