"""Learned efficiency: how measured times differ from the roofline, as surfaces that interpolate.

A *key* is what a model fixes of an operator (inputs and outputs of a matrix), the *grid* what a batch
varies (rows; or sequences and cached tokens). For every profiled key a surface keeps the logarithm of
measured over roofline time at the knots of the grid. Keys in between take a mean of near ones, weighted
as in simple kriging with an exponential correlation over the logarithms of the key; far away from
everything only the mean of all keys is left.

Times come from a *lattice* of keys on which no time is ever shorter than that of a smaller key or a
smaller batch; in between everything is interpolated linearly, which keeps that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Seconds of key columns (Q, 1...) on grid columns (1, G...): an analytic first guess.
Base = Callable[[Sequence[Array], Sequence[Array]], Array]

REACH = 2.0  # correlation of two keys falls to 1/e over this distance in their logarithms
NUGGET = 0.002  # share of a key's residual that is noise of the measurement
LATTICE_STEP = 2**0.25  # of keys, beside the profiled ones
LATTICE_ENDS = (2.0**4, 2.0**19)


@dataclass(frozen=True)
class Surface:
    """keys (K, d); knots: one increasing array per grid axis; residual (K, G1[, G2]) log(measured/base).

    ``predictor`` names the regression that filled the residuals.
    """

    keys: Array
    knots: tuple[Array, ...]
    residual: Array
    predictor: str = "spline"

    def residual_at(self, keys: Array) -> Array:
        """(Q, G...) residuals of any keys (Q, d)."""
        flat = self.residual.reshape(len(self.keys), -1)
        mean = flat.mean(axis=0)
        own = _correlation(self.keys, self.keys) + NUGGET * np.eye(len(self.keys))
        weights = np.linalg.solve(own, _correlation(self.keys, keys)).T
        return np.asarray((mean + weights @ (flat - mean)).reshape(len(keys), *self.residual.shape[1:]))


def _correlation(left: Array, right: Array) -> Array:
    apart = np.log(left)[:, None, :] - np.log(right)[None, :, :]
    return np.asarray(np.exp(-np.sqrt((apart**2).sum(axis=2)) / REACH))


class Lattice:
    """Monotone seconds over keys and grid, from a surface and the roofline that it corrects."""

    def __init__(self, surface: Surface, base: Base):
        self.surface, self.base = surface, base
        self.axes = [_axis(surface.keys[:, dim]) for dim in range(surface.keys.shape[1])]
        mesh = np.meshgrid(*self.axes, indexing="ij")
        keys = np.column_stack([part.ravel() for part in mesh])
        seconds = self._base(keys, surface.knots) * np.exp(surface.residual_at(keys))
        shape = (*mesh[0].shape, *(len(knots) for knots in surface.knots))
        self.log_seconds = np.log(monotone(seconds.reshape(shape)))

    def seconds(self, key: Sequence[float], grid: Sequence[Array]) -> Array:
        """Seconds of one key on grid columns that broadcast against each other."""
        ends = [(axis[0], axis[-1]) for axis in self.axes]
        inside = [min(max(size, low), high) for size, (low, high) in zip(key, ends, strict=True)]
        curve = np.exp(self._between_keys(inside))
        full = np.broadcast_arrays(*[np.asarray(column, dtype=np.float64) for column in grid])
        held = [
            np.clip(column, knots[0], knots[-1])
            for column, knots in zip(full, self.surface.knots, strict=True)
        ]
        # Beyond the ends the roofline goes on, times what it was off there.
        beyond = self.base([np.float64(size) for size in key], full) / self.base(  # type: ignore[misc]
            [np.float64(size) for size in inside],  # type: ignore[misc]
            held,
        )
        return np.asarray(interpolate(self.surface.knots, curve, held) * beyond)

    def _base(self, keys: Array, knots: tuple[Array, ...]) -> Array:
        columns = [keys[:, dim].reshape(-1, *([1] * len(knots))) for dim in range(keys.shape[1])]
        grid = np.meshgrid(*knots, indexing="ij")
        return np.asarray(self.base(columns, [part[None] for part in grid]))

    def _between_keys(self, key: list[float]) -> Array:
        values = self.log_seconds
        for axis, size in zip(self.axes, key, strict=True):
            low = min(max(int(np.searchsorted(axis, size, side="right")) - 1, 0), len(axis) - 2)
            share = np.log(size / axis[low]) / np.log(axis[low + 1] / axis[low])
            values = (1 - share) * values[low] + share * values[low + 1]
        return values


def _axis(profiled: Array) -> Array:
    """The profiled sizes and a fine geometric grid around them."""
    low, high = min(LATTICE_ENDS[0], profiled.min()), max(LATTICE_ENDS[1], profiled.max())
    steps = int(np.ceil(np.log(high / low) / np.log(LATTICE_STEP)))
    return np.unique(np.concatenate([np.geomspace(low, high, steps + 1), profiled]))


def monotone(values: Array) -> Array:
    """The geometric mean of the smallest non-decreasing array above and the largest one below, along
    every axis: itself non-decreasing, and ``values`` where they already are."""
    above, below = np.array(values), np.array(values)
    for axis in range(values.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return np.asarray(np.sqrt(above * below))


def interpolate(knots: tuple[Array, ...], values: Array, at: Sequence[Array]) -> Array:
    """Linear between knots on one or two axes; ``at`` must lie inside."""
    if len(knots) == 1:
        return np.interp(at[0], knots[0], values)
    low, share = zip(*[_cell(axis, column) for axis, column in zip(knots, at, strict=True)], strict=True)
    (row, column), (down, right) = low, share
    first = values[row, column] * (1 - right) + values[row, column + 1] * right
    second = values[row + 1, column] * (1 - right) + values[row + 1, column + 1] * right
    return np.asarray(first * (1 - down) + second * down)


def _cell(axis: Array, at: Array) -> tuple[NDArray[np.int64], Array]:
    low = np.clip(np.searchsorted(axis, at, side="right") - 1, 0, len(axis) - 2)
    return low, (at - axis[low]) / (axis[low + 1] - axis[low])


# --- fitting ------------------------------------------------------------------------------------


def fit_spline(knots: tuple[Array, ...], grid: Array, residual: Array, stiffness: float = 0.1) -> Array:
    """Residuals at the knots (G...) of one key from rows: grid (R, g), residual (R,).

    Penalised least squares: linear pieces, with a price on steps between neighbouring knots.
    """
    weights = np.ones((len(grid), 1))
    for dim, axis in enumerate(knots):
        held = np.clip(grid[:, dim], axis[0], axis[-1])
        low, share = _cell(axis, held)
        part = np.zeros((len(grid), len(axis)))
        part[np.arange(len(grid)), low] = 1 - share
        part[np.arange(len(grid)), low + 1] += share
        weights = (weights[:, :, None] * part[:, None, :]).reshape(len(grid), -1)
    sizes = [len(axis) for axis in knots]
    normal = weights.T @ weights + 1e-9 * np.eye(weights.shape[1])
    for dim in range(len(sizes)):
        steps = np.diff(np.eye(sizes[dim]), axis=0)
        others = [np.eye(size) for size in sizes]
        others[dim] = steps.T @ steps
        penalty: Array = others[0]
        for factor in others[1:]:
            penalty = np.asarray(np.kron(penalty, factor), dtype=np.float64)
        normal += stiffness * penalty
    return np.asarray(np.linalg.solve(normal, weights.T @ residual).reshape(sizes))
