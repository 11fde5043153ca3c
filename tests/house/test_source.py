"""How the source looks: sizes, characters, and habits that must not come back."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
PROGRAMS = [*SOURCE, *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
SHORTEST, LONGEST = 30, 600


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def trees() -> list[tuple[str, ast.Module]]:
    return [(name_of(path), ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCE]


def test_size() -> None:
    offences = []
    for path in PROGRAMS:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST:
            offences.append(f"{name_of(path)}: {lines} lines, more than {LONGEST}; split it by thought")
        if path in SOURCE and path.name != "__init__.py" and lines < SHORTEST:
            offences.append(f"{name_of(path)}: {lines} lines, fewer than {SHORTEST}; where does it belong?")
    assert not offences, "\n".join(offences)


def test_ascii_only() -> None:
    offences = [
        f"{name_of(path)}:{number}: {line.strip()!r}"
        for path in SOURCE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if not line.isascii()
    ]
    assert not offences, "\n".join(offences)


def test_no_blind_except() -> None:
    offences = [
        f"{name}:{node.lineno}: name what you catch"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    ]
    assert not offences, "\n".join(offences)


def test_nothing_hidden() -> None:
    """No work at exit, no global seeds."""
    forbidden = ("np.random.seed", "random.seed", "atexit.register")
    offences = [
        f"{name}:{node.lineno}: {ast.unparse(node.func)}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in forbidden
    ]
    assert not offences, "\n".join(offences)


def test_every_module_says_what_it_is() -> None:
    silent = [
        name for name, tree in trees() if not name.endswith("__init__.py") and not ast.get_docstring(tree)
    ]
    assert not silent, silent


def test_functions_are_of_one_thought() -> None:
    """Forty lines is the aim; sixty-five after the docstring is where a function has two thoughts."""
    offences = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                if lines > 65:
                    offences.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
    assert not offences, "\n".join(offences)


def test_no_private_reaching() -> None:
    """A leading underscore means: not from another module."""
    offences = [
        f"{name}:{node.lineno}: {alias.name}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trimtab")
        for alias in node.names
        if alias.name.startswith("_") and alias.name != "__version__"
    ]
    assert not offences, "\n".join(offences)
