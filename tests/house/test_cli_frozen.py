"""The command line is a promise: commands and flags change on purpose or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from trimtab.cli.app import app

GOLDEN = Path(__file__).with_name("cli.txt")
DOCS = Path(__file__).parents[2] / "docs"


def commands(command: Any = None, path: str = "trimtab") -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command that does something."""
    command = typer.main.get_command(app) if command is None else command
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")
    else:
        yield path, command


def listing() -> str:
    """One line per command: its arguments in capitals, then its flags in order of appearance."""
    lines = []
    for name, command in commands():
        words = []
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                words.append(str(parameter.name).upper())
            else:
                words.append("/".join([*parameter.opts, *parameter.secondary_opts]))
        lines.append(" ".join([name, *words]))
    return "\n".join(lines) + "\n"


def test_the_command_line_is_frozen() -> None:
    assert listing() == GOLDEN.read_text(), (
        "commands or flags have changed; if that is meant, say so in CHANGELOG.md and run "
        "`python -m tests.house.test_cli_frozen` from the repository root"
    )


def test_docs_name_every_command() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    for name, _ in commands():
        assert f"{name}" in text, f"no page under docs/ mentions `{name}`"


def test_every_flag_is_explained() -> None:
    for name, command in commands():
        assert command.help, f"`{name}` has no description"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"`{name}`: {parameter.name} has no help"


if __name__ == "__main__":
    GOLDEN.write_text(listing())
