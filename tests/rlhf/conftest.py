"""Small jobs, and OpenRLHF's wheels where they can be had."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trimtab.hardware import get_device, get_model
from trimtab.rlhf.job import Cluster, Job, Lengths

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of benchmarks/ by name; its neighbours can be imported from it."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def published() -> ModuleType:
    return load("_rlhf_published")


class Wheels:
    """OpenRLHF's own checks by version; skips where the wheel is neither cached nor to be had."""

    def __init__(self) -> None:
        self.module = load("_openrlhf")

    def ask(self, version: str, words: list[str]) -> Any:
        return self.module.ask(self.wheel(version), words)

    def wheel(self, version: str) -> Path:
        wheel = self.module.fetch(version)
        if wheel is None:
            pytest.skip(f"the wheel of OpenRLHF {version} is not cached and the registry is not reachable")
        return Path(wheel)


@pytest.fixture(scope="session")
def openrlhf() -> Wheels:
    return Wheels()


def make_job(**changes: Any) -> Job:
    """PPO of Llama 3 8B on one node of A100s."""
    given: dict[str, Any] = {
        "actor": get_model("llama-3-8b"),
        "cluster": Cluster(get_device("a100-80"), 1),
        "prompt": Lengths(256, 1024),
        "response": Lengths(512, 1024),
    }
    return Job(**{**given, **changes})
