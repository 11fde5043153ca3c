"""``trimtab runs``: what a store of sweeps holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli import options
from trimtab.cli.progress import note
from trimtab.cli.search import STORE
from trimtab.errors import TrimtabError


def runs(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")] = STORE,
    where: Annotated[
        str | None, typer.Option("--where", metavar="SQL", help="Only runs like device = 'h100' and tp < 4.")
    ] = None,
    sort: Annotated[str, typer.Option("--sort", metavar="SQL", help="What to order by.")] = "device, tp, key",
    limit: Annotated[int, typer.Option("--limit", help="Rows shown at most.")] = 40,
    sql: Annotated[
        str | None,
        typer.Option("--sql", metavar="SQL", help="A whole query instead, of the table runs."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="KEYS", help="Show what differs between runs: a,b,...")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the runs that --where selects.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """List, filter, compare and delete the runs of a store, in SQL."""
    from trimtab.plan import query
    from trimtab.plan.store import MARKER, Store

    if not (store / MARKER).is_file():
        raise TrimtabError(f"{store} is no store of runs; `trimtab search` makes one")
    opened = Store(store)
    if delete:
        if where is None or sql or compare:
            raise TrimtabError("--delete needs --where, and nothing else; --where true deletes all")
        count = opened.delete(set(query.keys_where(opened, where)))
        note(f"deleted {count} run{'s' if count != 1 else ''} of {store}")
        return
    if compare:
        keys = [key.strip() for key in compare.split(",") if key.strip()]
        lines = query.compare(opened, keys)
        names, rows = ["figure", *keys], [(name, *values) for name, values in lines]
    else:
        names, rows = query.ask(opened, sql or query.select(where, sort, limit))
    if as_json:
        json.dump([dict(zip(names, row, strict=True)) for row in rows], sys.stdout, indent=1, default=str)
        print()
    else:
        _show(names, rows)


def _show(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(_said(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _said(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
