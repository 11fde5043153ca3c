"""Loads per layer and expert, before and after: what `trimtab moe report` shows. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.balance.arrays import as_load
from trimtab.balance.measures import balancedness, dead_fraction, max_violation
from trimtab.errors import TrimtabError
from trimtab.report.canvas import INK, RAMP, Box, Canvas

if TYPE_CHECKING:
    from rich.table import Table

REPORT = "trimtab_moe.json"
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # bars of one to eight eighths
FULL = 2.5  # times the mean load: a full bar, the darkest colour
WIDTH, LEFT, TOP = 1100, 70, 110  # pixels
STYLE: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "box": None, "padding": (0, 1)}


@dataclass(frozen=True)
class Loads:
    """Tokens per expert (layers, experts) on the held-out text, and what else the report file says."""

    before: np.ndarray
    after: np.ndarray
    words: dict[str, Any]


def read_report(folder: Path) -> Loads:
    """The report in a folder that `trimtab moe calibrate` wrote; loads that are none are refused."""
    file = folder / REPORT if folder.is_dir() else folder
    try:
        words = json.loads(file.read_text(encoding="utf-8"))
        before, after = (np.asarray(words[name], dtype=np.float64) for name in ("loads_before", "loads"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrimtabError(f"{file} is no report of trimtab moe calibrate: {error!r}") from error
    if before.ndim != 2 or len(words.get("routers", [])) != len(before):
        raise TrimtabError(
            f"{file}: loads of shape {before.shape} for {len(words.get('routers', []))} routers"
        )
    before = as_load(before, what="loads before")[1]
    return Loads(before, as_load(after, before, "loads after")[1], words)


def layer_table(loads: Loads) -> Table:
    """One row per layer: how uneven it was and is, with a bar per expert where there is room."""
    from rich.table import Table

    experts = loads.before.shape[1]
    table = Table(title=f"load of {experts} experts per layer, before and after", **STYLE)
    table.add_column("layer")
    for heading in ("MaxVio", "after", "balanced", "after", "dead", "after"):
        table.add_column(heading, justify="right")
    if experts <= 32:
        table.add_column("before", no_wrap=True)
        table.add_column("after", no_wrap=True)
    rows = zip(short_names(loads.words["routers"]), loads.before, loads.after, strict=True)
    for name, before, after in rows:
        cells = [f"{float(max_violation(row)):.3f}" for row in (before, after)]
        cells += [f"{float(balancedness(row)):.1%}" for row in (before, after)]
        cells += [f"{round(float(dead_fraction(row)) * experts)}" for row in (before, after)]
        bars = [bar(before), bar(after)] if experts <= 32 else []
        table.add_row(name, *cells, *bars)
    floor = loads.words.get("floor", {}).get("global", float("nan"))
    table.caption = (
        f"MaxVio: busiest expert over the mean, less 1; by chance alone {floor:.3f} on this much text; "
        "balanced: mean over busiest"
    )
    return table


def expert_table(loads: Loads, layer: int) -> Table:
    """One row per expert of a layer, the busiest first: its load over the mean, before and after."""
    from rich.table import Table

    if not 0 <= layer < len(loads.before):
        raise TrimtabError(f"--layer is from 0 to {len(loads.before) - 1}; given {layer}")
    table = Table(**STYLE)
    for heading in ("expert", "load over the mean, before", "after"):
        table.add_column(heading, justify="right")
    before, after = (rows[layer] / rows[layer].mean() for rows in (loads.before, loads.after))
    for expert in np.argsort(-before, kind="stable"):
        table.add_row(str(expert), f"{before[expert]:.3f}", f"{after[expert]:.3f}")
    return table


def short_names(names: list[str]) -> list[str]:
    """Names without the parts that all of them share at either end.

    >>> short_names(["model.layers.3.mlp.gate", "model.layers.12.mlp.gate"])
    ['3', '12']
    """
    parts = [name.split(".") for name in names]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return [".".join(part) for part in parts]


def bar(load: np.ndarray) -> str:
    """A block per expert, as high as its load; full at FULL times the mean.

    >>> bar(np.array([1.0, 1.0])) == BLOCKS[2] * 2
    True
    """
    eighths = np.clip(load / load.mean() / FULL * 8, 0, 7.99).astype(int)
    return "".join(BLOCKS[min(eighth, 7) if eighth < 1 else eighth - 1] for eighth in eighths)


def write_heat_map(loads: Loads, path: Path) -> None:
    """A PNG: layers down, experts across, load as colour; before above, after below."""
    layers = len(loads.before)
    height = int(np.clip(26 * layers, 80, 420))
    canvas = Canvas(WIDTH, TOP + 2 * (height + 90) + 40)
    canvas.text(30, 40, f"Load per layer and expert: {loads.words.get('model_type', '')}", 20, INK)
    canvas.text(
        30, 64, "Even rows are the goal: a dark cell is an expert that its whole layer waits for.", 13
    )
    panels = (("Before", loads.before), ("After", loads.after))
    for number, (title, rows) in enumerate(panels):
        top = TOP + 20 + number * (height + 90)
        box = Box(LEFT, top, WIDTH - 40, top + height)
        violation = float(max_violation(rows).mean())
        canvas.text(LEFT, top - 10, f"{title}: MaxVio {violation:.3f}, mean over layers", 15, INK)
        canvas.heat(box, rows / rows.mean(axis=1, keepdims=True) / FULL)
        step = max(1, layers // 8)
        for layer in range(0, layers, step):
            middle = top + (layer + 0.5) * height / layers
            canvas.text(LEFT - 8, middle, str(layer), anchor="rm")
        canvas.text((box.left + box.right) / 2, box.bottom + 20, "expert", anchor="ms")
        canvas.text(16, (box.top + box.bottom) / 2, "layer", anchor="lm")
    legend(canvas, TOP + 2 * (height + 90) + 6)
    canvas.save(path)


def legend(canvas: Canvas, top: float) -> None:
    """What the colours mean."""
    box = Box(LEFT, top, LEFT + 240, top + 12)
    canvas.heat(box, np.linspace(0, 1, 10 * len(RAMP))[None])
    canvas.text(LEFT, top + 27, "0", anchor="ms")
    canvas.text(LEFT + 240 / FULL, top + 27, "mean", anchor="ms")
    canvas.text(LEFT + 240, top + 27, f"{FULL:g} x mean or more", anchor="ms")
