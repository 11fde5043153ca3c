"""``trimtab rlhf simulate``: one step of a command on its GPUs, as a table, a picture and a trace."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options, rlhf_options
from trimtab.cli.progress import progress_bar
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.rlhf.simulate import Simulated

MARKER = "step.json"


def simulate(
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
    seed: Annotated[int, typer.Option("--seed", help="Of the simulated lengths.")] = 0,
    out: options.OutOption = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Simulate a command's step: phases per GPU, bubbles, and what else would be faster.

    Writes timeline.png, trace.json (ui.perfetto.dev) and step.json.
    """
    from trimtab.hardware import get_model
    from trimtab.rlhf.check import check
    from trimtab.rlhf.flags import checked_version
    from trimtab.rlhf.simulate import simulate_command

    cluster = rlhf_options.make_cluster(device, nodes, gpus_per_node, host_gib, network)
    checked = check(
        rlhf_options.read_command(command),
        cluster=cluster,
        version=checked_version(version) if version else None,
        actor=get_model(actor) if actor else None,
        critic=get_model(critic) if critic else None,
        response_mean=response_tokens,
    )
    wrong = next((each for each in checked.findings if each.kind in ("refused", "hangs", "crashes")), None)
    if wrong is not None:
        raise TrimtabError(f"the command would not run: {wrong.text}; see `trimtab rlhf check`")
    folder = options.output_folder(out, "rlhf-step", MARKER)
    with progress_bar("simulating", "rollouts", quiet or as_json) as report:
        simulated = simulate_command(checked, cluster, seed, report)
    _write(simulated, folder)
    if as_json:
        print(json.dumps(simulated.figures(), indent=1))
    elif not quiet:
        _print(simulated, folder)


def _write(simulated: Simulated, folder: Path) -> None:
    from trimtab.report.atomic import replacing
    from trimtab.rlhf.gantt import write_picture, write_trace

    with replacing(folder, MARKER) as draft:
        write_picture(simulated, draft / "timeline.png")
        write_trace(simulated, draft / "trace.json")
        (draft / MARKER).write_text(json.dumps(simulated.figures(), indent=1) + "\n", encoding="utf-8")


def _print(simulated: Simulated, folder: Path) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    step, generated = simulated.step, simulated.rollout
    console.print(simulated.plan.describe())
    console.print(
        f"a step takes {step.seconds:.0f} s; generation {step.phases['generation']:.0f} s, "
        f"{generated.tail_share:.0%} of it after 90 % of the samples, engines idle "
        f"{generated.idle_share:.0%} of it"
    )
    console.print(_pools(simulated))
    console.print("\nWhat else", style="bold")
    console.print(_alternatives(simulated))
    console.print(f"written to {folder}")


def _pools(simulated: Simulated) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("group", "GPUs", "idle", "phases, s"):
        table.add_column(name, justify="right" if name in ("GPUs", "idle") else "left")
    for pool, (size, _) in simulated.plan.placement.pools.items():
        spans = [span for span in simulated.step.spans if span.pool == pool]
        told = ", ".join(f"{span.phase} {span.end - span.start:.0f}" for span in spans)
        table.add_row(pool, str(size), f"{simulated.step.idle_share(pool):.0%}", told)
    return table


def _alternatives(simulated: Simulated) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("instead", "generation s", "step s", "gain"):
        table.add_column(name, justify="left" if name == "instead" else "right")
    for each in simulated.alternatives:
        gain = simulated.step.seconds / each.seconds - 1
        table.add_row(each.name, f"{each.generation:.0f}", f"{each.seconds:.0f}", f"{gain:+.0%}")
    return table
