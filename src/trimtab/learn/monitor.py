"""What training writes down for people: a CSV and TensorBoard, and Weights & Biases on demand."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.learn.measures import COLUMNS
from trimtab.learn.presets import TrainConfig
from trimtab.learn.sealed import write_whole


class Monitor:
    """Writes every step of a stage to ``folder``: a CSV, TensorBoard where it is installed, W&B if asked."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        history: list[dict[str, float]],
        wandb: str | None = None,
        columns: tuple[str, ...] = COLUMNS,
        name: str = "metrics",
    ) -> None:
        """``history``: the steps done before, which NAME.csv is made to hold and nothing else. The first of
        ``columns`` counts them; PPO's go to tensorboard/, those of other stages to a folder of their own."""
        self.notes: list[str] = []
        self._columns, self._path = columns, folder / f"{name}.csv"
        rows = [self._row(step, facts) for step, facts in enumerate(history, 1)]
        write_whole(self._path, _lines([list(columns), *rows]).encode())
        board = folder / "tensorboard" / ("" if columns is COLUMNS else name)
        self._board = self._open_board(board, len(history) + 1)
        self._run = _open_wandb(wandb, folder, config) if wandb else None

    def _open_board(self, folder: Path, first: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.notes.append(
                "no TensorBoard here: figures are in metrics.csv only (pip install tensorboard)"
            )
            return None
        return SummaryWriter(str(folder), purge_step=first)

    def log(self, update: int, facts: dict[str, float]) -> None:
        """The measurements of update or generation ``update``, counted from 1."""
        with self._path.open("a", encoding="utf-8") as table:
            table.write(_lines([self._row(update, facts)]))
        known = {name: value for name, value in facts.items() if math.isfinite(value)}
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, update)
            self._board.flush()
        if self._run is not None:
            self._run.log(known, step=update)

    def _row(self, step: int, facts: dict[str, float]) -> list[str]:
        values = (facts.get(name, math.nan) for name in self._columns[1:])
        return [str(step), *("" if math.isnan(value) else f"{value:.6g}" for value in values)]

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_wandb() -> Any:
    """The package. Raises TrimtabError where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise TrimtabError("--wandb needs the wandb package: pip install 'trimtab[wandb]'") from None
    return wandb


def _open_wandb(project: str, folder: Path, config: TrainConfig) -> Any:
    return require_wandb().init(project=project, config=config.as_dict(), name=folder.name, dir=str(folder))


def _lines(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
