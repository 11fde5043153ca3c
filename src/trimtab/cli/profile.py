"""``trimtab profile``: measure a model's operators on the GPU of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli import options
from trimtab.cli.progress import note, progress_bar
from trimtab.errors import TrimtabError

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Name (see `trimtab models`) or path of a config.json.")
]
TpOption = Annotated[int, typer.Option("--tp", help="Tensor parallelism: one shard is measured.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="CSV to write, or to add to.")]
OperatorsOption = Annotated[
    str, typer.Option("--operators", help="Names with commas between, or all, e.g. attn_decode,lm_head.")
]
QuickOption = Annotated[bool, typer.Option("--quick", help="A tenth of the shapes.")]
CpuOption = Annotated[bool, typer.Option("--cpu", help="Without a GPU: a tiny model, to try the path.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--fresh", help="Go on where FILE ends, or measure this model anew.")
]


def profile(
    model: ModelOption = None,
    tp: TpOption = 1,
    out: OutOption = Path("profile.csv"),
    operators: OperatorsOption = "all",
    quick: QuickOption = False,
    cpu: CpuOption = False,
    resume: ResumeOption = True,
    quiet: options.QuietOption = False,
) -> None:
    """Measure a model's operators on this machine's GPU, for execution times that can be trusted."""
    from trimtab.exectime.profile.points import ORDER
    from trimtab.exectime.profile.run import profile as run
    from trimtab.exectime.profile.shapes import TINY
    from trimtab.hardware.models import get_model

    if model is None and not cpu:
        raise TrimtabError("give a --model (see `trimtab models`), or --cpu to try the path with a tiny one")
    chosen = get_model(model) if model is not None else TINY
    names = ORDER if operators == "all" else tuple(name.strip() for name in operators.split(","))
    what = f"profiling {chosen.name}, tp={tp}"
    reached: list[int] = []
    with progress_bar(what, "points", quiet, time_left=True, before="starting torch") as report:

        def progress(done: int, total: int, operator: str) -> None:
            reached[:] = [done, total]
            report(done, total, operator)

        try:
            found = run(chosen, tp, out, names, quick=quick, cpu=cpu, fresh=not resume, progress=progress)
        except KeyboardInterrupt:
            if reached:
                done, total = reached
                note(f"{done:,} of {total:,} points are in {out}; the same command goes on from there")
            raise
    for line in found.notes:
        note(f"note: {line}", quiet)
    kept = f", {found.kept:,} were there" if found.kept else ""
    note(f"{out}: {found.measured:,} points measured on {found.device}{kept}", quiet)
