"""Which replicas may serve which requests: a pool is a span of replicas, and every class has one.

A class that names a model is served by the replicas of that model, wherever they run; a class that names
none by any replica. Where prefill and decode are apart, that pool is of the replicas that prefill, and it
has another one of those that decode. Groups of one model stand together in the scenario, and in the order
of their roles, so that a pool is a span and routers look at nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import NONE, POOL
from trimtab.errors import TrimtabError, unknown
from trimtab.hardware import get_model
from trimtab.routers import ROUTERS, Router, RouterInfo, get_router
from trimtab.scenario import Scenario
from trimtab.schedulers import get_scheduler

ROLES = ("prefill", "both", "decode")  # in the order in which a model's groups are listed


def build_pools(scenario: Scenario) -> NDArray[Any]:
    """(Q,) POOL: all replicas, then those of each model that some class names; then the pools that some of
    these decode in.

    Raises
    ------
    TrimtabError
        for a class of a model that no group serves, groups of one model that stand apart, replicas
        that no class may use, and roles that do not fit together.
    """
    apart = disaggregated_models(scenario)
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
    pools = [(first, last, last - first, 0, NONE) for first, last in spans.values()]
    models = {get_model(group.model).name for group in scenario.replicas}
    for index, named in enumerate(spans):
        model = min(models) if named is None and len(models) == 1 else named
        if model in apart:
            (first, last), decoding = (_span(scenario, model, roles) for roles in (ROLES[:2], ROLES[1:]))
            pools[index] = (first, last, 0, 0, len(pools))
            pools.append((*decoding, 0, 0, NONE))
    return np.array(pools, POOL)


def disaggregated_models(scenario: Scenario) -> set[str]:
    """Names of the models some of whose groups only prefill or only decode.

    Raises
    ------
    TrimtabError
        where roles, their order, their schedulers or the section ``disaggregation`` do not fit together.
    """
    apart = {get_model(group.model).name for group in scenario.replicas if group.role != "both"}
    if scenario.disaggregation is None and apart:
        role = next(group.role for group in scenario.replicas if group.role != "both")
        raise TrimtabError(f"replicas.role {role!r} needs a section disaggregation, which may be empty: {{}}")
    if scenario.disaggregation is not None and not apart:
        raise TrimtabError(
            "disaggregation needs groups of replicas with role prefill and decode; all are both"
        )
    for model in sorted(apart):
        _check_roles(scenario, model)
    if apart and len({get_model(group.model).name for group in scenario.replicas}) > 1:
        for one in scenario.classes:
            if one.model is None:
                raise TrimtabError(
                    f"class {one.name!r} names no model; with prefill and decode apart each class must, "
                    f"where there are several"
                )
        if not scenario.classes:
            raise TrimtabError("prefill and decode apart, and several models: give classes that name theirs")
    return apart


def _check_roles(scenario: Scenario, model: str) -> None:
    """The groups of a disaggregated model can do all there is to do, and hand over."""
    groups = [group for group in scenario.replicas if get_model(group.model).name == model]
    roles = [group.role for group in groups]
    for missing, other in (("prefill", "decode"), ("decode", "prefill")):
        if missing not in roles and "both" not in roles:
            raise TrimtabError(f"model {model!r}: groups that {other} need one with role {missing} or both")
    if roles != sorted(roles, key=ROLES.index):
        raise TrimtabError(
            f"model {model!r}: list its groups in the order prefill, both, decode; got {', '.join(roles)}"
        )
    for group in groups:
        scheduler = get_scheduler(group.scheduler.name).name
        if scheduler != "vllm_v1" or group.pp != 1:
            raise TrimtabError(
                f"model {model!r}: prefill and decode apart works with scheduler vllm_v1 and pp 1, "
                f"got {scheduler} and pp {group.pp}"
            )
        if group.speculation:
            raise TrimtabError(
                f"model {model!r}: prefill and decode apart does not work with speculation yet"
            )


def decode_router(scenario: Scenario) -> RouterInfo:
    """The router that chooses who decodes.

    Raises
    ------
    TrimtabError
        for a name that is unknown or not of a router that can.
    """
    assert scenario.disaggregation is not None
    info = get_router(scenario.disaggregation.decode_router)
    if info.kind in (Router.REPLAY, Router.STICKY_SESSION):
        allowed = [name for name, one in ROUTERS.items() if one.kind not in (Router.REPLAY, info.kind)]
        raise TrimtabError(
            f"disaggregation.decode_router cannot be {info.name!r}, which has one home per session; "
            f"allowed: {', '.join(name for name in allowed if name != 'sticky-session')}"
        )
    return info


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


def _span(scenario: Scenario, model: str, roles: tuple[str, ...] = ROLES) -> tuple[int, int]:
    """First replica of the model's groups with one of these roles, and one past the last."""
    names = [get_model(group.model).name for group in scenario.replicas]
    mine = [index for index, name in enumerate(names) if name == model]
    if not mine:
        raise unknown("model of a class", model, names)
    if mine != list(range(mine[0], mine[-1] + 1)):
        raise TrimtabError(f"replicas: groups of model {model!r} must stand next to each other in the list")
    mine = [index for index in mine if scenario.replicas[index].role in roles]
    starts = np.cumsum([0, *(group.slots for group in scenario.replicas)])
    return int(starts[mine[0]]), int(starts[mine[-1] + 1])
