"""``trimtab moe calibrate`` and ``report``: a checkpoint measured and balanced on a domain."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.progress import progress_bar
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.moe.calibration import Calibrated, Limit

_STYLE: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "box": None, "padding": (0, 1)}


def calibrate(
    model: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint as save_pretrained() writes it.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Text of the domain: a file, or a folder of them; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; MODEL-balanced by default.")
    ] = None,
    law: Annotated[str, typer.Option(help="quantile, proportional or sign.")] = "quantile",
    cap: Annotated[
        float | None,
        typer.Option(help="Let experts have up to so many times their share (1.1); even all without."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of text, a quarter of them held out.")] = 65_536,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 512,
    passes: Annotated[int, typer.Option(help="Times that the law sees the calibration text.")] = 2,
    max_loss: Annotated[float, typer.Option(help="Largest relative increase of the loss.")] = 0.005,
    max_kl: Annotated[
        float, typer.Option(help="Largest KL divergence from the unadapted model, nats per token.")
    ] = 0.02,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only routers whose names match.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which of the text is taken.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew where an interrupted one could go on.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Balance the experts of a checkpoint on text of a domain, and write it with new biases.

    Only the bias tensors differ from the original, so vLLM and SGLang serve it unchanged. The strongest
    adaptation is taken that stays within --max-loss and --max-kl on held-out text. For a model that has
    no bias, a sidecar is written instead.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise TrimtabError(f"trimtab moe calibrate needs {package}: pip install 'trimtab[gates]'")
    from rich.console import Console

    from trimtab.moe.calibration import Limit
    from trimtab.moe.loads import read_report, write_heat_map
    from trimtab.moe.patched import Settings, calibrate_checkpoint

    limit = Limit(max_loss, max_kl)
    settings = Settings(law, cap, tokens, length, passes, limit, only, seed)
    target = out or model.with_name(f"{model.name}-balanced")
    console = Console()

    def show(found: Calibrated) -> None:
        if not (quiet or as_json):
            console.print(curve_table(found, limit))

    with progress_bar("calibrating", "steps", quiet, before="loading the model") as report:
        words = calibrate_checkpoint(model, text or [], target, settings, report, show, fresh=fresh)
    write_heat_map(read_report(target), target / "loads.png")
    if as_json:
        print(json.dumps({name: value for name, value in words.items() if "loads" not in name}))
    elif not quiet:
        for line in ending(words, target):
            console.print(line, highlight=False, soft_wrap=True)


def curve_table(found: Calibrated, limit: Limit) -> Table:
    """Every strength with its balance and its price; the chosen one marked."""
    from rich.table import Table

    table = Table(title="strength of the bias on held-out text", **_STYLE)
    for heading in ("strength", "MaxVio per batch", "MaxVio overall", "loss", "KL", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for point in found.curve:
        verdict = "" if limit.holds(point) else "above the limit"
        table.add_row(
            f"{point.strength:.3f}",
            f"{point.maxvio_batch:.3f}",
            f"{point.maxvio_global:.3f}",
            f"{point.loss_increase:+.2%}",
            f"{point.kl:.5f}",
            "taken" if point is found.chosen else verdict,
        )
    table.caption = (
        f"by chance alone: {found.floor_batch:.3f} per batch, {found.floor_global:.3f} overall; "
        f"limits: loss {limit.loss_increase:+.2%}, KL {limit.kl:g} nats per token"
    )
    return table


def ending(words: dict[str, Any], target: Path) -> list[str]:
    """What was written, and how to use it."""
    before, after = words["curve"][0]["maxvio_batch"], words["chosen"]["maxvio_batch"]
    lines = [
        f"MaxVio per batch {before:.3f} -> {after:.3f} at {words['chosen']['loss_increase']:+.2%} loss, "
        f"{words['tokens']['held_out']:,} held-out tokens ({words['tokens']['tokenizer']})"
    ]
    if words["sidecar"]:
        return [
            *lines,
            f"{words['model_type']} has no bias: {target} holds a sidecar, for trimtab.moe.apply_sidecar(); "
            "engines that serve the checkpoint do not know it",
        ]
    count = len(words["changed"])
    return [
        *lines,
        f"{target}: the checkpoint with {count} bias tensors changed, all others equal byte for byte",
    ]


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What trimtab moe calibrate wrote.")],
    layer: Annotated[int | None, typer.Option(help="Show every expert of this router, from 0.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Heat map to write; FOLDER/loads.png by default.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the loads and figures as JSON.")] = False,
) -> None:
    """Loads per layer and expert before and after, as tables and a heat map."""
    from rich.console import Console

    from trimtab.moe.loads import expert_table, layer_table, read_report, write_heat_map

    loads = read_report(folder)
    picture = out or (folder if folder.is_dir() else folder.parent) / "loads.png"
    table = layer_table(loads) if layer is None else expert_table(loads, layer)
    write_heat_map(loads, picture)
    if as_json:
        print(json.dumps(loads.words))
    elif not quiet:
        if layer is not None:
            print(loads.words["routers"][layer])
        Console().print(table)
        print(f"heat map: {picture}")
