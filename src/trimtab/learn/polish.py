"""The last stage of a training: evolution from the best policy so far, saved as it goes.

``evolution.safetensors`` in the run folder holds values, moments and history; a generation is a function of
seed and number, so that going on from the file is the same as never having stopped. The history is also in
evolution.csv and TensorBoard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trimtab.learn.evolve import Course, Evolution, begin, generation, lay_courses
from trimtab.learn.measures import EVOLUTION
from trimtab.learn.monitor import Monitor
from trimtab.learn.presets import TrainConfig
from trimtab.learn.scenarios import Draw, draw_scenario
from trimtab.learn.sealed import write_whole

if TYPE_CHECKING:
    from trimtab.plan.executors import Executor

FILE = "evolution.safetensors"
SAVE_EVERY = 5  # generations

Report = Callable[..., None]


def polish(
    folder: Path,
    config: TrainConfig,
    start: NDArray[np.float64],
    report: Report,
    draw: Draw = draw_scenario,
    executor: Executor | None = None,
) -> Evolution:
    """Evolve from ``start`` (policy_size(hidden),), or go on with what the folder holds of this very run.

    Trials are run on ``executor`` (None: in threads here), which changes nothing about the outcome.
    ``report(done, total, latest)`` is called after every generation. Ctrl-C leaves the file of the last
    generations that were saved.
    """
    path, mark = folder / FILE, digest(config, start)
    evolution = _load(path, mark, config.hidden) or begin(start, config.hidden)
    total = config.evolve.generations
    if evolution.generation >= total:
        return evolution
    courses: list[Course] = lay_courses(config.evolve.pool, config.seed, draw)
    columns = ("generation", *EVOLUTION)
    with Monitor(folder, config, evolution.history, columns=columns, name="evolution") as monitor:
        while evolution.generation < total:
            report(evolution.generation, total, "")
            facts = generation(evolution, courses, config.evolve, config.seed, executor)
            monitor.log(evolution.generation, facts)
            report(evolution.generation, total, f"excess {facts['evolve/excess']:.3f}")
            if evolution.generation % SAVE_EVERY == 0 or evolution.generation == total:
                _save(evolution, path, mark)
    return evolution


def digest(config: TrainConfig, start: NDArray[np.float64]) -> str:
    """Of all that the outcome depends on."""
    told = json.dumps([vars(config.evolve), config.seed, config.hidden])
    return hashlib.sha256(told.encode() + start.tobytes()).hexdigest()[:12]


def _save(evolution: Evolution, path: Path, mark: str) -> None:
    from safetensors.numpy import save

    about = {"mark": mark, "generation": str(evolution.generation)}
    tensors = {"values": evolution.values, "first": evolution.first, "second": evolution.second}
    tensors["history"] = np.array([[facts[name] for name in EVOLUTION] for facts in evolution.history])
    write_whole(path, save(tensors, metadata=about))


def _load(path: Path, mark: str, hidden: int) -> Evolution | None:
    """None where there is no file of this very run, or it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("mark") != mark:
                return None
            evolution = Evolution(file.get_tensor("values"), hidden, int(about["generation"]))
            evolution.first, evolution.second = file.get_tensor("first"), file.get_tensor("second")
            past = file.get_tensor("history").tolist()
            evolution.history = [dict(zip(EVOLUTION, row, strict=True)) for row in past]
    except SafetensorError:
        return None
    return evolution
