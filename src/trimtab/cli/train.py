"""``trimtab train``: a router learns from teachers, then from its own mistakes."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options
from trimtab.cli.progress import note, progress_bar
from trimtab.errors import TrimtabError, unknown

if TYPE_CHECKING:
    from trimtab.learn.checkpoints import Checkpoints
    from trimtab.learn.train import Run

ScenarioOption = Annotated[
    str | None,
    typer.Argument(metavar="SCENARIO", help="Train for this one; without it, for random fleets and traffic."),
]
PresetOption = Annotated[str, typer.Option("--preset", help="original, optimized or lossfree.")]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Any parameter, e.g. ppo.clip_high=0.3; repeatable."),
]
ResumeOption = Annotated[
    bool | None,
    typer.Option(
        "--resume/--fresh", help="Go on from the checkpoint in FOLDER, or forget all that is there."
    ),
]
FromOption = Annotated[
    str | None, typer.Option("--from", help="Checkpoint to go on from: latest, previous or best.")
]
UntilOption = Annotated[
    str, typer.Option("--until", help="Last stage to run: demonstrations, cloning, ppo or evolution.")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps-per-policy", help="Demonstrated decisions of each teacher.")
]
ImbalancedOption = Annotated[
    bool | None,
    typer.Option(
        "--include-imbalanced/--no-imbalanced",
        help="Demonstrate at double and half load and from skewed starts, too.",
    ),
]
EpochsOption = Annotated[int | None, typer.Option("--epochs", help="Of cloning.")]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="Of cloning, decisions.")]
UpdatesOption = Annotated[int | None, typer.Option("--updates", help="Of PPO, in all.")]
WandbOption = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Also log to Weights & Biases.")
]
ExecutorOption = Annotated[
    str | None,
    typer.Option(
        "--executor", help="Run evolution's trials on processes (of this machine) or ray; else in threads."
    ),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Of a Ray cluster.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Processes; all cores by default.")]


def train(
    scenario: ScenarioOption = None,
    out: options.OutOption = None,
    preset: PresetOption = "lossfree",
    setting: SettingOption = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the training.")] = None,
    steps_per_policy: StepsOption = None,
    include_imbalanced: ImbalancedOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchOption = None,
    updates: UpdatesOption = None,
    until: UntilOption = "evolution",
    resume: ResumeOption = None,
    start: FromOption = None,
    save_every: Annotated[int, typer.Option("--save-every", help="Updates between checkpoints.")] = 10,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    wandb: WandbOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Train the learned router: demonstrations, behaviour cloning, PPO, evolution."""
    flags = {
        "seed": seed, "clone.steps_per_policy": steps_per_policy, "clone.epochs": epochs,
        "clone.include_imbalanced": include_imbalanced, "clone.batch_size": batch_size,
        "ppo.updates": updates,
    }  # fmt: skip
    run = _run_of(scenario, out, preset, setting, flags, save_every, wandb)
    from trimtab.learn.train import STAGES, Screen, forget
    from trimtab.learn.train import train as go

    if until not in STAGES:
        raise unknown("stage", until, STAGES)
    if executor or address or workers is not None:
        from trimtab.plan.executors import make_executor

        run = replace(run, executor=make_executor(executor or "processes", workers, address))
    chosen = _where_to_start(run.checkpoints, resume, start)
    if chosen is None and (resume is False or run.checkpoints.present()):
        forget(run)

    def bar(what: str, unit: str) -> Any:
        return progress_bar(what, unit, quiet, time_left=True)

    try:
        written = go(run, Screen(bar, lambda line: note(line, quiet)), chosen, until)
    except KeyboardInterrupt:
        note(_how_to_go_on(run))
        raise
    if until in ("ppo", "evolution"):
        what = scenario or "SCENARIO"
        note(
            f"policy: {written}; against others: trimtab compare {what} "
            f"--routers learned,lmetric,least-pending-prefill --set router.policy={written}",
            quiet,
        )
    else:
        note(f"{until}: {written}; the same command without --until goes on from there", quiet)


def _run_of(
    scenario: str | None,
    out: Path | None,
    preset: str,
    setting: list[str] | None,
    flags: dict[str, Any],
    save_every: int,
    wandb: str | None,
) -> Run:
    """Everything that can be wrong with the input is found here, before anything is computed."""
    if save_every < 1:
        raise TrimtabError(f"--save-every must be 1 or more, got {save_every}")
    chosen = options.scenario_with(scenario, None) if scenario else None
    _require_torch()
    from trimtab.learn.presets import get_preset, override
    from trimtab.learn.train import MARKER, Run, check

    changes = {path: value for path, value in flags.items() if value is not None}
    config = override(get_preset(preset), changes | options.parse_settings(setting))
    check(config)
    if wandb:
        from trimtab.learn.monitor import require_wandb

        require_wandb()
    name = f"train-{chosen.name if chosen else 'random'}-{preset}-{config.seed}"
    return Run(config, options.output_folder(out, name, MARKER), chosen, save_every, wandb)


def _require_torch() -> None:
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise TrimtabError(f"trimtab train needs {package}: pip install 'trimtab[learn]'")


def _where_to_start(checkpoints: Checkpoints, resume: bool | None, start: str | None) -> str | None:
    """Name of the checkpoint to go on from; None to begin at the beginning."""
    from trimtab.learn.checkpoints import NAMES

    present = checkpoints.present()
    if start is not None and start not in NAMES:
        raise unknown("checkpoint", start, NAMES)
    if start is not None and resume is False:
        raise TrimtabError("--from says where to go on, --fresh to begin again; give one of them")
    if resume is False:
        return None
    if start is not None and start not in present:
        raise TrimtabError(
            f"no {start} checkpoint in {checkpoints.folder}; there: {', '.join(present) or 'none'}"
        )
    if resume and not present:
        raise TrimtabError(f"no checkpoint in {checkpoints.folder}; leave --resume out to begin")
    if not present:
        return None
    if resume or start is not None:
        return start or present[0]
    if not sys.stdin.isatty():
        raise TrimtabError(
            f"{checkpoints.folder} holds a checkpoint: --resume goes on from it, --fresh begins again"
        )
    return _ask(checkpoints, present[0])


def _ask(checkpoints: Checkpoints, name: str) -> str | None:
    """y, n or q at the terminal; where the checkpoint is damaged, about the one before it."""
    try:
        update = checkpoints.update_of(name)
    except TrimtabError as error:
        print(error, file=sys.stderr)
        other = checkpoints.next_whole(name)
        if other is None:
            raise
        name, update = other, checkpoints.update_of(other)
    print(f"found {checkpoints.path(name)}, of update {update}", file=sys.stderr)
    while True:
        print("go on from it, without demonstrations and cloning? y: yes, n: begin again, q: quit ", end="")
        answer = sys.stdin.readline().strip().lower()
        if answer in ("y", "yes"):
            return name
        if answer in ("n", "no"):
            return None
        if answer in ("q", "quit", ""):
            raise typer.Exit()


def _how_to_go_on(run: Run) -> str:
    present = run.checkpoints.present()
    if not present:
        return f"finished stages are in {run.folder}; the same command goes on from there"
    update = run.checkpoints.update_of(present[0])
    return f"saved after update {update} in {run.folder}; the same command with --resume goes on from there"
