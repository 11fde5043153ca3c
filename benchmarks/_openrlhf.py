"""OpenRLHF's own argument checks, run from its wheel without installing it.

`train_ppo_ray.py` of a wheel is executed with stand-ins for ray and for OpenRLHF's trainer, as far as
the trainer's creation: its parser and every check run, and what it asks of Ray is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

PROGRAM = "openrlhf/cli/train_ppo_ray.py"
CONFIG = "openrlhf/utils/config.py"


@dataclass
class Asked:
    """What one command came to: ``error`` is None where OpenRLHF accepts it."""

    error: str | None = None
    gpus: int = 0
    parts: list[str] = field(default_factory=list)


class _Created(Exception):
    """The trainer would be created now: every check has passed."""


def folder() -> Path:
    base = os.environ.get("TRIMTAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(base) / "openrlhf"


def fetch(version: str) -> Path | None:
    """The wheel of ``version`` in the cache, downloaded by pip if it is not there; None offline."""
    there = sorted(folder().glob(f"openrlhf-{version}-*.whl"))
    if not there:
        folder().mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", str(folder()), f"openrlhf=={version}"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=120, check=False)
        there = sorted(folder().glob(f"openrlhf-{version}-*.whl"))
    return there[0] if there else None


@lru_cache(maxsize=16)
def _sources(wheel: Path) -> dict[str, Any]:
    """Compiled programs of a wheel by path inside the package."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            for wanted in (PROGRAM, CONFIG):
                if name.endswith(wanted):
                    found[wanted] = compile(archive.read(name), f"{wheel.name}/{wanted}", "exec")
    return found


class _Group:
    """A placement group: it holds its bundles."""

    def ready(self) -> None:
        return None


def _stand_ins(asked: Asked, sources: dict[str, Any]) -> dict[str, types.ModuleType]:
    def module(name: str, **values: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(values)
        return made

    def placement_group(bundles: list[dict[str, float]], strategy: str = "PACK") -> _Group:
        count = int(sum(bundle["GPU"] for bundle in bundles))
        asked.gpus += count
        asked.parts.append(f"shared {count}")
        return _Group()

    def engines(*values: Any, **named: Any) -> None:
        if not any(isinstance(value, _Group) for value in (*values, *named.values())):
            asked.gpus += values[0] * values[1]
            asked.parts.append(f"vllm {values[0] * values[1]}")

    def actors(nodes: int, per_node: int, kind: Any, pg: Any = None, **_: Any) -> None:
        if pg is None:
            asked.gpus += nodes * per_node
            asked.parts.append(f"{kind} {nodes * per_node}")

    class Trainer:
        @staticmethod
        def remote(*_: Any, **__: Any) -> None:
            raise _Created

    class Strategy:
        def print(self, *_: Any) -> None:
            return None

    launcher = {"RayActorGroup": actors, "ReferenceModelActor": "ref", "RewardModelActor": "reward"}
    stubs = {
        "ray": module("ray", is_initialized=lambda: True, get=lambda value: value, init=lambda **_: None),
        "ray.util": module("ray.util"),
        "ray.util.placement_group": module("ray.util.placement_group", placement_group=placement_group),
        "openrlhf": module("openrlhf"),
        "openrlhf.trainer": module("openrlhf.trainer"),
        "openrlhf.trainer.ray": module("openrlhf.trainer.ray", create_vllm_engines=engines),
        "openrlhf.trainer.ray.vllm_engine": module("vllm_engine", create_vllm_engines=engines),
        "openrlhf.trainer.ray.launcher": module("openrlhf.trainer.ray.launcher", **launcher),
        "openrlhf.trainer.ray.ppo_actor": module("ppo_actor", PolicyModelActor="actor"),
        "openrlhf.trainer.ray.ppo_critic": module("ppo_critic", CriticModelActor="critic"),
        "openrlhf.trainer.ppo_trainer": module("ppo_trainer", PPOTrainer=Trainer),
        "openrlhf.trainer.ppo_trainer_async": module("ppo_trainer_async", PPOTrainerAsync=Trainer),
        "openrlhf.utils": module("openrlhf.utils", get_strategy=lambda _: Strategy()),
    }
    # Names of classes have changed between versions: whatever is asked for is itself.
    for name in ("ppo_actor", "ppo_critic", "launcher", "vllm_engine"):
        stub = stubs[f"openrlhf.trainer.ray.{name}"]
        vars(stub)["__getattr__"] = lambda asked_for: asked_for
    if CONFIG in sources:
        config = module("openrlhf.utils.config")
        stubs["openrlhf.utils.config"] = config
    return stubs


@contextlib.contextmanager
def _in_place(stubs: dict[str, types.ModuleType], argv: list[str]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in stubs}
    old_argv = sys.argv
    sys.modules.update(stubs)
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = old_argv
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def ask(wheel: Path, arguments: list[str]) -> Asked:
    """Give ``arguments`` to the wheel's `train_ppo_ray`: its first complaint, or the GPUs it asks for."""
    asked = Asked()
    sources = _sources(wheel)
    said = io.StringIO()
    stubs = _stand_ins(asked, sources)
    with (
        _in_place(stubs, [PROGRAM, *arguments]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            if CONFIG in sources:
                exec(sources[CONFIG], vars(stubs["openrlhf.utils.config"]))
            exec(sources[PROGRAM], {"__name__": "__main__"})
            asked.error = "no trainer was created"
        except _Created:
            pass
        except SystemExit:
            lines = said.getvalue().strip().splitlines()
            asked.error = lines[-1] if lines else "the parser refused"
        except (AssertionError, TypeError, AttributeError, ValueError, KeyError) as error:
            asked.error = f"{type(error).__name__}: {error}"
    return asked


def flags(wheel: Path) -> dict[str, argparse.Action]:
    """Every flag of the wheel's parser, without its dashes."""
    found: dict[str, argparse.Action] = {}

    def capture(parser: argparse.ArgumentParser, *_: Any) -> None:
        found.update({name.lstrip("-"): each for each in parser._actions for name in each.option_strings})
        raise _Created

    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = capture  # type: ignore[assignment,method-assign]
    try:
        ask(wheel, [])
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
    return {name: action for name, action in found.items() if name not in ("h", "help")}
