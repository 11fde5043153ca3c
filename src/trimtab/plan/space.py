"""What a search chooses among: every combination of hardware, split, scheduler, limits, router and roles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import TrimtabError, did_you_mean
from trimtab.hardware import get_device, list_devices
from trimtab.routers import get_router
from trimtab.scenario import Scenario, load_scenario
from trimtab.schedulers import get_scheduler

Json = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """The values of each choice. ``disaggregated`` holds pairs (prefill, decode) of replicas, besides the
    colocated cluster that is always tried; they run vllm_v1 only."""

    devices: tuple[str, ...] = ("a100-80", "h100", "h200", "b200", "l40s", "a40", "mi300x")
    tp: tuple[int, ...] = (1, 2, 4)
    pp: tuple[int, ...] = (1,)
    schedulers: tuple[str, ...] = ("vllm_v1", "sarathi")
    token_budget: tuple[int, ...] = (1024, 4096)
    max_num_seqs: tuple[int, ...] = (128, 256)
    routers: tuple[str, ...] = ("least-outstanding", "power-of-two", "learned")
    disaggregated: tuple[tuple[int, int], ...] = ((1, 3), (1, 1))


def read_space(path: str | Path) -> Space:
    """A YAML file with some of the keys of ``Space``, each a list; the others keep their defaults.

    Raises
    ------
    TrimtabError
        for unknown keys and names, and values that are no list.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise TrimtabError(f"{path} is not valid YAML") from None
    known = [each.name for each in fields(Space)]
    if not isinstance(data, dict):
        raise TrimtabError(f"{path} must be a mapping with some of {', '.join(known)}")
    for key, values in data.items():
        if key not in known:
            raise TrimtabError(
                f"{path}: unknown key {key!r}; allowed: {', '.join(known)}.{did_you_mean(key, known)}"
            )
        if not isinstance(values, list) or (not values and key != "disaggregated"):
            raise TrimtabError(f"{path}: {key} must be a list of values, got {values!r}")
    given: Any = {
        key: tuple(tuple(value) if isinstance(value, list) else value for value in values)
        for key, values in data.items()
    }
    return checked(Space(**given))


def checked(space: Space) -> Space:
    """The same, with the names as their registries say them.

    Raises
    ------
    TrimtabError
        for a name or number that cannot be.
    """
    for name in ("tp", "pp", "token_budget", "max_num_seqs"):
        for value in getattr(space, name):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise TrimtabError(f"{name} of a search must be whole numbers from 1, got {value!r}")
    for pair in space.disaggregated:
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair)
        ):
            raise TrimtabError(f"disaggregated of a search must be pairs such as [1, 3], got {pair!r}")
    return Space(
        devices=tuple(get_device(name).name for name in space.devices),
        tp=space.tp,
        pp=space.pp,
        schedulers=tuple(get_scheduler(name).name for name in space.schedulers),
        token_budget=space.token_budget,
        max_num_seqs=space.max_num_seqs,
        routers=tuple(get_router(name).name for name in space.routers),
        disaggregated=space.disaggregated,
    )


def configurations(scenario: Scenario, space: Space) -> Iterator[tuple[Json, Scenario]]:
    """(choices, scenario) of every combination, those of one replica next to each other."""
    split = itertools.product(space.devices, space.tp, space.pp)
    for device, tp, pp in split:
        limits = itertools.product(space.schedulers, space.token_budget, space.max_num_seqs)
        for scheduler, budget, seqs in limits:
            roles: list[tuple[int, int] | None] = [None]
            if (
                scheduler == "vllm_v1"
                and budget == max(space.token_budget)
                and seqs == max(space.max_num_seqs)
            ):
                roles += space.disaggregated
            for router, parts in itertools.product(space.routers, roles):
                choices = {
                    "device": device, "tp": tp, "pp": pp, "scheduler": scheduler, "token_budget": budget,
                    "max_num_seqs": seqs, "router": router,
                    "roles": "colocated" if parts is None else f"{parts[0]}:{parts[1]}",
                }  # fmt: skip
                yield choices, _scenario(scenario, choices, parts)


def _scenario(base: Scenario, choices: Json, parts: tuple[int, int] | None) -> Scenario:
    data = base.model_dump(mode="json", exclude_unset=True)
    first = data["replicas"][0] if data.get("replicas") else {}
    limits = {"name": choices["scheduler"], "max_num_seqs": choices["max_num_seqs"]}
    limits["token_budget"] = choices["token_budget"]
    caching = (first.get("scheduler") or {}).get("prefix_caching", False)
    if caching and choices["scheduler"] == "vllm_v1":
        limits["prefix_caching"] = True
    group = {
        "model": base.replicas[0].model,
        "device": choices["device"],
        "tp": choices["tp"],
        "pp": choices["pp"],
    }
    group |= {"count": 1, "scheduler": limits}
    data["router"] = {**(data.get("router") or {}), "name": choices["router"]}
    data.pop("disaggregation", None)
    data["replicas"] = [group]
    if parts is not None:
        data["replicas"] = [
            {**group, "role": role, "count": count}
            for role, count in zip(("prefill", "decode"), parts, strict=True)
        ]
        data["disaggregation"] = (base.disaggregation.model_dump() if base.disaggregation else {}) or {}
    return load_scenario(data)


def read_prices(path: str | Path | None) -> dict[str, float]:
    """USD per hour of every device; a YAML file ``device: price`` replaces those of the catalogue.

    Raises
    ------
    TrimtabError
        for unknown devices and prices that are no positive numbers.
    """
    prices = {name: get_device(name).price for name in list_devices()}
    if path is None:
        return prices
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise TrimtabError(f"{path} is not valid YAML") from None
    if not isinstance(data, dict):
        raise TrimtabError(f"{path} must map devices to USD per hour, as in h100: 2.5")
    for name, price in data.items():
        if isinstance(price, bool) or not isinstance(price, (int, float)) or price <= 0:
            raise TrimtabError(f"{path}: the price of {name} must be a number above 0, got {price!r}")
        prices[get_device(str(name)).name] = float(price)
    return prices
