"""``trimtab rlhf check``: what a command of OpenRLHF asks for, what goes wrong, and the mended one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

from trimtab.cli import options, rlhf_options

if TYPE_CHECKING:
    from trimtab.rlhf.check import Checked

GIB = 2**30
COLOURS = {"refused": "red", "hangs": "red", "crashes": "red", "memory": "red"}


def check(
    command: rlhf_options.CommandArgument,
    device: rlhf_options.DeviceOption = "a100-80",
    nodes: rlhf_options.NodesOption = 1,
    gpus_per_node: rlhf_options.PerNodeOption = 8,
    host_gib: rlhf_options.HostOption = 1024.0,
    network: rlhf_options.NetworkOption = None,
    actor: rlhf_options.ActorOption = None,
    critic: rlhf_options.CriticOption = None,
    response_tokens: rlhf_options.ResponseOption = None,
    version: rlhf_options.VersionOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Check a command: GPUs asked for and owned, what is refused, hangs or crashes, memory and time.

    Exits with 1 where it would not run.
    """
    from trimtab.hardware import get_model
    from trimtab.rlhf.check import check as examine
    from trimtab.rlhf.flags import checked_version

    found = examine(
        rlhf_options.read_command(command),
        cluster=rlhf_options.make_cluster(device, nodes, gpus_per_node, host_gib, network),
        version=checked_version(version) if version else None,
        actor=get_model(actor) if actor else None,
        critic=get_model(critic) if critic else None,
        response_mean=response_tokens,
    )
    if as_json:
        print(json.dumps(_as_dict(found), indent=1))
    else:
        _print(found)
    if not found.runs:
        raise typer.Exit(1)


def _as_dict(found: Checked) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "openrlhf": found.version,
        "runs": found.runs,
        "gpus": found.gpus,
        "owned": found.owned,
        "groups": found.demand,
        "findings": [
            {"rule": each.rule, "kind": each.kind, "text": each.text, "change": each.change}
            for each in found.findings
        ],
        "mended": found.mended,
        "mended_gpus": found.mended_gpus,
    }
    if found.forecast is not None:
        pool, phase, peak = found.forecast.fullest
        shown |= {"peak_gib": round(peak / GIB, 2), "peak_at": [pool, phase], "fits": found.forecast.fits}
        shown |= {"host_gib_per_node": round(found.forecast.host_total / GIB, 1)}
    if found.step is not None:
        shown |= {"step_s": round(found.step.seconds, 2)}
        shown |= {"phases_s": {name: round(value, 2) for name, value in found.step.phases.items()}}
    return shown


def _print(found: Checked) -> None:
    from rich.console import Console

    from trimtab.rlhf.commands import command_lines

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    parts = ", ".join(f"{name} {count}" for name, count in found.demand.items())
    console.print(f"OpenRLHF {found.version}: asks for {found.gpus} GPUs ({parts}), owned {found.owned}")
    for each in found.findings:
        style = COLOURS.get(each.kind, "yellow")
        console.print(f"[{style}]{each.kind:8}[/{style}] {each.text}")
    if found.forecast is not None:
        pool, phase, peak = found.forecast.fullest
        usable, host = found.forecast.usable_bytes / GIB, found.forecast
        console.print(
            f"memory: fullest in {phase} on {pool}, {peak / GIB:.1f} of {usable:.1f} GiB usable; host "
            f"{host.host_total / GIB:,.0f} of {host.host_bytes / GIB:,.0f} GiB per node"
        )
    if found.step is not None:
        phases = sorted(found.step.phases.items(), key=lambda entry: -entry[1])[:4]
        told = ", ".join(f"{name} {seconds:.0f}" for name, seconds in phases)
        console.print(f"a step takes about {found.step.seconds:.0f} s: {told}")
    console.print("it would run" if found.runs else "it would not run", style="bold")
    if found.mended is not None:
        console.print(f"\nMended, {found.mended_gpus} GPUs:\n", style="bold")
        console.print(command_lines(found.mended), soft_wrap=True)
