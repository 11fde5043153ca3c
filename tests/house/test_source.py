"""How the source looks: sizes, characters, and habits that must not come back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
PROGRAMS = [*SOURCE, *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
SHORTEST, LONGEST = 30, 600


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_size(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{name_of(path)} has {lines} lines, more than {LONGEST}: split it by thought"
    if path in SOURCE and path.name != "__init__.py":
        assert lines >= SHORTEST, f"{name_of(path)} has {lines} lines, fewer than {SHORTEST}: where does it belong?"


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_ascii_only(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert line.isascii(), f"{name_of(path)}:{number}: {line.strip()!r}"


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_habits(path: Path) -> None:
    """No blind except, no work at exit, no global seeds; every module says what it is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            assert caught not in ("", "Exception", "BaseException"), f"{where}: name what you catch"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("np.random.seed", "random.seed", "atexit.register"), f"{where}: {called}"
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), f"{name_of(path)} begins with no docstring"


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_functions_are_of_one_thought(path: Path) -> None:
    """Forty lines is the aim; sixty-five without the docstring is where a function has two thoughts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= 65, f"{name_of(path)}:{node.lineno}: {node.name} has {lines} lines"


def test_no_private_reaching() -> None:
    """A leading underscore means: not from another module."""
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trimtab"):
                for alias in node.names:
                    private = alias.name.startswith("_") and alias.name != "__version__"
                    assert not private, f"{name_of(path)}:{node.lineno}: {alias.name}"
