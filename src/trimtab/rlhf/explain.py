"""``--explain FLAG``: what a flag does, when it helps, what it conflicts with, how each version spells it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from trimtab.errors import TrimtabError, did_you_mean
from trimtab.rlhf.flags import (
    DOTTED_SINCE,
    FOLDER,
    LATEST,
    OLDEST,
    Flag,
    all_flags,
    spellings,
)

FLAT = "0.10.1.post2"  # the last version with flat names


@dataclass(frozen=True)
class Explanation:
    """Texts of one flag; ``when`` and ``conflicts`` may be empty."""

    flag: Flag
    does: str
    when: str
    conflicts: str
    names: dict[str, str]  # versions -> spelling
    default: Any


@lru_cache(maxsize=1)
def _texts() -> dict[str, dict[str, str]]:
    text = (FOLDER / "explain.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, str]] = yaml.safe_load(text)
    return entries


def explain(name: str, version: str = LATEST) -> Explanation:
    """The explanation of a flag in any spelling, with or without dashes.

    Raises
    ------
    TrimtabError
        for a name that no version knows, with the nearest.
    """
    bare = name.lstrip("-")
    flags = all_flags()
    flag = flags.get(bare) or next((each for each in flags.values() if each.dotted == bare), None)
    if flag is None:
        known = [*spellings(LATEST), *spellings("0.9.7")]
        raise TrimtabError(
            f"unknown flag {name!r} of OpenRLHF {OLDEST} to 0.11.x.{did_you_mean(bare, known)}"
        )
    texts = _texts().get(flag.name, {})
    names = {}
    if "." not in flag.name:
        names[f"{flag.since or OLDEST} to {flag.until or FLAT}"] = flag.name
        if flag.dotted:
            last = f"to {flag.dotted_until}" if flag.dotted_until else "on"
            names[f"{flag.dotted_since or DOTTED_SINCE} {last}"] = flag.dotted
    else:
        names[f"{flag.since or DOTTED_SINCE} on"] = flag.name
    does = texts.get("does", "passed on as it is; it changes neither placement, memory nor time here")
    return Explanation(
        flag, does, texts.get("when", ""), texts.get("conflicts", ""), names, flag.default_in(version)
    )
