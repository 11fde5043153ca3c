"""Shared beginnings of prompts: how long each is, and who begins with which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab import scenario
from trimtab.engine.dtypes import NONE
from trimtab.errors import TrimtabError

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Prefixed:
    """``group`` (N,) prefix of each, or NONE; ``tokens`` (N,) its length, 0 for none; ``groups`` in all."""

    group: Integers
    tokens: Integers
    groups: int


def draw(
    workload: scenario.Workload,
    count: int,
    choices: np.random.Generator,
    sizes: np.random.Generator,
) -> Prefixed:
    """Prefixes of ``count`` requests or sessions; without ``workload.prefixes`` nobody has one.

    Raises
    ------
    TrimtabError
        for bounds in the wrong order, and for prefixes that leave no room under max_tokens.
    """
    law = workload.prefixes
    if law is None:
        return Prefixed(np.full(count, NONE), np.zeros(count, np.int64), 0)
    tokens = _sizes(law, sizes)
    _check_room(workload, int(tokens.max()))
    popularity = np.cumsum(np.arange(1, law.groups + 1, dtype=np.float64) ** -law.zipf)
    tossed = choices.random((count, 2))
    group = np.searchsorted(popularity / popularity[-1], tossed[:, 1], side="right")
    group = np.where(tossed[:, 0] < law.share, np.minimum(group, law.groups - 1), NONE)
    return Prefixed(group, np.where(group == NONE, 0, tokens[group]), law.groups)


def _sizes(law: scenario.Prefixes, rng: np.random.Generator) -> Integers:
    if isinstance(law.tokens, int):
        return np.full(law.groups, law.tokens)
    least, most = law.tokens
    if most < least:
        raise TrimtabError(
            f"workload.prefixes.tokens=[{least}, {most}]: the first bound must not be above the second"
        )
    return least + (rng.random(law.groups) * (most - least + 1)).astype(np.int64)


def _check_room(workload: scenario.Workload, longest: int) -> None:
    limits = {"max_tokens": workload.max_tokens}
    if workload.sessions is not None:
        limits["sessions.max_context"] = workload.sessions.max_context
    for name, limit in limits.items():
        if limit is not None and longest + 2 > limit:
            raise TrimtabError(
                f"a prefix of {longest} tokens leaves no room for a prompt and an answer under "
                f"{name}={limit}; make workload.prefixes.tokens at most {limit - 2} or raise {name}"
            )
