"""``trimtab rlhf doctor``: what went wrong in a run, the line that shows it, and what to change."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli import options, rlhf_options

if TYPE_CHECKING:
    from trimtab.rlhf.doctor import Diagnosis, Finding

COLOURS = {"high": "red", "medium": "yellow", "low": "cyan"}


def doctor(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...", help="Console logs, CSV, TensorBoard's event files, or folders of them."
        ),
    ],
    profile: Annotated[
        str,
        typer.Option("--profile", help="Ranges of the measures: default, or guide for the tuning guide's."),
    ] = "default",
    version: rlhf_options.VersionOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Diagnose a run of OpenRLHF by its logs: cause, evidence, and the flags that mend it.

    Silent on a healthy run, apart from what was read.
    """
    from trimtab.rlhf.doctor import diagnose

    found = diagnose(logs, profile, version)
    if as_json:
        print(json.dumps(_as_dict(found), indent=1))
        return
    for number, finding in enumerate(found.findings, 1):
        _show(number, finding)
    read = f"{found.files} file{'s'[: found.files != 1]}, {found.lines} lines, {found.steps} steps"
    if found.findings:
        print(f"read {read}; flags as OpenRLHF {found.version} spells them")
    else:
        print(f"nothing wrong found in {read} (profile {found.profile})")


def _as_dict(found: Diagnosis) -> dict[str, object]:
    written = asdict(found)
    for finding in written["findings"]:
        del finding["hides"]
    return written


def _show(number: int, finding: Finding) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    colour = COLOURS[finding.confidence]
    sure = f"[{colour}]({finding.confidence} confidence)[/{colour}]"
    console.print(f"{number}. [bold]{finding.name}[/bold] {sure}")
    console.print(f"   {escape(finding.cause)}")
    seen = f" ({finding.times} times)" if finding.times > 1 else ""
    console.print(f"   seen   {escape(finding.place)}{seen}")
    console.print(f"          {escape(finding.evidence)}", style="dim")
    for index, advice in enumerate(finding.fix):
        console.print(f"   {'change' if index == 0 else '      '} {escape(advice)}")
    console.print(f"   source {escape(finding.source)}\n", style="dim")
