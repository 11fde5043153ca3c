"""``trimtab compare``: the same requests through many routers."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options
from trimtab.cli.progress import note, progress_bar
from trimtab.cli.suite import run as run_suite
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.comparison import Comparison
    from trimtab.report.digest import Metric

SHOWN = ("p50_ttft_ms", "p99_ttft_ms", "p99_tpot_ms", "mean_e2el_ms", "request_goodput",
         "load_outstanding_max_over_mean")  # fmt: skip
RoutersOption = Annotated[
    str, typer.Option("--routers", help="Names with commas between, or all; see `trimtab routers`.")
]


ScenarioOrSuite = Annotated[
    str | None,
    typer.Argument(metavar="SCENARIO", help="Bundled name, YAML file, or nothing with --suite."),
]
SuiteOption = Annotated[
    str | None, typer.Option("--suite", help="Instead of a scenario, a bundled suite: robustness.")
]


def compare(
    scenario: ScenarioOrSuite = None,
    suite: SuiteOption = None,
    routers: RoutersOption = "all",
    seeds: Annotated[int, typer.Option("--seeds", help="Repetitions, each with its own requests.")] = 3,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    replicas: options.ReplicasOption = None,
    tp: options.TpOption = None,
    pp: options.PpOption = None,
    scheduler: options.SchedulerOption = None,
    qps: options.QpsOption = None,
    requests: options.RequestsOption = None,
    seed: options.SeedOption = None,
    setting: options.SetOption = None,
    out: options.OutOption = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Threads; all cores by default.")] = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Compare routers on the same requests; write an HTML report."""
    if seeds < 1:
        raise TrimtabError(f"--seeds must be 1 or more, got {seeds}")
    if workers is not None and workers < 1:
        raise TrimtabError(f"--workers must be 1 or more, got {workers}")
    if suite is not None:
        _refuse(
            scenario, model=model, device=device, replicas=replicas, tp=tp, pp=pp, scheduler=scheduler,
            qps=qps, set=setting,
        )  # fmt: skip
        first = seed or 0
        numbers = list(range(first, first + seeds))
        run_suite(suite, routers, numbers, requests, out, workers, quiet, as_json)
        return
    if scenario is None:
        raise TrimtabError("give a SCENARIO (see `trimtab scenario list`), or --suite robustness")
    chosen = options.scenario_with(
        scenario, setting, model=model, device=device, replicas=replicas, tp=tp, pp=pp,
        scheduler=scheduler, qps=qps, requests=requests, seed=seed,
    )  # fmt: skip
    folder = options.output_folder(out, f"compare-{chosen.name}-{chosen.digest()}", "comparison.json")
    from trimtab.comparison import compare as run
    from trimtab.report.compare_folder import save_comparison

    numbers = list(range(chosen.seed, chosen.seed + seeds))
    with progress_bar(f"comparing on {chosen.name}", "runs", quiet or as_json) as report_progress:
        comparison = run(chosen, routers, numbers, progress=report_progress, workers=workers)
    save_comparison(comparison, folder)
    if as_json:
        contents = json.loads((folder / "comparison.json").read_text())
        print(json.dumps({key: value for key, value in contents.items() if key != "runs"}, indent=1))
    elif not quiet:
        _show(comparison)
    of_what = "report" if comparison.complete else "report of the seeds that were finished"
    note(f"{of_what}: open {folder}/index.html", quiet or as_json)
    if not comparison.complete:
        raise KeyboardInterrupt  # the finished seeds are saved; the exit code still says what happened


def _refuse(scenario: str | None, **flags: Any) -> None:
    """A suite has fleets and traffic of its own."""
    if scenario is not None:
        raise TrimtabError(f"--suite has scenarios of its own; leave out {scenario!r}, or --suite")
    for name, value in flags.items():
        if value is not None:
            raise TrimtabError(f"--{name} does not go with --suite, whose fleets and traffic are given")


def _show(comparison: Comparison) -> None:
    from rich.console import Console

    from trimtab.report.words import headline, notices

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    runs = len(comparison.digests)
    requests = int(comparison.digests[0].summary["completed"])
    console.print(f"{comparison.scenario.name}: {runs} runs of {requests:,} requests")
    console.print(_table(comparison))
    console.print(
        "mean over seeds, best in bold and +; = cannot be told from the best (paired 95 % intervals)\n"
    )
    for sentence in (*headline(comparison), *notices(comparison)):
        console.print(sentence)


def _table(comparison: Comparison) -> Table:
    """One line per router, in the order of the tail of the first token."""
    from rich.table import Table

    from trimtab.report.digest import METRICS

    metrics = [metric for key in SHOWN for metric in METRICS if metric.key == key and key in comparison.table]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("router", no_wrap=True)
    for metric in metrics:
        table.add_column(metric.title, justify="right", no_wrap=True)
    order = comparison.table.get("p99_ttft_ms", {})
    for router in sorted(comparison.routers, key=lambda name: order[name].value.value if order else 0.0):
        table.add_row(router, *(_cell(comparison, metric, router) for metric in metrics))
    return table


def _cell(comparison: Comparison, metric: Metric, router: str) -> str:
    from trimtab.report.definitions import define
    from trimtab.report.words import number

    verdict = comparison.verdicts[metric.key]
    shown = number(comparison.table[metric.key][router].value.value, define(metric.key).unit)
    if verdict.winner == router:
        return f"[bold]{shown} +[/bold]"
    several = 1 < len(verdict.tied) < len(comparison.routers)
    return f"{shown} =" if several and router in verdict.tied else f"{shown}  "
