"""The one error users see, and the hint that goes with a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrimtabError(ValueError):
    """Bad input: one line saying what was given, what is allowed, what was perhaps meant.

    The command line prints the line and exits with code 2; from Python it is a ``ValueError``.
    """


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest allowed name, or an empty string.

    >>> did_you_mean("rnadom", ["random", "round-robin"])
    " Did you mean 'random'?"
    """
    close = difflib.get_close_matches(str(given), [str(name) for name in allowed], n=1, cutoff=0.55)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(what: str, given: str, allowed: Iterable[str]) -> TrimtabError:
    """The error for a name that no registry knows.

    >>> str(unknown("router", "rnadom", ["random", "round-robin"]))
    "unknown router 'rnadom'; allowed: random, round-robin. Did you mean 'random'?"
    """
    names = sorted(str(name) for name in allowed)
    return TrimtabError(f"unknown {what} {given!r}; allowed: {', '.join(names)}.{did_you_mean(given, names)}")
