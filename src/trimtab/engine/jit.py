"""The only place that compiles. Every compiled function of the project is decorated with
``jit``, and the few that Python calls with ``door``.

The cache directory carries a hash of all engine, scheduler, router and loop sources, of numba's
version and of the processor, because numba's own cache does not notice a change in a callee of
another file. ``TRIMTAB_DEBUG=1`` turns compilation off and sweeps the invariants after every event;
``NUMBA_DISABLE_JIT=1`` only turns compilation off. Results are bit-identical either way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.types import unliteral

DEBUG = os.environ.get("TRIMTAB_DEBUG", "") not in ("", "0")
INTERPRETED = DEBUG or bool(numba.config.DISABLE_JIT)
COMPILED_PACKAGES = ("engine", "schedulers", "routers", "cluster")

Function = TypeVar("Function", bound=Callable[..., Any])


def cache_home() -> Path:
    """The user's cache directory for trimtab: ``$TRIMTAB_CACHE`` or ``~/.cache/trimtab``."""
    base = os.environ.get("TRIMTAB_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trimtab"


def _cache_directory() -> str:
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(numba.__version__.encode())
    for package in COMPILED_PACKAGES:
        for source in sorted((root / package).glob("*.py")):
            digest.update(source.name.encode())
            digest.update(source.read_bytes())
    return str(cache_home() / "compiled" / digest.hexdigest()[:16])


CACHE_DIRECTORY = _cache_directory()


def is_warm() -> bool:
    """Whether an earlier process has compiled these very sources."""
    return DEBUG or any(Path(CACHE_DIRECTORY).rglob("*.nbc"))


def jit(function: Function) -> Function:
    """Compile a function that only compiled functions call: no fastmath, no GIL, cached on disk."""
    return _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def door(function: Function) -> Function:
    """Compile a function that Python calls."""
    return _compile(function)


def _compile(function: Function, **options: Any) -> Function:
    if DEBUG:
        return function
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = CACHE_DIRECTORY
    try:
        return _without_literals(
            numba.njit(cache=True, nogil=True, error_model="python", **options)(function)
        )
    finally:
        numba.config.CACHE_DIR = before


def _without_literals(dispatcher: Any) -> Any:
    """Let calls with constants share one compiled version instead of one per constant."""
    resolve = dispatcher.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        return resolve(tuple(unliteral(arg) for arg in args), kws)

    dispatcher.get_call_template = get_call_template
    return dispatcher
