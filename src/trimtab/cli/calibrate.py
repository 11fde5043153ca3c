"""``trimtab calibrate``: fit execution times to profiles, and say how good they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.exectime.calibration import Calibration

_STYLE: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "box": None, "padding": (0, 1)}


def calibrate(
    profiles: Annotated[
        list[Path],
        typer.Argument(metavar="PROFILE...", help="CSVs of trimtab profile or of Vidur, or folders."),
    ],
    device: Annotated[str | None, typer.Option(help="Which device, if the profiles hold several.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; <device>.json by default.")] = None,
    source: Annotated[str, typer.Option(help="Where the profiles are from, kept in the file.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the errors as JSON.")] = False,
) -> None:
    """Fit execution times to PROFILE..., print the error on shapes held out, write a calibration."""
    import json
    from dataclasses import replace

    from rich.console import Console

    from trimtab.cli.progress import note
    from trimtab.exectime.calibrate import calibrate as fit
    from trimtab.exectime.calibrate import collect
    from trimtab.exectime.calibration import save_calibration

    if out is not None and out.suffix != ".json":
        raise TrimtabError(f"--out {str(out)!r} must end in .json")
    if out is not None and not out.parent.is_dir():
        raise TrimtabError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}")
    found = collect(profiles, device)
    for skipped in found.skipped:
        note(f"skipped {skipped}", quiet)
    console = Console(stderr=True)
    with console.status("reading", spinner="line") as status:
        calibration = fit(found, (lambda what: None) if quiet else (lambda what: status.update(what)))
    calibration = replace(calibration, source=source or calibration.source)
    target = out or Path(f"{found.kernels.device.name}.json")
    partial = target.with_suffix(".json.part")
    size = save_calibration(calibration, partial)
    os.replace(partial, target)
    if as_json:
        print(json.dumps(calibration.errors))
        return
    show = Console()
    show.print(operator_table(calibration))
    for line in summary_lines(calibration):
        show.print(line, highlight=False)
    show.print(f"{len(found.rows):,} rows, {size / 1000:.0f} kB written to {target}", highlight=False)


def operator_table(calibration: Calibration) -> Table:
    """Mean absolute error of each operator on the shapes that were held out."""
    from rich.table import Table

    table = Table(title=f"{calibration.device}: mean absolute error on held-out shapes", **_STYLE)
    table.add_column("operator")
    for heading in ("rows", "constants", "calibrated", "regression"):
        table.add_column(heading, justify="right")
    for operator, entry in calibration.errors["operators"].items():
        table.add_row(
            operator,
            f"{entry['rows']:,}",
            _percent(entry["constants"]),
            _percent(entry["calibrated"]),
            entry["predictor"],
        )
    table.caption = "constants: the roofline with the best constants; calibrated: with its surfaces"
    return table


def summary_lines(calibration: Calibration) -> list[str]:
    errors = calibration.errors
    lines = [f"linear operators, held-out shapes: {_percent(errors['linear'])} mean"]
    iteration, left = errors["iteration"], errors["left_out"]
    if iteration["rows"]:
        lines.append(
            "iterations (a layer without attention), held-out shapes: "
            f"{_percent(iteration['median'])} median, {_percent(iteration['p99'])} p99"
        )
    if left:
        lines.append(
            f"iterations of a model left out of the fit: {_percent(left['median'])} median, "
            f"{_percent(left['p99'])} p99; its linear operators {_percent(left['linear'])} mean"
        )
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
