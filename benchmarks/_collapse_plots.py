"""Pictures of the collapse study: four curves over training per group of variants, and how each one ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _collapse import DECIDED
from numpy.typing import NDArray

from trimtab.report.canvas import GRID, INK, MUTED, Box, Canvas, Chart
from trimtab.report.plots import PALETTE, QUARTERS

PANELS = (
    ("kl_ref", "KL to the clone, nats", "Flat at zero: the policy stays what was cloned."),
    ("route/entropy", "Entropy, of a coin's", "One is a coin toss, whatever the queues are."),
    ("queue/variance", "Queue variance, requests^2", "Over replicas; half of the starts are skewed."),
    (DECIDED, "Busiest share x 4, best replica each time", "One is even, four a collapse; dashed: 1.3."),
)
LIMIT = 1.3


class Row(NamedTuple):
    """One line of the final picture: a figure and its interval."""

    name: str
    value: float
    low: float
    high: float


def draw_curves(path: Path, title: str, curves: dict[str, dict[str, NDArray[np.float64]]]) -> None:
    """``curves``: variant -> measure -> (seeds, updates); a line is the mean, the band from least to most."""
    canvas = Canvas(1240, 860)
    canvas.text(30, 40, title, 20, INK)
    _names(canvas, list(curves), 30, 68)
    for box, (measure, heading, see) in zip(QUARTERS, PANELS, strict=True):
        smooth = measure != DECIDED  # a peak counts there
        found = {name: _smooth(one[measure]) if smooth else one[measure] for name, one in curves.items()}
        lowest = 1.0 if measure == DECIDED else 0.0
        top = 1.08 * max(float(each.max()) for each in found.values())
        top = max(top, 1.35) if measure == DECIDED else top
        updates = next(iter(found.values())).shape[1]
        place = Box(box.left, box.top + 30, box.right, box.bottom + 30)
        chart = Chart(canvas, place, (heading, see, "updates"), (1, updates), (lowest, top))
        if measure == DECIDED:
            _dashes(canvas, chart, LIMIT)
        at = np.arange(1.0, updates + 1)
        for index, each in enumerate(found.values()):
            chart.band(at, each.min(axis=0), each.max(axis=0), PALETTE[index])
        for index, each in enumerate(found.values()):
            chart.curve(at, each.mean(axis=0), PALETTE[index], 2.2)
    canvas.save(path)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(seeds, updates) mean over the five updates around each: every update plays other arrivals."""
    count = values.shape[1]
    around = [values[:, max(0, update - 2) : update + 3].mean(axis=1) for update in range(count)]
    return np.stack(around, axis=1)


def _names(canvas: Canvas, names: Sequence[str], x: float, y: float) -> None:
    for index, name in enumerate(names):
        canvas.line([(x, y - 5), (x + 18, y - 5)], PALETTE[index], 4)
        canvas.text(x + 24, y, name, 13, INK)
        x += 52 + 7 * len(name)


def _dashes(canvas: Canvas, chart: Chart, value: float) -> None:
    place = chart.up(value)
    for left in np.arange(chart.box.left, chart.box.right, 12):
        canvas.line([(left, place), (min(left + 6, chart.box.right), place)], MUTED, 1.5)


class Panel(NamedTuple):
    """One column of the final picture; what lies beyond ``most`` is written instead of drawn, and intervals
    are cut at the edges."""

    name: str
    see: str
    unit: str
    most: float
    rows: Sequence[Row]


def draw_ends(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """The rows of all panels have the same names."""
    height = 150 + 26 * len(panels[0].rows)
    canvas = Canvas(1240, height)
    canvas.text(30, 40, title, 20, INK)
    width = 270
    for number, panel in enumerate(panels):
        left = 280 + number * (width + 45)
        box = Box(left, 112, left + width, height - 48)
        shown = [row for row in panel.rows if row.value <= panel.most]
        low, high = min(row.value for row in shown), max(row.value for row in shown)
        low, high = max(low - 0.2 * (high - low), 0.0), high + 0.2 * (high - low)
        titles = (panel.name, panel.see, panel.unit)
        chart = Chart(canvas, box, titles, (low, high), (0, len(panel.rows)), rows=True)
        for index, row in enumerate(panel.rows):
            y = chart.up(len(panel.rows) - index - 0.5)
            canvas.line([(box.left, y), (box.right, y)], GRID, 1)
            _interval(canvas, chart, row, y, (low, high), index >= len(panel.rows) - _rivals(panel.rows))
            if number == 0:
                canvas.text(box.left - 10, y, row.name, 13, INK, "rm")
    canvas.save(path)


def _interval(
    canvas: Canvas, chart: Chart, row: Row, y: float, bounds: tuple[float, float], rival: bool
) -> None:
    low, high = bounds
    if row.value > high:
        canvas.text(chart.box.right - 4, y, f"{row.value:,.3g}", 13, PALETTE[1], "rm")
        return
    colour = MUTED if rival else PALETTE[0]
    ends = [(chart.across(min(max(end, low), high)), y) for end in (row.low, row.high)]
    canvas.line(ends, colour, 2.5)
    canvas.dot(chart.across(max(row.value, low)), y, 4.5, colour)


def _rivals(rows: Sequence[Row]) -> int:
    """How many of the last rows are heuristics: those without an interval."""
    return sum(row.low == row.high for row in rows)
