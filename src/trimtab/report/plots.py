"""Three pictures of a run as PNG. Each chart carries one sentence that says what to see in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.report.canvas import INK, MUTED, RAMP, Box, Canvas, Chart, label
from trimtab.report.metrics import request_columns
from trimtab.report.series import time_series
from trimtab.report.words import number
from trimtab.result import Result

WIDTH, HEIGHT = 1240, 820
BLUE, ORANGE, TEAL, PURPLE = "#2f6fdb", "#d9730d", "#0f8f7a", "#7d55c7"
PALETTE = (BLUE, ORANGE, TEAL, PURPLE, "#c2376a", "#5d7d12", "#1793bd", "#8c6a34")  # as many lines at most
QUARTERS = tuple(
    Box(left, top, left + 515, top + 240) for top in (128, 500) for left in (75, 695)
)  # four charts
CURVE_POINTS = 400
HISTOGRAM_BARS = 64

Series = dict[str, NDArray[np.float64]]


def write_plots(result: Result, directory: str | Path) -> list[Path]:
    """Write latency.png, timeline.png and replicas.png into ``directory``; returns their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    series = time_series(result)
    paths = []
    for name, canvas in (
        ("latency", _latency(result)),
        ("timeline", _timeline(series)),
        ("replicas", _replicas(result, series)),
    ):
        count = len(result.replicas)
        title = f"{result.scenario.name}: router {result.scenario.router.name}, {count} replica"
        canvas.text(30, 44, f"{title}{'s' if count != 1 else ''}", 20, INK)
        path = directory / f"{name}.png"
        canvas.save(path)
        paths.append(path)
    return paths


def _latency(result: Result) -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT)
    columns = request_columns(result)
    panels = (
        ("ttft_ms", "Time to first token", "A long flat top is a tail: few requests wait very long.", BLUE),
        ("tpot_ms", "Time per output token", "Steep is steady: every reader sees the same pace.", TEAL),
        ("e2el_ms", "End-to-end latency", "Mostly output length; compare its tail with the queue's.", PURPLE),
        ("scheduling_delay_ms", "Scheduling delay", "The part of the first token's time in a queue.", ORANGE),
    )
    for box, (name, title, see, colour) in zip(QUARTERS, panels, strict=True):
        _distribution(canvas, box, (title, see), columns[name], colour)
    return canvas


def _distribution(
    canvas: Canvas, box: Box, titles: tuple[str, str], values: NDArray[np.float64], colour: str
) -> None:
    """Share of requests by latency, up to the 99.9th percentile; median and p99 are marked."""
    if not len(values):
        canvas.text(box.left, box.top - 32, titles[0], 17, INK)
        canvas.text(box.left, box.top - 13, "No request has this figure.", 13)
        return
    shares = np.linspace(0, 0.999, CURVE_POINTS)
    curve = np.quantile(values, shares)
    scale, unit = (1e-3, "seconds") if curve[-1] >= 1000 else (1.0, "milliseconds")
    chart = Chart(canvas, box, (*titles, unit), (0, 1.03 * scale * curve[-1]), (0, 1.02), percent=True)
    chart.curve(scale * curve, shares, colour, 2.5, fill=True)
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        value = float(np.quantile(values, share))
        x, y = chart.across(scale * value), chart.up(share)
        canvas.dot(x, y, 5, colour)
        late = x > box.left + 0.65 * (box.right - box.left)
        place = x - 10 if late else x + 12
        canvas.text(place, y + 26, f"{name}  {number(value, 'ms')}", 14, INK, "rs" if late else "ls")


def _timeline(series: Series) -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT)
    time = series["time"]
    waiting = series["waiting"].sum(axis=1)
    flow = _over_time(
        canvas,
        0,
        ("In and out, requests/s", "Completions that stay below arrivals: the cluster falls behind."),
        time,
        max(series["arrivals"].max(), series["completions"].max()),
    )
    flow.curve(time, series["arrivals"], MUTED, 1.6)
    flow.curve(time, series["completions"], BLUE)
    flow.legend([("arrivals", MUTED), ("completions", BLUE)])
    queue = ("Queue, requests", "Waiting at all replicas; growth without end is overload.")
    _over_time(canvas, 1, queue, time, waiting.max()).curve(time, waiting, ORANGE, fill=True)
    tokens = ("Output, tokens/s", "Tokens generated; a plateau is the cluster's capacity.")
    output = series["decode_tokens"]
    _over_time(canvas, 2, tokens, time, output.max()).curve(time, output, TEAL, fill=True)
    kv_used = series["kv_used"]
    memory = ("KV cache in use", "Share of blocks; near 100 % requests queue or are preempted.")
    _replica_lines(_over_time(canvas, 3, memory, time, kv_used.max(), percent=True), time, kv_used)
    return canvas


def _over_time(
    canvas: Canvas,
    place: int,
    titles: tuple[str, str],
    time: NDArray[np.float64],
    highest: float,
    percent: bool = False,
) -> Chart:
    top = 1.18 * max(float(highest), 1e-3)  # room for the legend
    return Chart(canvas, QUARTERS[place], (*titles, "seconds"), (0, float(time[-1])), (0, top), percent)


def _replica_lines(chart: Chart, time: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """A line per replica; of many replicas the mean within the band from least to most."""
    count = values.shape[1]
    if count > len(PALETTE):
        chart.band(time, values.min(axis=1), values.max(axis=1), BLUE)
        chart.curve(time, values.mean(axis=1), BLUE)
        chart.legend([("mean of replicas, in the band from emptiest to fullest", BLUE)])
        return
    for index in range(count):
        chart.curve(time, values[:, index], PALETTE[index], 1.6)
    if count > 1:
        chart.legend([(str(index), PALETTE[index]) for index in range(count)])


def _replicas(result: Result, series: Series) -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT)
    load = (series["waiting"] + series["running"]).T
    top = max(float(load.max(initial=0.0)), 1.0)
    box = Box(75, 128, 1090, 368)
    see = "Requests waiting or running, a row per replica: unlike rows are uneven load, dark columns a burst."
    titles = ("Load per replica", see, "seconds")
    chart = Chart(canvas, box, titles, (0, float(series["time"][-1])), (len(load), 0), rows=True)
    canvas.heat(box, load / top)
    step = -(-len(load) // 12)
    for row in range(0, len(load), step):
        canvas.text(
            box.left - 8, box.top + (row + 0.5) / len(load) * (box.bottom - box.top), str(row), anchor="rm"
        )
    scale = Box(1130, box.top, 1150, box.bottom)
    canvas.heat(scale, np.linspace(1, 0, 60)[:, None])
    canvas.text(scale.right + 8, scale.top + 5, label(round(top)), anchor="lm")
    canvas.text(scale.right + 8, scale.bottom - 5, "0", anchor="lm")
    assert chart.box == box
    _batches(canvas, result, Box(75, 500, 1210, 740))
    return canvas


def _batches(canvas: Canvas, result: Result, box: Box) -> None:
    see = "Share of iterations by sequences: small batches leave the device idle; a last spike is the cap."
    size = (result.iterations["prefills"] + result.iterations["decodes"]).astype(np.int64)
    largest = int(size.max(initial=1))
    width = -(-largest // HISTOGRAM_BARS)
    shares = np.bincount((np.maximum(size, 1) - 1) // width, minlength=1) / max(len(size), 1)
    top = max(1.08 * float(shares.max()), 1e-3)
    titles = ("Batch size", see, "sequences in the iteration")
    chart = Chart(canvas, box, titles, (0.5, len(shares) * width + 0.5), (0, top), percent=True)
    for index, share in enumerate(shares.tolist()):
        left, right = chart.across(0.5 + index * width), chart.across(0.5 + (index + 1) * width)
        canvas.rectangle(Box(left + 1, chart.up(share), right - 1, box.bottom), RAMP[3])
