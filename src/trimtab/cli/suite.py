"""``trimtab compare --suite``: run the bundled suite, show its matrix."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.progress import note, progress_bar
from trimtab.errors import TrimtabError, unknown

if TYPE_CHECKING:
    from rich.table import Table

SUITES = ("robustness",)
NARROW, NAME, COLUMN = 120, 36, 9  # characters: of a pipe, of a cell's name, of a router


def run(
    name: str,
    routers: str,
    seeds: list[int],
    requests: int | None,
    out: Path | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a suite, or what is missing of it, into its folder."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    if requests is not None and requests < 1:
        raise TrimtabError(f"--requests must be 1 or more, got {requests}")
    from trimtab.report.robustness_html import MARKER, save_suite
    from trimtab.robustness import REQUESTS, choose, run_suite

    choose(routers)  # complains before a folder is made
    folder = options.output_folder(out, "robustness", MARKER)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARKER).exists():
        (folder / MARKER).write_text("{}\n")  # ours, from the first cell on
    with progress_bar("the robustness matrix", "runs", quiet or as_json, time_left=True) as report:
        found = run_suite(folder, routers, seeds, requests or REQUESTS, progress=report, workers=workers)
    save_suite(found, folder)
    if as_json:
        print(json.dumps(found, indent=1))
    elif found["cells"] and not quiet:
        _show(found)
    if found["cells"]:
        note(f"report: open {folder}/index.html", quiet or as_json)
    if not found["complete"]:
        note(f"{len(found['cells'])} cells are kept; the same command goes on from there", quiet or as_json)
        raise KeyboardInterrupt


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    from trimtab.report.robustness_html import headline, standings

    console = Console(width=None if sys.stdout.isatty() else NARROW, highlight=False)
    ranked = [row.router for row in standings(found)]
    count = max(1, (console.width - NAME) // COLUMN)
    console.print(
        f"{len(found['cells'])} cells, {len(ranked)} routers, {len(found['seeds'])} seeds of"
        f" {found['requests']:,} requests; p99 TTFT relative to {found['baseline']}"
    )
    for first in range(0, len(ranked), count):
        console.print(_matrix(found, ranked[first : first + count]))
    console.print(
        "below 1 is better; + no router is better; = cannot be told from 1 (paired 95 % intervals)\n"
    )
    console.print(_standings(found))
    for sentence in headline(found):
        console.print(sentence)


def _matrix(found: dict[str, Any], routers: list[str]) -> Table:
    """Cells x routers; the routers with the shortest tails come first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("cell", no_wrap=True)
    for router in routers:
        table.add_column(router.replace("-", "-\n"), justify="right", vertical="bottom", no_wrap=True)
    for cell in found["cells"]:
        table.add_row(cell["name"], *(_square(cell["routers"][router]) for router in routers))
    return table


def _square(row: dict[str, Any]) -> str:
    from trimtab.report.robustness_html import is_sure

    ratio = row["ratio"][0]
    if ratio is None:
        return "-  "
    shown = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
    mark = "+" if row["unbeaten"] else " " if is_sure(row) else "="
    if not is_sure(row):
        return f"[dim]{shown} {mark}[/dim]"
    colour = "green" if ratio < 1 else "red"
    return f"[{colour}]{shown} {mark}[/{colour}]"


def _standings(found: dict[str, Any]) -> Table:
    """One line per router, over all cells."""
    from rich.table import Table

    from trimtab.report.robustness_html import standings
    from trimtab.report.words import between, number

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("router", no_wrap=True)
    heads = ("mean", "worst", "interval", "in cell", "unbeaten", "in SLO", "goodput")
    for head in heads:
        table.add_column(head, justify="left" if head == "in cell" else "right", no_wrap=True)
    cells = {cell["name"]: cell for cell in found["cells"]}
    for row in standings(found):
        _, low, high = cells[row.worst_cell]["routers"][row.router]["ratio"]
        good = [cell["routers"][row.router]["goodput"] or 0.0 for cell in found["cells"]]
        table.add_row(
            row.router,
            number(row.mean_ratio),
            number(row.worst_ratio),
            "" if low is None or low == high else between(low, high),
            row.worst_cell,
            str(row.unbeaten),
            number(row.attainment, "share"),
            number(sum(good) / len(good), "requests/s"),
        )
    return table
