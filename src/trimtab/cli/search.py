"""``trimtab search``: the cheapest cluster for a workload under service levels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options
from trimtab.cli.capacity import SloOption
from trimtab.cli.progress import note, progress_bar
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.plan.search import Search

STORE = Path("runs") / "store"
SHOWN = 10
StoreOption = Annotated[
    Path,
    typer.Option("--store", metavar="FOLDER", help="Where results are kept; a search goes on from there."),
]


def search(
    scenario: options.ScenarioArgument,
    slo: SloOption = None,
    space: Annotated[
        Path | None,
        typer.Option(
            "--space", metavar="FILE", help="YAML with lists: devices, tp, pp, schedulers, routers ..."
        ),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="YAML of USD per hour, as in h100: 2.5.")
    ] = None,
    model: options.ModelOption = None,
    qps: options.QpsOption = None,
    requests: Annotated[
        int | None, typer.Option("--requests", help="Requests per trial; default: from 2,000.")
    ] = None,
    seed: options.SeedOption = None,
    setting: options.SetOption = None,
    executor: Annotated[
        str, typer.Option("--executor", help="processes (of this machine) or ray.")
    ] = "processes",
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="Of a Ray cluster.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; all cores by default.")] = None,
    store: StoreOption = STORE,
    out: options.OutOption = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Find the cheapest cluster for SCENARIO's load under service levels, over hundreds of configurations."""
    if requests is not None and requests < 100:
        raise TrimtabError(f"--requests must be 100 or more, got {requests}")
    chosen = options.scenario_with(scenario, setting, model=model, qps=qps, seed=seed)
    from trimtab.plan.executors import make_executor
    from trimtab.plan.search import explain_failure
    from trimtab.plan.search import search as run
    from trimtab.plan.space import Space, checked, read_prices, read_space
    from trimtab.plan.store import Store
    from trimtab.report.search_html import MARKER, save_search

    choices = read_space(space) if space else checked(Space())
    costs = read_prices(prices)
    folder = options.output_folder(out, f"search-{chosen.name}-{chosen.digest()}", MARKER)
    kept = Store(store)
    with progress_bar(f"sizing configurations for {chosen.name}", "points", quiet or as_json) as report:
        computing = make_executor(executor, workers, address)
        found = run(chosen, slo, choices, costs, kept, computing, requests, report)
    if found.best is None:
        raise TrimtabError(explain_failure(found))
    data = save_search(found, folder)
    if as_json:
        json.dump({name: data[name] for name in data if name != "rows"}, sys.stdout, indent=1)
        print()
    elif not quiet:
        _show(found, data)
    note(f"report: open {folder}/index.html", quiet or as_json)


def _show(found: Search, data: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for line in data["headline"]:
        console.print(line)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("device", "tp", "pp", "scheduler", "budget", "seqs", "router", "roles"):
        table.add_column(name, no_wrap=True)
    for name in ("replicas", "USD/h", "USD/M", "TTFT p90", "TPOT p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in [each for each in found.rows if each["status"] == "ok"][:SHOWN]:
        spread = (
            f"{row['replicas']}"
            if row["low"] == row["high"]
            else f"{row['replicas']} ({row['low']}-{row['high']})"
        )
        table.add_row(
            row["device"], str(row["tp"]), str(row["pp"]), row["scheduler"], str(row["token_budget"]),
            str(row["max_num_seqs"]), row["router"], row["roles"], spread, f"{row['cost_per_hour']:.2f}",
            f"{row['cost_per_million']:.3f}", f"{1e3 * row['ttft_p90']:.0f} ms",
            f"{1e3 * row['tpot_p99']:.1f} ms",
        )  # fmt: skip
    console.print(table)
