"""Importing is light: nothing compiled, nothing heavy loaded, under 0.3 s."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("numba", "torch", "matplotlib", "pyarrow", "pandas", "sklearn", "scipy", "pydantic", "typer")
LIMIT_S = 0.3


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def seconds(code: str) -> float:
    """Fastest of three, because the machine may be busy; the interpreter's own start is not counted."""
    timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    return min(float(run(timed).splitlines()[-1]) for _ in range(3))


def test_import_loads_nothing_heavy() -> None:
    code = f"import trimtab, sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(run(code)) == []


def test_import_is_quick() -> None:
    assert seconds("import trimtab") < LIMIT_S


def test_scenarios_load_without_the_engine() -> None:
    code = (
        "import trimtab, sys; trimtab.load_scenario('azure-conv'); "
        "print([m for m in ('numba', 'matplotlib', 'pyarrow') if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_help_is_quick() -> None:
    call = "from trimtab.cli import main; main(['--help'])"
    assert seconds(call) < 0.5


def test_public_names_exist() -> None:
    code = "import trimtab; print([getattr(trimtab, n) is None for n in trimtab.__all__])"
    assert "True" not in run(code)
