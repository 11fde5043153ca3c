"""A small chart canvas on Pillow: lines, areas, bars, a heat map, axes, text.

Three pictures take 0.2 s with it; importing matplotlib and drawing them takes a second or more, most of
the time of a short simulation.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

INK, MUTED, GRID, PAPER = "#1d2430", "#5f6b7e", "#e3e7ee", "#ffffff"
OVERSAMPLING = 3  # shapes are drawn larger and averaged, which smooths their edges
RAMP = ("#eef3fb", "#bcd3f6", "#6f9fe9", "#2f6fdb", "#1d3f92", "#101d48")  # little to much

Values = NDArray[Any]


class Box(NamedTuple):
    """Where a chart lies on the canvas, pixels."""

    left: float
    top: float
    right: float
    bottom: float


class Canvas:
    """A white picture of ``width`` x ``height`` pixels."""

    def __init__(self, width: int, height: int):
        from PIL import Image, ImageDraw

        size = (width * OVERSAMPLING, height * OVERSAMPLING)
        self.image = Image.new("RGB", size, PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self._texts: list[tuple[float, float, str, float, str, str]] = []

    def text(
        self, x: float, y: float, text: str, size: float = 13, colour: str = MUTED, anchor: str = "ls"
    ) -> None:
        """``anchor`` is Pillow's: l, m or r, then s for baseline, m for middle or a for top."""
        self._texts.append((x, y, text, size, colour, anchor))

    def line(self, points: list[tuple[float, float]], colour: str, width: float = 2.0) -> None:
        """A polyline through ``points``, pixels."""
        scaled = [(OVERSAMPLING * x, OVERSAMPLING * y) for x, y in points]
        self.pen.line(scaled, fill=colour, width=round(width * OVERSAMPLING), joint="curve")

    def area(self, points: list[tuple[float, float]], colour: str, strength: float) -> None:
        """A filled polygon in ``colour`` mixed with white."""
        self.pen.polygon(
            [(OVERSAMPLING * x, OVERSAMPLING * y) for x, y in points], fill=_pale(colour, strength)
        )

    def rectangle(self, box: Box, colour: str) -> None:
        """A filled rectangle."""
        self.pen.rectangle([OVERSAMPLING * edge for edge in box], fill=colour)

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        """A disc with a white rim."""
        for size, paint in ((radius + 1.5, PAPER), (radius, colour)):
            edges = (x - size, y - size, x + size, y + size)
            self.pen.ellipse([OVERSAMPLING * edge for edge in edges], fill=paint)

    def heat(self, box: Box, shares: Values) -> None:
        """``shares`` (rows, columns) between 0 and 1 as colours of RAMP, stretched over ``box``."""
        from PIL import Image

        stops = np.array([_channels(colour) for colour in RAMP], dtype=np.float64)
        place = np.clip(shares, 0, 1) * (len(RAMP) - 1)
        colours = np.stack([np.interp(place, range(len(RAMP)), stops[:, c]) for c in range(3)], axis=-1)
        picture = Image.fromarray(colours.astype(np.uint8))
        size = tuple(round(OVERSAMPLING * edge) for edge in (box.right - box.left, box.bottom - box.top))
        corner = (round(OVERSAMPLING * box.left), round(OVERSAMPLING * box.top))
        self.image.paste(picture.resize((size[0], size[1]), Image.Resampling.NEAREST), corner)

    def save(self, path: str | Path) -> None:
        """Write a PNG."""
        from PIL import ImageDraw, ImageFont

        small = self.image.reduce(OVERSAMPLING)
        pen = ImageDraw.Draw(small)
        fonts = {size: ImageFont.load_default(size) for size in {entry[3] for entry in self._texts}}
        for x, y, text, size, colour, anchor in self._texts:
            pen.text((x, y), text, fill=colour, font=fonts[size], anchor=anchor)
        small.save(path, "PNG", compress_level=2)


class Chart:
    """Axes in a box of a canvas: a title, a sentence that says what to see, grid lines, labels."""

    def __init__(
        self,
        canvas: Canvas,
        box: Box,
        titles: tuple[str, str, str],
        x: tuple[float, float],
        y: tuple[float, float],
        percent: bool = False,
        rows: bool = False,
    ):
        """``titles`` are title, what to see and the x axis; ``rows`` leaves out the horizontal lines."""
        self.canvas, self.box = canvas, box
        self.x = x if x[1] > x[0] else (x[0], x[0] + 1)
        self.y = y if y[1] > y[0] else (y[0], y[0] + 1)
        title, see, name = titles
        canvas.text(box.left, box.top - 32, title, 17, INK)
        canvas.text(box.left, box.top - 13, see, 13)
        canvas.text((box.left + box.right) / 2, box.bottom + 37, name, 13, anchor="ms")
        for tick in ticks(*self.x, 7):
            place = self.across(tick)
            canvas.line([(place, box.top), (place, box.bottom)], GRID, 1)
            canvas.text(place, box.bottom + 18, label(tick), anchor="ms")
        for tick in [] if rows else ticks(*self.y, 5):
            place = self.up(tick)
            canvas.line([(box.left, place), (box.right, place)], GRID, 1)
            said = f"{label(100 * tick)} %" if percent else label(tick)
            canvas.text(box.left - 8, place, said, anchor="rm")

    def across(self, value: float) -> float:
        """Pixel of an x value."""
        low, high = self.x
        return self.box.left + (value - low) / (high - low) * (self.box.right - self.box.left)

    def up(self, value: float) -> float:
        """Pixel of a y value."""
        low, high = self.y
        return self.box.bottom - (value - low) / (high - low) * (self.box.bottom - self.box.top)

    def points(self, xs: Values, ys: Values) -> list[tuple[float, float]]:
        """Pixels of a curve."""
        return [(self.across(x), self.up(y)) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]

    def curve(self, xs: Values, ys: Values, colour: str, width: float = 2.0, fill: bool = False) -> None:
        """A line; with ``fill`` the area below it too."""
        points = self.points(xs, ys)
        if fill and points:
            base = self.up(self.y[0])
            self.canvas.area([(points[0][0], base), *points, (points[-1][0], base)], colour, 0.12)
        self.canvas.line(points, colour, width)

    def band(self, xs: Values, low: Values, high: Values, colour: str) -> None:
        """The area between two curves."""
        self.canvas.area([*self.points(xs, low), *reversed(self.points(xs, high))], colour, 0.22)

    def legend(self, entries: list[tuple[str, str]]) -> None:
        """(name, colour) of each line, in the upper right corner."""
        right = self.box.right
        for name, colour in reversed(entries):
            right -= 7 * len(name)
            self.canvas.text(right, self.box.top + 12, name, 13, INK)
            self.canvas.line([(right - 22, self.box.top + 8), (right - 6, self.box.top + 8)], colour, 3)
            right -= 34


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them.

    >>> ticks(0, 10, 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's text: ``0.02``, ``15``, ``3.5k``.

    >>> label(3500)
    '3.5k'
    """
    return f"{value / 1000:.6g}k" if abs(value) >= 1000 else f"{value:.6g}"


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _pale(colour: str, strength: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 + strength * (channel - 255)) for channel in _channels(colour))
    return red, green, blue
