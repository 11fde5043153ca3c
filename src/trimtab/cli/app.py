"""All commands of ``trimtab``. Each imports what it needs when it is called, so that --help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli import (
    calibrate,
    capacity,
    catalogue,
    compare,
    fusion,
    moe,
    profile,
    rlhf,
    runs,
    scenario,
    search,
    simulate,
    train,
    workload,
)

app = typer.Typer(
    name="trimtab",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        catalogue.version()
        raise typer.Exit()


@app.callback()
def trimtab(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Load balancing for the whole LLM stack: requests, experts, modalities, RLHF samples."""


app.command("simulate")(simulate.simulate)
app.command("compare")(compare.compare)
app.command("capacity")(capacity.capacity)
app.command("search")(search.search)
app.command("runs")(runs.runs)
app.command("train")(train.train)
app.command("report")(simulate.report)
app.add_typer(scenario.app, name="scenario")
app.add_typer(workload.app, name="workload")
app.command("profile")(profile.profile)
app.command("calibrate")(calibrate.calibrate)
app.add_typer(moe.app, name="moe")
app.add_typer(fusion.app, name="fusion")
app.add_typer(rlhf.app, name="rlhf")
app.command("routers")(catalogue.routers)
app.command("schedulers")(catalogue.schedulers)
app.command("models")(catalogue.models)
app.command("devices")(catalogue.devices)
app.command("schema")(catalogue.schema)
app.command("version")(catalogue.version)
