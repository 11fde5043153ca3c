"""Methods against each other on real data: the same halves and the same initial weights for each seed.

Runs are kept one by one, so that an interrupted comparison goes on where it was. Which modality is dominant
is what the plain gate says: the one with most weight, mean over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.fusion.measures import evaluate, mean_of, paired
from trimtab.fusion.methods import RIVALS, get_method
from trimtab.fusion.train import Recipe, begin, fit
from trimtab.fusion.views import Views
from trimtab.learn.sealed import write_whole
from trimtab.report.bootstrap import Interval

PLAIN, OURS = "plain", "balanced-hide"
DEFAULT_METHODS = (PLAIN, "balanced", OURS, "literal", *RIVALS)
SETTINGS = ("conservative", "balanced", "aggressive")  # of the first sketch; and plain, which is off
RATES = (0.005, 0.01, 0.02, 0.05)
RATIOS = (0.10, 0.15, 0.20, 0.25)
LONG_METHODS = (PLAIN, "literal", "balanced", OURS)
MARKER = "comparison.json"
FORMAT = 1
Json = dict[str, Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Plan:
    """What is compared. ``grid_seeds`` 0: no grid of rates and ratios; ``long_epochs`` 0: no long run."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    seeds: int = 10
    epochs: int = 30
    grid_seeds: int = 2
    long_epochs: int = 500
    batches_per_epoch: int = 20

    def __post_init__(self) -> None:
        for method in self.methods:
            get_method(method)
        if PLAIN not in self.methods:
            raise TrimtabError("the methods must include plain, which the others are compared with")
        if self.seeds < 1 or self.epochs < 1 or self.grid_seeds < 0 or self.long_epochs < 0:
            raise TrimtabError("seeds and epochs must be 1 or more, a grid's seeds and long epochs 0 or more")

    def batch_size(self, data: Views) -> int:
        """About ``batches_per_epoch`` batches, so that small data sets see as many steps as large ones."""
        train = len(data.split["train"]) if data.split else len(data.labels) // 2
        return max(4, min(256, round(train / self.batches_per_epoch)))


class Store:
    """Finished runs in ``folder``, one JSON file each; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def run(self, data: Views, recipe: Recipe, every: int = 0) -> Json:
        """Figures of one training, from the file of an earlier one where there is one.

        ``every``: keep each so many epochs' row of the guidance analysis.
        """
        key = {"format": FORMAT, "data": data.about(), "recipe": asdict(recipe), "every": every}
        recipe_name = f"{recipe.method}-{recipe.epochs}-{recipe.update_rate}-{recipe.ratio}-{recipe.seed}"
        path = None if self.folder is None else self.folder / f"{data.name}-{recipe_name}.json"
        if path is not None and path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                kept = {}
            if kept.get("key") == json.loads(json.dumps(key)):
                return dict(kept["figures"])
        training = begin(data, recipe)
        fit(training)
        figures = evaluate(training.model, training.test, data.task)
        last = training.history[-1]
        figures |= {name: last[name] for name in ("bias", "gradient_norms", "alarm", "target")}
        figures["history"] = training.history[::every] if every else []
        if path is not None:
            write_whole(path, json.dumps({"key": key, "figures": figures}).encode())
        return figures


def compare(sources: Sequence[Views], plan: Plan, store: Store, progress: Progress = lambda *_: None) -> Json:
    """All runs of ``plan`` on each data set, and of the first one the grid and the long run."""
    grid = len(RATES) * len(RATIOS) * plan.grid_seeds + 3 * plan.grid_seeds
    long = len(LONG_METHODS) if plan.long_epochs else 0
    total, done = len(sources) * len(plan.methods) * plan.seeds + grid + long, 0

    def run(data: Views, recipe: Recipe, every: int = 0) -> Json:
        nonlocal done
        progress(done, total, f"{data.name}, {recipe.method}, seed {recipe.seed}")
        figures = store.run(data, recipe, every)
        done += 1
        return figures

    found = [one_data_set(data, plan, run) for data in sources]
    first, dominant = sources[0], found[0]["dominant"]
    return {
        "plan": asdict(plan),
        "data": found,
        "grid": grid_of(first, plan, dominant, run) if plan.grid_seeds else None,
        "long": long_of(first, plan, dominant, run) if plan.long_epochs else None,
    }


Run = Callable[..., Json]


def one_data_set(data: Views, plan: Plan, run: Run) -> Json:
    """Figures of each method over seeds, and what they say."""

    def recipe(method: str, seed: int, dominant: str | None) -> Recipe:
        return Recipe(method, plan.epochs, plan.batch_size(data), seed=seed, dominant=dominant)

    runs = {PLAIN: [run(data, recipe(PLAIN, seed, None)) for seed in range(plan.seeds)]}
    leading = np.mean([each["weights"] for each in runs[PLAIN]], axis=0)
    dominant = data.modalities[int(leading.argmax())]
    for method in plan.methods:
        if method != PLAIN and supports(method, data):
            runs[method] = [run(data, recipe(method, seed, dominant)) for seed in range(plan.seeds)]
    ordered = {method: runs[method] for method in plan.methods if method in runs}
    return {
        "name": data.name,
        "source": data.source,
        "samples": len(data.labels),
        "modalities": data.modalities,
        "dominant": dominant,
        "methods": {
            method: summed_up(found, ordered[PLAIN], data, dominant) for method, found in ordered.items()
        },
    }


def supports(method: str, data: Views) -> bool:
    """OGM-GE and AGM are defined for classes."""
    chosen = get_method(method)
    return data.task == "classes" or not (chosen.ogm_alpha or chosen.agm_alpha)


def summed_up(runs: list[Json], plain: list[Json], data: Views, dominant: str) -> Json:
    """Means over seeds with intervals; differences to the plain gate are paired by seed."""
    at = data.modalities.index(dominant)

    def column(name: str, of: list[Json]) -> Any:
        return np.array([each[name] for each in of], np.float64)

    without, accuracy = column("without", runs)[:, at], column("accuracy", runs)
    weights = column("weights", runs)
    target = runs[0]["target"]
    return {
        "accuracy": mean_of(accuracy),
        "accuracy_difference": paired(accuracy, column("accuracy", plain)),
        "without_dominant": mean_of(without),
        "without_dominant_difference": paired(without, column("without", plain)[:, at]),
        "weights": [mean_of(weights[:, index]) for index in range(len(data.modalities))],
        "weight_error": float(np.abs(weights.mean(0) - target).max()) if target else None,
        "weight_variance": float(weights.mean(0).var()),
        "without": column("without", runs).mean(0).tolist(),
        "alone": column("alone", runs).mean(0).tolist(),
        "shapley_shares": column("shapley_shares", runs).mean(0).tolist(),
        "gradient_norms": column("gradient_norms", runs).mean(0).tolist(),
        "bias": column("bias", runs).mean(0).tolist(),
        "dominant_counts": column("dominant_counts", runs).mean(0).tolist(),
        "alarms": sum(bool(each["alarm"]) for each in runs),
        "weight_spread": column("weight_spread", runs).mean(0).tolist(),
    }


def grid_of(data: Views, plan: Plan, dominant: str, run: Run) -> Json:
    """The first sketch's settings, and its rates x ratios, means over ``grid_seeds`` seeds."""

    def cell(method: str, rate: float | None, ratio: float | None) -> Json:
        recipes = [
            Recipe(method, plan.epochs, plan.batch_size(data), 1e-3, seed, dominant, rate, ratio)
            for seed in range(plan.grid_seeds)
        ]
        runs = [run(data, recipe) for recipe in recipes]
        at = data.modalities.index(dominant)
        weights = np.mean([each["weights"] for each in runs], axis=0)
        return {
            "method": method, "rate": rate, "ratio": ratio,
            "accuracy": float(np.mean([each["accuracy"] for each in runs])),
            "without_dominant": float(np.mean([each["without"][at] for each in runs])),
            "weights": weights.tolist(),
            "weight_error": float(np.abs(weights - runs[0]["target"]).max()),
            "weight_variance": float(weights.var()),
        }  # fmt: skip

    ratios = [ratio for ratio in RATIOS if ratio <= 1 / len(data.views)]
    return {
        "data": data.name,
        "settings": [cell(method, None, None) for method in SETTINGS],
        "cells": [cell("balanced", rate, ratio) for rate in RATES for ratio in ratios],
    }


def long_of(data: Views, plan: Plan, dominant: str, run: Run) -> Json:
    """Weights and bias over many epochs, seed 0."""
    every = max(1, plan.long_epochs // 100)
    lines = {}
    for method in LONG_METHODS:
        recipe = Recipe(method, plan.long_epochs, plan.batch_size(data), dominant=dominant)
        rows = run(data, recipe, every)["history"]
        names = ("epoch", "test_weights", "mean_weights", "bias", "accuracy")
        lines[method] = {name: [row[name] for row in rows] for name in names}
    return {"data": data.name, "dominant": dominant, "modalities": data.modalities, "methods": lines}


def best_rival(found: Json) -> tuple[str, Interval]:
    """The rival (not ours) with the highest accuracy without the dominant modality."""
    rivals = {name: each for name, each in found["methods"].items() if name in RIVALS}
    if not rivals:
        raise TrimtabError(f"no rival was run on {found['name']}; allowed: {', '.join(RIVALS)}")
    name = max(rivals, key=lambda each: float(rivals[each]["without_dominant"][0]))
    return name, Interval(*rivals[name]["without_dominant"])
