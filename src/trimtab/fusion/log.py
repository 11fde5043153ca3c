"""What a training writes for people: the guidance analysis as text, a CSV and TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from trimtab.fusion.train import Epoch
from trimtab.learn.sealed import write_whole

TABLE = "metrics.csv"
PER_MODALITY = (
    "mean_weights",
    "test_weights",
    "dominant_counts",
    "bias",
    "load_history",
    "target",
    "gradient_norms",
)


def guidance(row: Epoch, modalities: list[str]) -> str:
    """The analysis of one epoch, as a person reads it in a log."""

    def listed(name: str, form: str) -> str:
        return ", ".join(f"{m} {format(v, form)}" for m, v in zip(modalities, row[name], strict=True))

    lines = [
        f"Epoch {row['epoch']} guidance analysis: loss {row['loss']:.4f}, accuracy {row['accuracy']:.4f}",
        f"  mean weights     {listed('mean_weights', '.3f')}",
        f"  dominant counts  {listed('dominant_counts', 'd')}",
        f"  gradient norms   {listed('gradient_norms', '.4f')}",
    ]
    if row["target"]:
        known = not any(math.isnan(value) for value in row["target"])
        lines += [
            f"  modality bias    {listed('bias', '+.4f')}",
            f"  load history     {listed('load_history', '.3f')}",
            f"  target           {listed('target', '.3f') if known else 'no modality is dominant yet'}",
        ]
    if row["alarm"]:
        lines.append(f"  alarm: {row['alarm']}")
    return "\n".join(lines)


def flat(row: Epoch, modalities: list[str]) -> dict[str, Any]:
    """One line of the table: ``mean_weights/text`` and so on; what a method does not have is left out."""
    told = {name: row[name] for name in ("epoch", "loss", "accuracy")}
    for name in PER_MODALITY:
        told |= {f"{name}/{m}": value for m, value in zip(modalities, row[name], strict=False)}
    return told


def write_table(history: list[Epoch], modalities: list[str], folder: Path) -> None:
    """``metrics.csv``, one line per epoch, whole or as it was."""
    rows = [flat(row, modalities) for row in history]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    )
    write_whole(folder / TABLE, text.getvalue().encode())


class Board:
    """TensorBoard's events in ``folder``, where it is installed; else nothing, and ``note`` says so."""

    def __init__(self, folder: Path, done: int) -> None:
        self.note = ""
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.note = "no TensorBoard here: figures are in metrics.csv only (pip install tensorboard)"
            return
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def log(self, row: Epoch, modalities: list[str]) -> None:
        if self._writer is None:
            return
        for name, value in flat(row, modalities).items():
            if name != "epoch" and math.isfinite(value):
                self._writer.add_scalar(name, value, row["epoch"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
