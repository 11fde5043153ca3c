"""Fits a calibration to profile rows: constants of the roofline, then a surface per group of operators.

Each surface's residuals come from the regression that does best in cross-validation over shapes:
penalised splines per profiled key, a random forest (Vidur's way) or gradient boosting over key and grid.
All are evaluated at the knots of the surface, so that a calibration looks the same whichever won.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.exectime.calibration import Calibration
from trimtab.exectime.curves import Lattice, Surface, fit_spline
from trimtab.exectime.groups import GROUP_OF, GROUPS
from trimtab.exectime.kernels import Efficiency, Kernels
from trimtab.exectime.profile_schema import Profile

Array = NDArray[np.float64]
FOLDS = 3
SEED = 0
# Constants of the roofline that each group's rows determine.
CONSTANTS: dict[str, tuple[str, ...]] = {
    "matrix": ("compute", "memory", "blend", "launch_us"),
    "norm": ("norm",),
    "act": ("act",),
    "rope": ("rope",),
    "add": ("add", "element_us"),
    "prefill": ("prefill_compute", "prefill_us"),
    "decode": ("decode_memory", "decode_us"),
    "all_reduce": ("link", "collective_us"),
    "send_recv": ("send", "send_us"),
}
LARGEST = {
    "compute": 1.0,
    "memory": 1.0,
    "prefill_compute": 1.0,
    "decode_memory": 1.0,
    "add": 1.5,
    "blend": 8.0,
}


def fit_calibration(
    kernels: Kernels, rows: Profile, predictors: dict[str, str] | None = None, source: str = ""
) -> Calibration:
    """A calibration of ``kernels.device`` from ``rows``; its errors are left for others to measure.

    ``kernels`` must hold no calibration; its constants are where the search starts. ``predictors``
    names the regression per group; without it, cross-validation chooses.

    Raises
    ------
    TrimtabError
        without scikit-learn, when there is a choice to make.
    """
    operators = np.array([GROUP_OF[str(name)] for name in rows.words["operator"]])
    parts = {name: rows.where(operators == name) for name in GROUPS if (operators == name).any()}
    constants: dict[str, float] = {}
    for name, part in parts.items():
        found = fit_constants(name, kernels, part)
        constants |= found
        kernels = replace(kernels, efficiency=replace(kernels.efficiency, **found), lattices={})
    surfaces = {}
    for name, part in parts.items():
        chosen = (predictors or {}).get(name) or choose(name, kernels, part)
        surfaces[name] = fit_surface(name, kernels, part, chosen)
    models = sorted(set(rows.words["model"][rows.numbers["tp"] > 0]) - {kernels.node.name})
    return Calibration(
        device=kernels.device.name,
        source=source or rows.source,
        node=kernels.node.name,
        models=tuple(str(name) for name in models),
        efficiency=constants,
        surfaces=surfaces,
    )


def fit_constants(group: str, kernels: Kernels, rows: Profile) -> dict[str, float]:
    """The group's constants by a pattern search for the least mean absolute relative error."""
    names = CONSTANTS.get(group, ())
    if not names:
        return {}
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:4000]
    part = rows.where(np.sort(chosen))
    measured = part.numbers["median_ms"] / 1000

    def error(values: list[float]) -> float:
        efficiency: Efficiency = replace(kernels.efficiency, **dict(zip(names, values, strict=True)))
        guess = GROUPS[group].first_guess(group, replace(kernels, efficiency=efficiency, lattices={}), part)
        return float(np.mean(np.abs(guess / measured - 1)))

    best = [float(getattr(kernels.efficiency, name)) for name in names]
    least = error(best)
    step = 1.3
    while step > 1.004:
        moved = False
        for place, name in enumerate(names):
            for factor in (step, 1 / step):
                tried = list(best)
                tried[place] = min(tried[place] * factor, LARGEST.get(name, np.inf))
                if (value := error(tried)) < least:
                    best, least, moved = tried, value, True
        if not moved:
            step = step**0.5
    return dict(zip(names, best, strict=True))


# --- surfaces -----------------------------------------------------------------------------------


def fit_surface(group: str, kernels: Kernels, rows: Profile, predictor: str) -> Surface:
    """The surface of one group, by the named regression."""
    what = GROUPS[group]
    keys, grid = what.keys_of(rows), what.grid_of(rows)
    residual = np.log(rows.numbers["median_ms"] / 1000 / what.first_guess(group, kernels, rows))
    profiled, owner = np.unique(keys, axis=0, return_inverse=True)
    knots = what.knots_of(grid)
    filled = PREDICTORS[predictor](profiled, owner.ravel(), knots, grid, residual)
    return Surface(profiled, knots, filled, predictor)


def _spline(keys: Array, owner: NDArray[np.int64], knots: tuple[Array, ...], grid: Array, y: Array) -> Array:
    return np.stack([fit_spline(knots, grid[owner == key], y[owner == key]) for key in range(len(keys))])


def _forest(keys: Array, owner: NDArray[np.int64], knots: tuple[Array, ...], grid: Array, y: Array) -> Array:
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(n_estimators=60, min_samples_leaf=2, random_state=SEED)
    return _regress(forest, keys, owner, knots, grid, y)


def _boosting(
    keys: Array, owner: NDArray[np.int64], knots: tuple[Array, ...], grid: Array, y: Array
) -> Array:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    boosting = HistGradientBoostingRegressor(max_iter=100, learning_rate=0.2, random_state=SEED)
    # Its threads wait for each other in spin loops: on a busy machine one is many times faster.
    with threadpool_limits(limits=1):
        return _regress(boosting, keys, owner, knots, grid, y)


def _regress(
    model: object, keys: Array, owner: NDArray[np.int64], knots: tuple[Array, ...], grid: Array, y: Array
) -> Array:
    """Fit on (log key, grid), answer at every key's knots."""
    model.fit(np.hstack([np.log(keys)[owner], grid]), y)  # type: ignore[attr-defined]
    mesh = np.column_stack([part.ravel() for part in np.meshgrid(*knots, indexing="ij")])
    points = np.hstack([np.repeat(np.log(keys), len(mesh), axis=0), np.tile(mesh, (len(keys), 1))])
    answers = model.predict(points)  # type: ignore[attr-defined]
    return np.asarray(answers.reshape(len(keys), *(len(axis) for axis in knots)), dtype=np.float64)


PREDICTORS: dict[str, Callable[..., Array]] = {"spline": _spline, "forest": _forest, "boosting": _boosting}


def choose(group: str, kernels: Kernels, rows: Profile) -> str:
    """The predictor with the least cross-validated error; folds are shapes of the grid, not rows."""
    folds = shape_folds(GROUPS[group].grid_of(rows), FOLDS)
    if len(np.unique(folds)) < FOLDS or len(rows) < 10 * FOLDS:
        return "spline"
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise TrimtabError(
            "choosing between regressions needs scikit-learn; install it with: pip install 'trimtab[forest]'"
        ) from None
    errors = {}
    for name in PREDICTORS:
        found = []
        for fold in range(FOLDS):
            surface = fit_surface(group, kernels, rows.where(folds != fold), name)
            left = rows.where(folds == fold)
            seconds = predict(group, surface, kernels, left)
            found.append(np.abs(seconds / (left.numbers["median_ms"] / 1000) - 1))
        errors[name] = float(np.concatenate(found).mean())
    return min(errors, key=lambda name: errors[name])


def predict(group: str, surface: Surface | None, kernels: Kernels, rows: Profile) -> Array:
    """Seconds (R,) of profile rows; by constants alone without a surface."""
    what = GROUPS[group]
    guess = what.first_guess(group, kernels, rows)
    if surface is None:
        return guess
    lattice = Lattice(surface, kernels.base(group))
    keys, grid = what.keys_of(rows), what.grid_of(rows)
    seconds = np.empty(len(rows))
    for key in np.unique(keys, axis=0):
        mine = (keys == key).all(axis=1)
        columns = [grid[mine, dim] for dim in range(grid.shape[1])]
        seconds[mine] = lattice.seconds(tuple(key), columns)
        if group == "grouped":
            own = kernels.base(group)([np.float64(size) for size in key], columns)  # type: ignore[misc]
            seconds[mine] *= guess[mine] / own
    return seconds


def shape_folds(shapes: Array, folds: int) -> NDArray[np.int64]:
    """A fold (R,) for every row that depends on its shape (R, d) alone: equal shapes fall together."""
    mixed = np.zeros(len(shapes), dtype=np.uint64)
    for dim in range(shapes.shape[1]):
        mixed = mixed * np.uint64(6364136223846793005) + np.rint(shapes[:, dim] * 8).astype(np.uint64)
        mixed ^= mixed >> np.uint64(29)
        mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
    return np.asarray(mixed % np.uint64(folds), dtype=np.int64)
