"""``trimtab workload``: look at traces and mixes, and fit mixes to traces."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.workload.fit import FitError
    from trimtab.workload.summary import Summary

app = typer.Typer(help="Look at traces and fitted mixes; fit a mix to a trace.", no_args_is_help=True)

ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="KEY=NAME",
        help="Your name of arrived_at, prefill, decode or session; repeatable.",
    ),
]
FormatOption = Annotated[
    str, typer.Option("--format", help="auto, azure, burstgpt, mooncake, table or vidur.", show_default=True)
]

_STYLE: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "box": None, "padding": (0, 1)}


@app.command()
def fit(
    trace: Annotated[str, typer.Argument(help="Trace file: CSV, Parquet or JSONL.")],
    out: Annotated[Path, typer.Option(help="Mix to write (.json).")],
    name: Annotated[str | None, typer.Option(help="Name of the mix; the file's by default.")] = None,
    source: Annotated[
        str, typer.Option(help="Where the trace is from and its licence, kept in the mix.")
    ] = "",
    trace_format: FormatOption = "auto",
    column: ColumnOption = None,
) -> None:
    """Fit the joint law of prompt and output lengths to TRACE and print how well it fits."""
    from rich.console import Console

    from trimtab.workload.fit import compare, fit_error, fit_mix, halves
    from trimtab.workload.trace import read_trace

    if out.suffix != ".json":
        raise TrimtabError(f"--out {str(out)!r} must end in .json")
    if not out.parent.is_dir():
        raise TrimtabError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = read_trace(trace, trace_format, _columns(column))
    mix = fit_mix(real, name or out.stem, source or real.name)
    partial = out.with_suffix(".json.part")
    mix.save(partial)
    os.replace(partial, out)
    one, other = halves(real)
    held_out = fit_error(fit_mix(one, mix.name), other)
    noise = compare((other.prefill, other.decode), (one.prefill, one.decode))
    console = Console()
    console.print(_fit_table(mix.name, fit_error(mix, real), held_out, noise))
    if real.dropped:
        console.print(f"{real.dropped:,} failed requests were left out.")
    console.print(f"{len(real.prefill):,} requests, {out.stat().st_size / 1000:.0f} kB written to {out}")


@app.command()
def show(
    source: Annotated[str, typer.Argument(help="Bundled mix, mix file (.json) or trace file.")],
    trace_format: FormatOption = "auto",
    column: ColumnOption = None,
) -> None:
    """Print how many requests SOURCE has, when they arrive and how long they are."""
    from rich.console import Console

    from trimtab.workload.summary import summarise

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = summarise(source, trace_format, _columns(column))
    console = Console()
    for line in _facts(summary):
        console.print(line, highlight=False)
    console.print(_length_table(summary))


def _columns(pairs: list[str] | None) -> dict[str, str] | None:
    """``["prefill=In", "decode=Out"]`` as a mapping; what the keys may be is the reader's business."""
    if not pairs:
        return None
    columns = {}
    for pair in pairs:
        key, equals, name = pair.partition("=")
        if not equals or not name:
            raise TrimtabError(f"--column {pair!r} must read KEY=NAME, for example prefill=input_tokens")
        columns[key.strip()] = name.strip()
    return columns


def _fit_table(name: str, error: FitError, held_out: FitError, noise: FitError) -> Table:
    """Errors on the trace; of a fit to one random half on the other; of the one half on the other."""
    from rich.table import Table

    table = Table(title=f"{name}: fitted against real", **_STYLE)
    for heading in ("", "real", "fitted", "error", "held out", "half/half"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, field in (("prompt", "ks_prefill"), ("output", "ks_decode"), ("sum", "ks_total")):
        table.add_row(f"KS, {label}", "", "", *(f"{getattr(e, field):.4f}" for e in (error, held_out, noise)))
    for label, field in (("rank correlation", "spearman"), ("log correlation", "pearson_log")):
        pairs = [getattr(e, field) for e in (error, held_out, noise)]
        table.add_row(
            label,
            *(f"{value:+.3f}" for value in pairs[0]),
            *(f"{other - real:+.3f}" for real, other in pairs),
        )
    for label, field in (("mean prompt", "mean_prefill"), ("mean output", "mean_decode")):
        pairs = [getattr(e, field) for e in (error, held_out, noise)]
        table.add_row(
            label,
            *(f"{value:,.1f}" for value in pairs[0]),
            *(f"{other / real - 1:+.2%}" for real, other in pairs),
        )
    table.caption = "held out: fitted to a random half, against the other; half/half: real against real"
    return table


def _facts(summary: Summary) -> list[str]:
    lines = [f"[bold]{summary.name}[/bold] ({summary.kind}), {summary.requests:,} requests"]
    if summary.source and summary.kind != "trace":
        lines.append(f"source: {summary.source}")
    if summary.dropped:
        lines.append(f"{summary.dropped:,} failed requests are not counted")
    facts = summary.arrivals
    if facts is None:
        lines.append("no arrival times")
    else:
        lines += [
            f"{facts.rate_per_s:.2f} requests/s over {facts.duration_s:,.0f} s",
            f"CV of gaps {facts.gap_cv:.2f}, variance/mean of counts per minute {facts.dispersion_60s:.1f} "
            "(Poisson: 1 and 1)",
        ]
    if summary.sessions:
        lines.append(f"{summary.sessions:,} sessions")
    if summary.prefix_hashes:
        lines.append(f"{summary.prefix_hashes:,} prefix hash ids")
    return lines


def _length_table(summary: Summary) -> Table:
    from rich.table import Table

    from trimtab.workload.summary import QUANTILES

    table = Table(title="tokens", **_STYLE)
    table.add_column("")
    for heading in ("mean", *(f"p{q}" for q in QUANTILES[:-1]), "max"):
        table.add_column(heading, justify="right")
    rows = (("prompt", summary.prefill), ("output", summary.decode), ("sum", summary.total))
    for label, row in rows:
        table.add_row(label, *(f"{value:,.0f}" for value in row))
    table.caption = f"rank correlation of prompt and output {summary.spearman:+.3f}"
    return table
