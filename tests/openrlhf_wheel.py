"""OpenRLHF's own functions, read from its wheel: what `trimtab.rlhf.estimators` must agree with.

The wheel comes from the package registry once and stays in the cache. Its modules are executed with
stand-ins for ray, deepspeed and its trainer; without the wheel the tests are skipped.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
import zipfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

VERSION = "0.10.2"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = {
    "openrlhf.models.utils": "models/utils.py",
    "openrlhf.models.loss": "models/loss.py",
    "openrlhf.utils.seqlen_balancing": "utils/seqlen_balancing.py",
    "openrlhf.trainer.ppo_utils.length_penalty": "trainer/ppo_utils/length_penalty.py",
    "openrlhf.trainer.ppo_utils.kl_controller": "trainer/ppo_utils/kl_controller.py",
    "openrlhf.trainer.ppo_utils.experience_maker": "trainer/ppo_utils/experience_maker.py",
}


@lru_cache(maxsize=1)  # offline, pip is asked once and not for every test
def wheel() -> Path | None:
    spec = importlib.util.spec_from_file_location("_openrlhf", BENCHMARKS / "_openrlhf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up.
    sys.modules["_openrlhf"] = module
    spec.loader.exec_module(module)
    found: Path | None = module.fetch(VERSION)
    return found


def _stand_ins() -> dict[str, types.ModuleType]:
    names = {
        "deepspeed": {},
        "ray": {},
        "openrlhf": {},
        "openrlhf.models": {},
        "openrlhf.utils": {},
        "openrlhf.trainer": {},
        "openrlhf.trainer.ray": {},
        "openrlhf.trainer.ray.launcher": {"RayActorGroup": object},
        "openrlhf.trainer.ppo_utils": {},
        "openrlhf.trainer.ppo_utils.experience": {"Experience": object},
        "openrlhf.utils.logging_utils": {"init_logger": logging.getLogger},
    }
    made = {}
    for name, values in names.items():
        made[name] = types.ModuleType(name)
        made[name].__path__ = []  # a package, so that its parts can be imported
        vars(made[name]).update(values)
    return made


@contextmanager
def _in_place(modules: dict[str, types.ModuleType]) -> Any:
    before = {name: sys.modules.get(name) for name in (*modules, *FILES)}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def pieces() -> dict[str, types.ModuleType]:
    """The wheel's modules by the last part of their names; skips the test where there is no wheel."""
    path = wheel()
    if path is None:
        pytest.skip(f"openrlhf=={VERSION} is neither in the cache nor in reach")
    return _executed(path)


@lru_cache(maxsize=1)
def _executed(path: Path) -> dict[str, types.ModuleType]:
    found = {}
    with zipfile.ZipFile(path) as archive, _in_place(_stand_ins()):
        for name, file in FILES.items():
            member = next(each for each in archive.namelist() if each.endswith(f"openrlhf/{file}"))
            module = types.ModuleType(name)
            module.__package__ = name.rpartition(".")[0]
            sys.modules[name] = module
            exec(compile(archive.read(member), member, "exec"), vars(module))
            found[name.rpartition(".")[2]] = module
    return found
