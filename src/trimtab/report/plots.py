"""Three pictures of a run as PNG. Each panel carries one sentence that says what to see in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.report.metrics import request_columns
from trimtab.report.series import time_series
from trimtab.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2430", "#657083", "#e3e7ee"
BLUE, ORANGE, TEAL, PURPLE = "#2f6fdb", "#dd7a1f", "#14907c", "#7d55c7"
DPI = 110
CURVE_POINTS = 400
MAX_LINES = 8  # replicas drawn one by one; more become a band

Figures = dict[str, Any]


def write_plots(result: Result, directory: str | Path) -> list[Path]:
    """Write latency.png, timeline.png and replicas.png into ``directory``; returns their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    series = time_series(result)
    title = f"{result.scenario.name}, {result.scenario.router.name}, {len(result.replicas)} replicas"
    paths = []
    for name, figure in (
        ("latency", _latency_figure(result)),
        ("timeline", _timeline_figure(series)),
        ("replicas", _replicas_figure(result, series)),
    ):
        figure.suptitle(title, x=0.012, y=0.975, ha="left", fontsize=10.5, color=MUTED)
        path = directory / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        paths.append(path)
    return paths


def _figure(rows: int, columns: int, width: float = 10.0, height: float = 6.6) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.84, bottom=0.09, hspace=0.62, wspace=0.2)
    return figure, axes


def _dress(axes: Axes, title: str, see: str, x: str, y: str) -> None:
    axes.text(0, 1.14, title, transform=axes.transAxes, fontsize=11, fontweight="bold", color=INK)
    axes.text(0, 1.045, see, transform=axes.transAxes, fontsize=8, color=MUTED)
    axes.set_xlabel(x, fontsize=8.5, color=MUTED)
    axes.set_ylabel(y, fontsize=8.5, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _latency_figure(result: Result) -> Figure:
    figure, axes = _figure(2, 2)
    columns = request_columns(result)
    panels = (
        ("ttft_ms", "Time to first token", "A long flat top is a tail: few requests wait very long.", BLUE),
        ("tpot_ms", "Time per output token", "Steep is steady: every reader sees the same pace.", TEAL),
        ("e2el_ms", "End-to-end latency", "Mostly output length; compare its tail with the queue's.", PURPLE),
        (
            "scheduling_delay_ms",
            "Scheduling delay",
            "The part of the first token's time spent in a queue.",
            ORANGE,
        ),
    )
    for panel, (name, title, see, colour) in zip(axes.flat, panels, strict=True):
        _cdf(panel, columns[name] / 1e3, colour)
        _dress(panel, title, see, "seconds", "share of requests")
    return figure


def _cdf(axes: Axes, seconds: NDArray[np.float64], colour: str) -> None:
    axes.set_ylim(0, 1.02)
    if not len(seconds):
        axes.text(0.5, 0.5, "no such request", transform=axes.transAxes, ha="center", color=MUTED, fontsize=9)
        return
    shares = np.linspace(0, 1, CURVE_POINTS)
    values = np.quantile(seconds, shares)
    axes.plot(values, shares, color=colour, linewidth=2)
    axes.fill_between(values, shares, color=colour, alpha=0.08, linewidth=0)
    median, tail = np.quantile(seconds, [0.5, 0.99])
    for share, value, name in ((0.5, median, "p50"), (0.99, tail, "p99")):
        axes.plot([value], [share], "o", color=colour, markersize=5)
        side = "right" if value > 0.7 * values[-1] else "left"
        axes.annotate(
            f"{name}  {_seconds(value)}",
            (value, share),
            xytext=(-8 if side == "right" else 8, -14),
            textcoords="offset points",
            ha=side,
            fontsize=8.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
        )
    axes.set_xlim(0, values[-1] * 1.02 or 1)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _timeline_figure(series: Figures) -> Figure:
    figure, axes = _figure(2, 2)
    time = series["time"]
    flow, queue, tokens, memory = axes.flat
    flow.plot(time, series["arrivals"], color=MUTED, linewidth=1.4, label="arrivals")
    flow.plot(time, series["completions"], color=BLUE, linewidth=1.8, label="completions")
    flow.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")
    _dress(
        flow,
        "In and out",
        "Completions that stay below arrivals: the cluster falls behind.",
        "s",
        "requests/s",
    )
    waiting = series["waiting"].sum(axis=1)
    queue.fill_between(time, waiting, color=ORANGE, alpha=0.2, linewidth=0)
    queue.plot(time, waiting, color=ORANGE, linewidth=1.8)
    _dress(
        queue, "Queue", "Requests waiting at all replicas; growth without end is overload.", "s", "requests"
    )
    tokens.plot(time, series["decode_tokens"], color=TEAL, linewidth=1.8)
    _dress(
        tokens, "Output", "Tokens generated per second; a plateau is the cluster's capacity.", "s", "tokens/s"
    )
    _lines(memory, time, 100 * series["kv_used"])
    _dress(
        memory,
        "KV cache",
        "Share of KV blocks in use; at 100 % requests queue or restart.",
        "s",
        "% of blocks",
    )
    for panel in axes.flat:
        panel.set_ylim(0, 1.15 * max(panel.get_ylim()[1], 1e-9))  # room for the legend
        panel.set_xlim(0, time[-1])
    return figure


def _lines(axes: Axes, time: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """A line per replica; of many replicas the mean within the band from least to most."""
    if values.shape[1] <= MAX_LINES:
        palette = (BLUE, ORANGE, TEAL, PURPLE, "#c2436b", "#5b7c1f", "#2a9bc4", "#8a6d3b")
        for index in range(values.shape[1]):
            axes.plot(time, values[:, index], color=palette[index], linewidth=1.3, label=f"replica {index}")
        if values.shape[1] > 1:
            axes.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=4, loc="upper right")
        return
    axes.fill_between(time, values.min(axis=1), values.max(axis=1), color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(time, values.mean(axis=1), color=BLUE, linewidth=1.8, label="mean; band: least to most loaded")
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, loc="upper right")


def _replicas_figure(result: Result, series: Figures) -> Figure:
    figure, axes = _figure(2, 1, height=6.6)
    heat, sizes = axes.flat
    load = (series["waiting"] + series["running"]).T
    extent = (0.0, float(series["time"][-1]), len(load) - 0.5, -0.5)
    image = heat.imshow(load, aspect="auto", extent=extent, cmap="viridis", interpolation="nearest", vmin=0)
    bar = figure.colorbar(image, ax=heat, pad=0.012, fraction=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    see = "Requests waiting or running: rows that differ are an uneven load, bright columns a burst."
    _dress(heat, "Load per replica", see, "s", "replica")
    heat.grid(False)
    heat.yaxis.get_major_locator().set_params(integer=True)
    table = result.iterations
    size = table["prefills"] + table["decodes"]
    if len(size):
        bins = np.linspace(0.5, max(float(size.max()), 1.0) + 0.5, min(int(size.max()), 60) + 1)
        sizes.hist(size, bins=bins, color=BLUE, alpha=0.85, weights=np.full(len(size), 1 / len(size)))
    see = "Sequences per iteration: small batches leave the device idle; a spike on the right is the cap."
    _dress(sizes, "Batch size", see, "sequences", "share of iterations")
    return figure
