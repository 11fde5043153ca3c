"""``trimtab simulate`` and ``trimtab report``: one run, its tables and its folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options
from trimtab.cli.progress import note, progress_bar
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.plan.regret import Decision
    from trimtab.result import Result

RouterOption = Annotated[str | None, typer.Option("--router", help="Router; see `trimtab routers`.")]
WandbOption = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Also log the figures to Weights & Biases.")
]


def simulate(
    scenario: options.ScenarioArgument,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    replicas: options.ReplicasOption = None,
    tp: options.TpOption = None,
    pp: options.PpOption = None,
    scheduler: options.SchedulerOption = None,
    qps: options.QpsOption = None,
    requests: options.RequestsOption = None,
    router: RouterOption = None,
    seed: options.SeedOption = None,
    setting: options.SetOption = None,
    out: options.OutOption = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Write PNG plots (slowest part).")] = True,
    wandb: WandbOption = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Simulate SCENARIO once: figures on the terminal, a run folder."""
    chosen = options.scenario_with(
        scenario, setting, model=model, device=device, replicas=replicas, tp=tp, pp=pp,
        scheduler=scheduler, qps=qps, requests=requests, router=router, seed=seed,
    )  # fmt: skip
    folder = options.output_folder(out, f"{chosen.name}-{chosen.digest()}", "summary.json")
    if wandb:
        _require_wandb()
    from trimtab.report.metrics import summarize
    from trimtab.report.run_folder import save
    from trimtab.simulation import simulate as run

    with progress_bar(f"simulating {chosen.name}", "requests", quiet or as_json) as report_progress:
        result = run(chosen, progress=report_progress)
    summary = summarize(result)
    save(result, folder, summary=summary, plots=plots)
    if wandb:
        _log_to_wandb(wandb, result, summary)
    _show(result, summary, quiet, as_json)
    note(f"run folder: {folder}  (open {folder}/index.html)", quiet or as_json)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or search folder, to read.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Write there instead of replacing RUN.")
    ] = None,
    regret: Annotated[
        int | None,
        typer.Option("--regret", metavar="N", help="Also judge N routing decisions in hindsight."),
    ] = None,
    request: Annotated[
        int | None,
        typer.Option(
            "--request", metavar="N", help="Only print where request N (from 0) went and spent its time."
        ),
    ] = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Rebuild the figures, plots and page of a run folder, or of a search's."""
    from trimtab.report import search_html

    if (run / search_html.MARKER).is_file():
        if regret is not None or request is not None:
            raise TrimtabError(f"{run} holds a search: --regret and --request are for the folder of a run")
        note(f"rebuilt {search_html.rebuild(run, out)}/index.html", quiet)
        return
    from trimtab.report.metrics import summarize
    from trimtab.report.regret import read_decisions, regret_words
    from trimtab.report.run_folder import load, save

    result = load(run)
    if request is not None:
        _tell(result, request, as_json)
        return
    summary = summarize(result)
    decisions = read_decisions(run) if regret is None else _judge(result, regret, quiet or as_json)
    folder = save(result, out or run, summary=summary, decisions=decisions)
    _show(result, summary, quiet, as_json)
    if decisions and not (quiet or as_json):
        print(regret_words(decisions, result.scenario.router.name))
    note(f"rebuilt {folder}  (open {folder}/index.html)", quiet or as_json)


def _tell(result: Result, request: int, as_json: bool) -> None:
    """The story of one request."""
    from trimtab.report.one_request import request_lines, request_story
    from trimtab.report.run_folder import plain

    story = request_story(result, request)
    print(json.dumps(plain(story), indent=1) if as_json else "\n".join(request_lines(story)))


def _judge(result: Result, decisions: int, quiet: bool) -> list[Decision]:
    """Regret of the run's router at that many of its decisions."""
    if decisions < 1:
        raise TrimtabError(f"--regret must be 1 or more, got {decisions}")
    from trimtab.plan.regret import regrets

    with progress_bar("judging decisions", "decisions", quiet) as report_progress:
        return regrets(result, decisions, report_progress)


def _show(result: Result, summary: dict[str, float], quiet: bool, as_json: bool) -> None:
    if as_json:
        from trimtab.report.run_folder import plain

        json.dump(plain(summary), sys.stdout, indent=1)
        print()
    elif not quiet:
        from trimtab.report.table import print_result

        print_result(result, summary)


def _require_wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise TrimtabError("--wandb needs the wandb package: pip install 'trimtab[wandb]'") from None
    return wandb


def _log_to_wandb(project: str, result: Result, summary: dict[str, float]) -> None:
    wandb = _require_wandb()
    run = wandb.init(
        project=project, config=result.scenario.model_dump(mode="json"), name=result.scenario.name
    )
    run.log(summary)
    run.finish()
