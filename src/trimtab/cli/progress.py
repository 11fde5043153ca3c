"""What a person sees while it runs: a bar on stderr, or nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[..., None]


@contextmanager
def progress_bar(
    what: str, unit: str, quiet: bool = False, time_left: bool = False, before: str = ""
) -> Iterator[Report]:
    """Yields ``report(done, total, latest="")`` (total 0: not known); until its first call the line
    says ``before``, or what the engine prepares."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    ]
    if time_left:
        columns += [TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(before or preparing(), total=None, count="")

        def report(done: int, total: int, latest: str = "") -> None:
            count = f"{done:,}" + (f" of {total:,}" if total else "") + f" {unit}"
            count += f" ({latest})" if latest else ""
            bar.update(task, description=what, completed=done, total=total or None, count=count)

        yield report


def preparing() -> str:
    """What happens before the first request is simulated."""
    from trimtab.engine.jit import is_warm

    return "preparing" if is_warm() else "compiling the engine (first run only, about 20 s)"


def note(message: str, quiet: bool = False) -> None:
    """A line on stderr that is no error."""
    if not quiet:
        print(message, file=sys.stderr)
