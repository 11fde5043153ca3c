"""``trimtab moe place``: where to put experts and their replicas, what that gains, and the map to serve."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options
from trimtab.cli.progress import progress_bar
from trimtab.errors import TrimtabError, unknown

if TYPE_CHECKING:
    from trimtab.moe import Placement
    from trimtab.moe.packing import Floats

FORMATS = ("eplb", "sglang")
Row = dict[str, Any]

ModelOption = Annotated[
    str | None, typer.Option("--model", help="For times: name (see `trimtab models`) or config.json.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="For times: the device, see `trimtab devices`.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="JSON to write the placement to.")
]


def place(
    loads: Annotated[
        Path,
        typer.Argument(
            metavar="LOADS",
            help="(layers, experts) or (windows, layers, experts): .json, .csv, .npy or .safetensors.",
        ),
    ],
    devices: Annotated[int, typer.Option("--devices", help="Devices that share the experts.")],
    redundant: Annotated[int, typer.Option("--redundant", help="Replicas beyond one of each expert.")] = 0,
    nodes: Annotated[int, typer.Option("--nodes", help="Nodes; groups of experts stay on one.")] = 1,
    groups: Annotated[
        int | None, typer.Option("--groups", help="Groups of neighbouring experts; as many as nodes.")
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", help="Over windows: mean or worst of their busiest device.")
    ] = "mean",
    split: Annotated[
        str, typer.Option("--split", help="Tokens over replicas: even, balanced or fewest.")
    ] = "even",
    current: Annotated[
        Path | None,
        typer.Option("--current", metavar="FILE", help="The placement now; experts in order if none."),
    ] = None,
    moves: Annotated[
        int | None,
        typer.Option("--moves", help="Improve the placement now, moving at most so many per layer."),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "h200",
    tokens: Annotated[
        list[int] | None,
        typer.Option("--tokens", help="For times: tokens of a batch; repeatable. 256 and 16384 if none."),
    ] = None,
    out: OutOption = None,
    out_format: Annotated[
        str, typer.Option("--format", help="Of FILE: eplb (phy2log, log2phy, logcnt) or sglang.")
    ] = "eplb",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No table.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Place experts and replicas on devices for the loads that were counted; compare with EPLB's rule."""
    from trimtab.moe import even_placement, published_placement, rebalance
    from trimtab.moe import place as search
    from trimtab.moe.loads_file import read_loads, read_placement

    _check(out, out_format)
    counted = read_loads(loads)
    layers, experts = counted.shape[-2:]
    rule = published_placement(counted, devices, redundant, nodes=nodes, groups=groups)
    if current is None:
        before = even_placement(layers, experts, devices, redundant)
    else:
        before = read_placement(current, devices, experts)
    aim: Any = objective
    if moves is None:
        with progress_bar("placing", "layers", quiet, time_left=True, before="placing") as report:
            found = search(
                counted, devices, redundant, nodes=nodes, groups=groups, objective=aim, progress=report
            )
    else:
        found = rebalance(before, counted, moves, nodes=nodes, objective=aim)
    table = [("in order" if current is None else "now", before, "even"), ("EPLB's rule", rule, "even")]
    ours = "trimtab" if moves is None else f"trimtab, {moves} moves"
    table.append((ours, found, "even"))
    if split != "even":
        table.append((f"{ours}, {split} split", found, split))
    timing = _timing(model, device, tokens)
    rows = [_row(label, each, before, counted, kind, timing) for label, each, kind in table]
    if out is not None:
        _write(out, found, out_format)
    if as_json:
        print(json.dumps(rows, indent=1))
    elif not quiet:
        _print(rows, counted, devices, redundant, out)


def _check(out: Path | None, out_format: str) -> None:
    """What can be refused before anything is read."""
    if out_format not in FORMATS:
        raise unknown("format", out_format, FORMATS)
    if out is not None and out.suffix != ".json":
        raise TrimtabError(f"--out {str(out)!r} must end in .json")
    if out is not None and not out.parent.is_dir():
        raise TrimtabError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}")


def _timing(model: str | None, device: str, tokens: list[int] | None) -> list[tuple[Any, Any, int]]:
    """(model, device, tokens) of each time to show; none without a model."""
    from trimtab.hardware import get_device, get_model

    if model is None:
        if tokens:
            raise TrimtabError("--tokens needs a --model, see `trimtab models`")
        return []
    return [(get_model(model), get_device(device), number) for number in tokens or (256, 16384)]


def _row(
    label: str, placement: Placement, before: Placement, loads: Floats, split: Any, timing: list[Any]
) -> Row:
    """The figures of one placement; means over windows where there are several."""
    from trimtab.moe.placement_cost import expert_seconds

    uneven = placement.max_over_mean(loads, split)
    row: Row = {
        "placement": label,
        "max_over_mean": float(uneven.mean()),
        "worst_layer": float(uneven.max()),
        "moved": int(placement.moved_from(before).sum()),
    }
    for model, device, tokens in timing:
        seconds = expert_seconds(placement, loads, model, device, tokens, split=split)
        row[f"ms_{tokens}_tokens"] = 1000 * float(seconds.mean())
    return row


def _write(out: Path, placement: Placement, out_format: str) -> None:
    content = placement.to_json()
    if out_format == "sglang":  # which takes no key that it does not know
        content = {"physical_to_logical_map": content["phy2log"]}
    draft = out.with_suffix(".json.part")
    draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(draft, out)


def _print(rows: list[Row], loads: Floats, devices: int, redundant: int, out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    layers, experts = loads.shape[-2:]
    windows = f"{len(loads)} windows of " if loads.ndim == 3 else ""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    total = f"{experts:,} + {redundant:,} experts on {devices:,} devices"
    slots = f"{(experts + redundant) // devices:,} slots"
    console.print(f"{windows}{layers:,} layer{'s' * (layers > 1)}, {total} of {slots}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("placement")
    headings = {"max_over_mean": "max/mean", "worst_layer": "worst layer", "moved": "moved"}
    for name in list(rows[0])[1:]:
        text = headings.get(name) or f"ms, {int(name.split('_')[1]):,} tokens"
        table.add_column(text, justify="right")
    for row in rows:
        shown = [
            f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" for value in list(row.values())[1:]
        ]
        table.add_row(row["placement"], *shown)
    console.print(table)
    note = "max/mean: busiest device, mean over layers; moved: replicas to copy to a device, all layers"
    if any(name.startswith("ms_") for name in rows[0]):
        note += "; ms: the expert layers"
    console.print(note, style="dim")
    if out is not None:
        console.print(f"written to {out}")
