"""What an interrupted calibration knows already, kept beside the folder that it was to write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.balance import load_state, save_state
from trimtab.errors import TrimtabError

EVERY_S = 20.0  # between two savings


class Notebook:
    """Results so far by stage, saved every ``every_s`` seconds; without a path, nothing is kept.

    ``key`` says of which calibration: notes of another one are not used.
    """

    def __init__(self, path: Path | None = None, key: str = "", every_s: float = EVERY_S) -> None:
        self.path, self.key, self.every_s = path, key, every_s
        self.saved = time.monotonic()
        self.stages: dict[str, Any] = {}
        if path is not None and path.is_file():
            try:
                state = load_state(path)
            except TrimtabError:
                return  # cut off by a full disk, say: begin anew
            if state.get("key") == key:
                self.stages = state["stages"]

    def read(self, stage: str) -> dict[str, Any] | None:
        """What was noted of a stage; None before anything was."""
        return self.stages.get(stage)

    def note(self, stage: str, state: Mapping[str, Any], *, now: bool = False) -> None:
        """Remember the state of a stage; on disk where it is time, or ``now``."""
        self.stages[stage] = dict(state)
        if self.path is None or not (now or time.monotonic() - self.saved >= self.every_s):
            return
        save_state(self.path, {"key": self.key, "stages": self.stages})
        self.saved = time.monotonic()

    def close(self) -> None:
        """The work is done: nothing to go on from."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
