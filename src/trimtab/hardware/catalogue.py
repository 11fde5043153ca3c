"""Reads the YAML catalogues (models, devices, nodes, efficiencies) that ship with the package."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent.parent / "data" / "hardware"


@lru_cache(maxsize=8)
def read_catalogue(kind: str) -> dict[str, dict[str, Any]]:
    """Entries of ``data/hardware/<kind>.yaml`` by name. Do not change what is returned."""
    # The C loader reads the models in 5 ms instead of 50; it is missing from some builds of PyYAML.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = yaml.load((FOLDER / f"{kind}.yaml").read_text(encoding="utf-8"), Loader=loader)
    assert isinstance(entries, dict)
    return entries


def index_names(other_names: dict[str, Iterable[str]]) -> dict[str, str]:
    """Lower-case name or alias -> catalogue name. Two entries must not share a name."""
    index: dict[str, str] = {}
    for name, others in other_names.items():
        for known_as in (name, *others):
            key = known_as.lower()
            assert index.get(key, name) == name, f"{known_as} names both {index[key]} and {name}"
            index[key] = name
    return index
