"""Pictures of the collapse study: four curves over training per group of variants, and how each one ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _collapse import DECIDED
from numpy.typing import NDArray

from trimtab.report.canvas import GRID, INK, MUTED, Box, Canvas, Chart
from trimtab.report.plots import PALETTE, QUARTERS

PANELS = (
    ("kl_ref", "KL to the clone, nats", "Flat at zero: the policy stays what was cloned."),
    ("route/entropy", "Entropy, of a coin's", "One is a coin toss, whatever the queues are."),
    ("queue/variance", "Queue variance, requests^2", "Over replicas; half of the starts are skewed."),
    (
        DECIDED,
        "Busiest share x replicas",
        "One is even; the ancestor was near 3; dashed: 1.3.",
    ),
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


def draw_ends(path: Path, title: str, panels: Sequence[tuple[str, str, str, Sequence[Row]]]) -> None:
    """``panels``: title, what to see, unit, rows; the rows of all panels have the same names."""
    rows = panels[0][3]
    height = 150 + 26 * len(rows)
    canvas = Canvas(1240, height)
    canvas.text(30, 40, title, 20, INK)
    width = 270
    for number, (name, see, unit, entries) in enumerate(panels):
        left = 280 + number * (width + 45)
        box = Box(left, 112, left + width, height - 48)
        spread = [bound for row in entries for bound in (row.low, row.high)]
        low, high = min(spread), max(spread)
        room = 0.05 * (high - low)
        chart = Chart(
            canvas, box, (name, see, unit), (max(low - room, 0.0), high + room), (len(entries), 0), rows=True
        )
        for index, row in enumerate(entries):
            y = chart.up(index + 0.5)
            colour = MUTED if index >= len(entries) - _rivals(entries) else PALETTE[0]
            canvas.line([(box.left, y), (box.right, y)], GRID, 1)
            canvas.line([(chart.across(row.low), y), (chart.across(row.high), y)], colour, 2.5)
            canvas.dot(chart.across(row.value), y, 4.5, colour)
            if number == 0:
                canvas.text(box.left - 10, y, row.name, 13, INK, "rm")
    canvas.save(path)


def _rivals(rows: Sequence[Any]) -> int:
    """How many of the last rows are heuristics: those without an interval."""
    return sum(row.low == row.high for row in rows)
