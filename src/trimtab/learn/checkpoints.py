"""Training on disk, to go on from bit for bit: ``latest``, ``previous`` and ``best``.

One safetensors file each, so that it is there as a whole or not at all: tensors (weights, critic,
reference, optimiser) and, in its header, JSON with everything else and a checksum. Nothing is pickled.
What PPO draws is a function of (seed, update), so these two are the state of its random numbers; the
curriculum and the schedules are functions of the update.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab.errors import TrimtabError
from trimtab.learn.policy import Scorer
from trimtab.learn.ppo import Learner, new_learner
from trimtab.learn.presets import TrainConfig
from trimtab.learn.scenarios import Draw
from trimtab.learn.sealed import seal, unseal, write_whole
from trimtab.routers.features import CONTEXT, FEATURES

FORMAT = 1
LATEST, PREVIOUS, BEST = "latest", "previous", "best"
NAMES = (LATEST, PREVIOUS, BEST)


@dataclass
class Best:
    """The least ``eval/p99_ttft_ratio`` so far, and the update after which it was measured."""

    value: float = math.inf
    update: int = -1


class Checkpoints:
    """Those of one training, in ``folder``; ``purpose`` is the digest of the scenario trained on, or ""."""

    def __init__(self, folder: Path, purpose: str = "") -> None:
        self.folder = folder
        self.purpose = purpose

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def present(self) -> list[str]:
        """Names of those that are there, the one to go on from first."""
        return [name for name in NAMES if self.path(name).is_file()]

    def write(self, content: bytes, name: str = LATEST) -> None:
        """``latest`` becomes ``previous`` first; a kill at any moment leaves one of them whole."""
        if name == LATEST and self.path(LATEST).is_file():
            self.path(LATEST).replace(self.path(PREVIOUS))
        write_whole(self.path(name), content)

    def pack(self, learner: Learner, best: Best) -> bytes:
        """All that ``load`` needs, as bytes."""
        tensors = _tensors(learner)
        about = {
            "format": FORMAT,
            "features": [*FEATURES, *CONTEXT],
            "purpose": self.purpose,
            "config": learner.config.as_dict(),
            "numbers": _numbers(learner),
            "groups": [_plain(group) for group in learner.optimizer.state_dict()["param_groups"]],
            "history": learner.history,
            "best": vars(best),
        }
        return seal(tensors, about)

    def update_of(self, name: str) -> int:
        """Updates done in a checkpoint. Raises TrimtabError where it is damaged."""
        _, about = self._read(name)
        return int(about["numbers"]["update"])

    def load(self, name: str, config: TrainConfig, draw: Draw) -> tuple[Learner, Best]:
        """The learner as it was.

        Raises
        ------
        TrimtabError
            for a checkpoint that is damaged, of other features, another scenario or other parameters; the
            one to go on from instead is named where there is one.
        """
        tensors, about = self._read(name)
        path = str(self.path(name))
        if about["purpose"] != self.purpose:
            raise TrimtabError(f"checkpoint {path!r} is of another scenario; give another --out, or --fresh")
        changed = _difference(about["config"], json.loads(json.dumps(config.as_dict())))
        if changed is not None:
            parameter, then, now = changed
            raise TrimtabError(
                f"checkpoint {path!r} was trained with {parameter} = {then!r}, not {now!r}; "
                "give it as then, or another --out, or --fresh"
            )
        learner = new_learner(config, Scorer(config.hidden), draw)
        for module in _modules(learner):
            kept = {key.partition(".")[2]: value for key, value in tensors.items() if _is_of(key, module)}
            getattr(learner, module).load_state_dict(kept)
        learner.optimizer.load_state_dict({"state": _states(tensors), "param_groups": about["groups"]})
        for number, value in about["numbers"].items():
            setattr(learner, number, value)
        learner.history = about["history"]
        return learner, Best(**about["best"])

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self.path(name)
        tensors, about = unseal(path) or ({}, {})
        if _is_ours(about):
            return tensors, about
        what = "was made by another version of trimtab" if about else "is damaged, or is none"
        raise TrimtabError(f"checkpoint {str(path)!r} {what}; {self._instead_of(name)}")

    def next_whole(self, name: str) -> str | None:
        """The one to go on from where ``name`` will not do."""
        for other in NAMES[NAMES.index(name) + 1 :]:
            _, about = unseal(self.path(other)) or ({}, {})
            if _is_ours(about):
                return other
        return None

    def _instead_of(self, name: str) -> str:
        other = self.next_whole(name)
        if other is None:
            return "no other is whole: --fresh begins again"
        return f"the {other} one, of update {self.update_of(other)}, is whole: --resume --from {other}"


def _is_ours(about: dict[str, Any]) -> bool:
    return about.get("format") == FORMAT and about.get("features") == [*FEATURES, *CONTEXT]


# --- what a learner consists of -----------------------------------------------------------------


def _modules(learner: Learner) -> list[str]:
    return [each.name for each in fields(learner) if isinstance(getattr(learner, each.name), nn.Module)]


def _numbers(learner: Learner) -> dict[str, float]:
    values = {each.name: getattr(learner, each.name) for each in fields(learner)}
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def _tensors(learner: Learner) -> dict[str, Tensor]:
    found = {
        f"{module}.{name}": value
        for module in _modules(learner)
        for name, value in getattr(learner, module).state_dict().items()
    }
    for index, state in learner.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    return {name: value.detach().contiguous() for name, value in found.items()}


def _states(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if _is_of(key, "optimizer"):
            _, index, name = key.split(".", 2)
            states.setdefault(int(index), {})[name] = value
    return states


def _is_of(key: str, module: str) -> bool:
    return key.startswith(f"{module}.")


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in group.items()}


def _difference(then: dict[str, Any], now: dict[str, Any], path: str = "") -> tuple[str, Any, Any] | None:
    """The first parameter that is not the same, with its two values; the preset is a name only."""
    for name in [*now, *(name for name in then if name not in now)]:
        before, after = then.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = _difference(before, after, f"{path}{name}.")
            if inner is not None:
                return inner
        elif before != after and f"{path}{name}" != "preset":
            return f"{path}{name}", before, after
    return None
