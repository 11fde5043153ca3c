"""``trimtab scenario``: the bundled scenarios, and scenarios made from Vidur's configurations."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli import options
from trimtab.cli.progress import note
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.vidur import Translation

app = typer.Typer(help="List, show and translate scenarios.", no_args_is_help=True)


@app.command("list")
def list_scenarios() -> None:
    """List the scenarios that ship with trimtab."""
    from rich.console import Console
    from rich.table import Table

    from trimtab.scenario import bundled_scenarios, load_scenario

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("replicas", justify="right")
    table.add_column("description")
    for name in bundled_scenarios():
        scenario = load_scenario(name)
        table.add_row(name, str(scenario.num_replicas), scenario.description)
    Console(width=None if sys.stdout.isatty() else 140).print(table, highlight=False)


@app.command()
def show(
    scenario: options.ScenarioArgument,
    setting: options.SetOption = None,
    full: Annotated[bool, typer.Option("--full", help="With every default.")] = False,
) -> None:
    """Print a scenario as YAML, to read or to start your own from."""
    import yaml

    from trimtab.scenario import load_scenario

    chosen = load_scenario(scenario, options.parse_settings(setting))
    data = chosen.model_dump(mode="json", exclude_unset=not full, exclude_none=not full)
    print(yaml.safe_dump(data, sort_keys=False, width=100), end="")


@app.command("from-vidur")
def from_vidur(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Vidur command line in quotes, config.json, or - for stdin."),
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write there (.yaml).")] = None,
    root: Annotated[
        str | None, typer.Option("--root", metavar="FOLDER", help="Vidur's checkout, for its data files.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out what has no counterpart, and say so.")
    ] = False,
) -> None:
    """Make a scenario of a Vidur command line or config.json.

    What has no counterpart is named, and nothing is written unless --partial leaves it out.
    """
    from trimtab.scenario import load_scenario
    from trimtab.vidur import from_vidur as translate

    if source == "-":
        source = sys.stdin.read() + "\n"
    translation = translate(source, root)
    if translation.problems and not partial:
        count = len(translation.problems)
        raise TrimtabError(
            f"{count} setting{'s' * (count > 1)} cannot be translated: {'; '.join(translation.problems)}; "
            "use --partial to leave them out"
        )
    load_scenario(translation.scenario)
    text = _as_yaml(translation)
    for message in (*translation.problems, *translation.notes):
        note(f"{'left out' if message in translation.problems else 'note'}: {message}")
    if out is None:
        print(text, end="")
        return
    draft = out.with_name(f".{out.name}.part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, out)
    note(f"wrote {out}; next: trimtab simulate {out}")


def _as_yaml(translation: Translation) -> str:
    import yaml

    lines = ["# Translated from a Vidur configuration by `trimtab scenario from-vidur`."]
    lines += [f"# left out: {problem}" for problem in translation.problems]
    lines += [f"# note: {message}" for message in translation.notes]
    return "\n".join(lines) + "\n" + yaml.safe_dump(translation.scenario, sort_keys=False, width=100)
