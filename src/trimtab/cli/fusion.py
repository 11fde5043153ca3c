"""``trimtab fusion``: gates between modalities.

train      one model with one method; the guidance analysis of each epoch
compare    methods against each other over seeds, on real data
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options
from trimtab.cli.progress import note, progress_bar
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.fusion.train import Epoch, Training
    from trimtab.fusion.views import Views

app = typer.Typer(no_args_is_help=True)

DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help="A named data set, a folder of arrays, or an MMSA pickle file.")
]
MethodOption = Annotated[
    str,
    typer.Option("--method", help="balanced-hide, balanced, plain, conservative, aggressive, normalised, "
                 "literal, dropout, auxiliary, ogm-ge or agm."),
]  # fmt: skip
SeedOption = Annotated[int, typer.Option("--seed", help="Of the halves, the weights and the batches.")]
EpochsOption = Annotated[int, typer.Option("--epochs", help="Passes over the training samples.")]


@app.callback()
def fusion() -> None:
    """Gates between modalities: train one, compare ways to keep it balanced.

    \b
    DATA is one of
      mfeat, mfeat-all  UCI Multiple Features: digits, three or six views (downloads 2 MB)
      basic-motions     accelerometer and gyroscope of a watch (downloads 8 MB)
      breast-cancer     three blocks of cell measures, with scikit-learn (no download)
      FOLDER            one .npy, .npz or .csv per modality, and labels
      FILE.pkl          CMU-MOSEI as MMSA packs it, aligned or unaligned
    """


@app.command("train")
def train(
    data: DataArgument = "breast-cancer",
    method: MethodOption = "balanced-hide",
    out: options.OutOption = None,
    dominant: Annotated[
        str | None, typer.Option("--dominant", help="The dominant modality; detected where left out.")
    ] = None,
    update_rate: Annotated[
        float | None, typer.Option("--update-rate", help="load_balance_update_rate; the method's if none.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="target_balance_ratio; the method's if none.")
    ] = None,
    epochs: EpochsOption = 40,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples per step.")] = 50,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of Adam.")] = 0.001,
    seed: SeedOption = 0,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--fresh", help="Go on from the checkpoint in FOLDER, or begin again."),
    ] = None,
    quiet: options.QuietOption = False,
) -> None:
    """Train a gated fusion model; print how the weights, the bias and the use of each modality went."""
    require_torch()
    from trimtab.fusion.datasets import load
    from trimtab.fusion.train import CHECKPOINT, Recipe, begin, fit_in
    from trimtab.fusion.train import resume as go_on

    recipe = Recipe(method, epochs, batch_size, learning_rate, seed, dominant, update_rate, ratio)
    views = load(data)
    folder = options.output_folder(out, f"fusion-{views.name}-{method}-{seed}", CHECKPOINT)
    saved = (folder / CHECKPOINT).is_file()
    if resume and not saved:
        raise TrimtabError(f"no checkpoint in {folder}; leave --resume out to begin")
    if saved and resume is None:
        raise TrimtabError(f"{folder} holds a checkpoint: --resume goes on from it, --fresh begins again")
    training = go_on(views, recipe, folder) if resume else begin(views, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    begun = len(training.history)
    try:
        with progress_bar("training", "epochs", quiet, time_left=True, before="training") as report:
            fit_in(training, folder, report, _speaker(training, folder, quiet))
    except KeyboardInterrupt:
        note(f"{folder}: the same command with --resume goes on from the last checkpoint")
        raise
    if len(training.history) == begun:
        note(f"all {begun} epochs are done already; more with --epochs", quiet)
    _finish(training, folder, quiet)


def _speaker(training: Training, folder: Path, quiet: bool) -> Callable[[Epoch], None]:
    """What is done with each epoch's row: TensorBoard, and about ten analyses on the screen."""
    from trimtab.fusion.log import Board, guidance

    board = Board(folder, len(training.history))
    if board.note:
        note(board.note, quiet)
    shown = max(1, training.recipe.epochs // 10)

    def each(row: Epoch) -> None:
        board.log(row, training.data.modalities)
        last = row["epoch"] == training.recipe.epochs
        if not quiet and (last or row["epoch"] == 1 or row["epoch"] % shown == 0):
            print(guidance(row, training.data.modalities), flush=True)
        if last:
            board.close()

    return each


def _finish(training: Training, folder: Path, quiet: bool) -> None:
    """Figures, tables and the page of a training that is done."""
    import json

    from trimtab.fusion.log import write_table
    from trimtab.fusion.measures import evaluate
    from trimtab.fusion.page import train_page
    from trimtab.learn.sealed import write_whole

    figures = evaluate(training.model, training.test, training.data.task)
    write_table(training.history, training.data.modalities, folder)
    write_whole(folder / "summary.json", json.dumps(figures, indent=1).encode() + b"\n")
    write_whole(folder / "index.html", train_page(training, figures).encode())
    if quiet:
        return
    for line in use_lines(training.data, figures):
        print(line)
    print(f"page: open {folder}/index.html; model: {folder}/checkpoint.safetensors")


def use_lines(data: Views, figures: dict[str, Any]) -> list[str]:
    """Weight and use of each modality, side by side."""
    lines = [
        f"test accuracy {figures['accuracy']:.4f}",
        "modality          weight  without it  alone  Shapley share",
    ]
    for index, name in enumerate(data.modalities):
        row = [figures[key][index] for key in ("weights", "without", "alone", "shapley_shares")]
        lines.append(f"{name:<16}  {row[0]:.3f}   {row[1]:.4f}      {row[2]:.4f} {row[3]:>7.3f}")
    return lines


def require_torch() -> None:
    """Raise where the extra is not installed."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise TrimtabError(f"trimtab fusion needs {package}: pip install 'trimtab[gates]'")


@app.command("compare")
def compare(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATA", help="As for train; several, or mfeat basic-motions breast-cancer."),
    ] = None,
    out: options.OutOption = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Comma-separated, see train; eight of them if none.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings per method and data set.")] = 10,
    epochs: EpochsOption = 30,
    grid_seeds: Annotated[
        int, typer.Option("--grid-seeds", help="Seeds of the grid of rates and ratios; 0: no grid.")
    ] = 2,
    long_epochs: Annotated[int, typer.Option("--long-epochs", help="Of the long run; 0: none.")] = 500,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Compare methods over seeds on real data: weights, accuracy, use, with intervals; one page."""
    require_torch()
    import json

    from trimtab.fusion.compare import DEFAULT_METHODS, MARKER, Plan, Store
    from trimtab.fusion.compare import compare as run_all
    from trimtab.fusion.datasets import STANDING, load
    from trimtab.fusion.page import compare_page
    from trimtab.learn.sealed import write_whole

    chosen = tuple(name.strip() for name in methods.split(",")) if methods else DEFAULT_METHODS
    plan = Plan(chosen, seeds, epochs, grid_seeds, long_epochs)
    sources = [load(each) for each in data or STANDING]
    folder = options.output_folder(out, "fusion-compare", MARKER)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARKER).is_file():
        write_whole(folder / MARKER, b"{}\n")  # so that what an interruption leaves is known as ours
    try:
        with progress_bar("training", "runs", quiet, time_left=True, before="training") as report:
            found = run_all(sources, plan, Store(folder / "runs"), report)
    except KeyboardInterrupt:
        note(f"finished runs are in {folder}; the same command goes on from there")
        raise
    text = json.dumps(found, indent=1)
    write_whole(folder / MARKER, text.encode() + b"\n")
    found = json.loads(text)
    write_whole(folder / "index.html", compare_page(found).encode())
    if as_json:
        print(text)
    elif not quiet:
        _print_comparison(found)
        print(f"page: open {folder}/index.html")


def _print_comparison(found: dict[str, Any]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    from trimtab.fusion.page import headline, signed_points

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for each in found["data"]:
        console.print(
            f"\n{each['name']}: {each['samples']:,} samples, "
            f"{', '.join(each['modalities'])}; dominant: {each['dominant']}"
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("method")
        for head in ("accuracy", "vs plain", f"without {each['dominant']}", "vs plain"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("mean weights", justify="right")
        table.add_column("Shapley shares", justify="right")
        for name, row in each["methods"].items():
            table.add_row(
                name, f"{row['accuracy'][0]:.4f}", signed_points(row["accuracy_difference"]),
                f"{row['without_dominant'][0]:.4f}", signed_points(row["without_dominant_difference"]),
                " ".join(f"{weight[0]:.2f}" for weight in row["weights"]),
                " ".join(f"{share:.2f}" for share in row["shapley_shares"]),
            )  # fmt: skip
        console.print(table)
    console.print("vs plain: percentage points, 95 % intervals paired by seed", style="dim")
    console.print(f"\n{' '.join(headline(found))}")
