"""Points for sweeps that are computed elsewhere: workers import them from here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def square(payload: dict[str, Any]) -> dict[str, Any]:
    """A point that takes no time."""
    return {"square": payload["number"] ** 2, "process": os.getpid()}


def deadly(payload: dict[str, Any]) -> dict[str, Any]:
    """As ``square``, but the first worker that gets a point with ``die`` is killed, and notes it there."""
    marker = payload.get("die")
    time.sleep(0.01)
    if marker and not Path(marker).exists():
        Path(marker).write_text(str(os.getpid()))
        os.kill(os.getpid(), payload.get("by", signal.SIGKILL))
    return {"square": payload["number"] ** 2}


def always_deadly(payload: dict[str, Any]) -> dict[str, Any]:
    """No worker survives it."""
    os.kill(os.getpid(), signal.SIGKILL)
    return payload


def interrupted(payload: dict[str, Any]) -> dict[str, Any]:
    """Ctrl-C at one of the points, once."""
    if payload["number"] == 7 and not Path(payload["marker"]).exists():
        Path(payload["marker"]).touch()
        raise KeyboardInterrupt
    return {"square": payload["number"] ** 2}


def sized_or_dead(payload: dict[str, Any]) -> dict[str, Any]:
    """A real point of a search; the first worker that gets one with ``die`` is killed."""
    from trimtab.plan.search import size_point

    deadly({"number": 0, "die": payload.get("die")})
    return size_point(payload)
