"""``trimtab moe``: mixtures of experts."""

from __future__ import annotations

import typer

from trimtab.cli import moe_place

app = typer.Typer(help="Mixtures of experts: place and replicate their experts.", no_args_is_help=True)

app.command("place")(moe_place.place)


@app.callback()
def moe() -> None:
    """Mixtures of experts: place and replicate their experts."""
