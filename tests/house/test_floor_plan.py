"""Imports go down only. The plan, from the ground up; each entry is a module or package of trimtab."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "trimtab"
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("scenario", "scenario_workload"),
    ("hardware", "workload", "exectime"),
    ("engine",),
    ("routers", "schedulers"),
    ("cluster",),
    ("conditions", "pools", "fleet", "result", "vidur", "vidur_flags"),
    ("simulation",),
    ("report.definitions", "report.load", "report.atomic", "report.bootstrap"),
    ("report.metrics",),
    ("report.digest", "report.series"),
    ("comparison",),
    ("robustness",),
    ("report", "plan", "learn", "moe", "fusion", "rlhf"),
    ("cli",),
)
# The tables of the engine are data: floors below may fill them, floors above may read them.
ANYWHERE = ("engine.dtypes", "balance", "data")
# Conveniences that reach up when they are called, not when they are imported.
LATE = {("result", "report.metrics.summarize")}  # result.summary()
TORCH = ("learn", "moe", "fusion", "exectime.profile")
RAY = ("plan.executors",)


def modules() -> dict[str, Path]:
    """Dotted name below trimtab -> file; the package's own face is not on a floor."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def floor_of(name: str) -> int:
    """The floor of the longest entry that ``name`` is or lies in."""
    best, floor = "", -1
    for index, entries in enumerate(FLOORS):
        for entry in entries:
            if (name == entry or name.startswith(entry + ".")) and len(entry) > len(best):
                best, floor = entry, index
    return floor


def imports_of(path: Path) -> list[tuple[str, int]]:
    """(imported module, line), also those inside functions; those for type checkers only are left out."""
    found = []
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_every_module_has_a_floor() -> None:
    homeless = [name for name in modules() if name.split(".")[0] not in ANYWHERE and floor_of(name) < 0]
    assert not homeless, f"give a floor in {__file__}: {homeless}"


def test_imports_go_down() -> None:
    offences = []
    for name, path in modules().items():
        for imported, line in imports_of(path):
            target = imported.removeprefix("trimtab.")
            if target == imported or any(
                target == free or target.startswith(free + ".") for free in ANYWHERE
            ):
                continue
            # A leaf stands on the ground floor, where the errors are.
            if floor_of(target) > max(0, floor_of(name)) and (name, target) not in LATE:
                offences.append(f"{name}:{line} imports {target} from a floor above")
            if name.startswith("balance") and floor_of(target) > 0:
                offences.append(f"{name}:{line}: balance is a leaf, but imports {target}")
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(("package", "allowed"), [("torch", TORCH), ("ray", RAY), ("gymnasium", TORCH)])
def test_heavy_packages_stay_where_they_belong(package: str, allowed: tuple[str, ...]) -> None:
    for name, path in modules().items():
        if name.startswith(allowed):
            continue
        for imported, line in imports_of(path):
            assert imported.split(".")[0] != package, f"{name}:{line}: only {allowed} may import {package}"


def test_one_place_compiles() -> None:
    compilers = {"njit", "jit", "vectorize", "guvectorize", "cfunc", "jitclass", "stencil"}
    for name, path in modules().items():
        if name == "engine.jit":
            continue
        for imported, line in imports_of(path):
            from_numba = imported.split(".")[0] == "numba" and imported.split(".")[-1] in compilers
            assert not from_numba, f"{name}:{line}: compile with trimtab.engine.jit.jit"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in compilers:
                owner = ast.unparse(node.value)
                assert owner not in ("numba", "nb"), (
                    f"{name}:{node.lineno}: compile with trimtab.engine.jit.jit"
                )
