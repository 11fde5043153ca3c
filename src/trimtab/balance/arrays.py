"""Arrays in: what may be given as a load, a bias or scores, and the one error for what may not.

A load has any leading shape and experts last, ``(..., experts)``. It may be a NumPy array, a torch
tensor or a list; results come back in the library and on the device of what was given, in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from trimtab.errors import TrimtabError

Array = Any  # of any library that follows the array API standard; they share no type


def as_floats(values: Any, what: str, like: Array = None) -> tuple[Any, Array]:
    """(namespace, float64 array) of ``values``; with ``like``, in its library and on its device.

    float64, because counts of a large batch are exact in it and not in float32, so that a law gives the
    same bias whatever the type of the counts. May share memory with ``values``.
    """
    if hasattr(values, "detach"):  # a torch tensor: no gradient flows through a bias
        values = values.detach()
    try:
        if like is not None:
            xp = array_namespace(like)
            return xp, xp.asarray(values, dtype=xp.float64, device=device(like))
        if not is_array_api_obj(values):
            values = np.asarray(values)
        xp = array_namespace(values)
        return xp, xp.astype(values, xp.float64, copy=False)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrimtabError(f"{what} must be an array of numbers; given {type(values).__name__}") from error


def as_load(values: Any, like: Array = None, what: str = "load") -> tuple[Any, Array]:
    """(namespace, load (..., experts)): finite, not negative, no row all zero, shaped as ``like``."""
    xp, load = as_floats(values, what, like)
    if load.ndim == 0 or 0 in load.shape:
        raise TrimtabError(f"{what} needs the shape (..., experts); given {tuple(load.shape)}")
    if like is not None and load.shape != like.shape:
        raise TrimtabError(f"{what} has shape {tuple(load.shape)}; expected {tuple(like.shape)}")
    lowest = float(xp.min(load))
    if math.isnan(lowest) or lowest < 0:
        raise TrimtabError(f"{what} must be counts or shares of at least 0; its lowest entry is {lowest:g}")
    totals = xp.sum(load, axis=-1)
    if not math.isfinite(float(xp.max(totals))):
        raise TrimtabError(f"{what} must be finite; it has an infinite entry")
    if float(xp.min(totals)) <= 0:
        raise TrimtabError(f"{what} is all zero{where_zero(xp, totals)}; nothing was recorded there")
    return xp, load


def where_zero(xp: Any, totals: Array) -> str:
    """Which row of a load of several rows is empty, in words."""
    if totals.ndim == 0:
        return ""
    row = int(xp.argmin(xp.reshape(totals, (-1,))))
    return f" in row {tuple(int(i) for i in np.unravel_index(row, tuple(totals.shape)))}"


def as_target(target: Any, load: Array) -> Array | None:
    """Wanted shares, each positive, summing to 1 over experts; None stays None and means uniform.

    ``target`` is (experts,) or broadcasts to the shape of ``load``, in any unit (capacities will do).
    """
    if target is None:
        return None
    xp, wanted = as_floats(target, "target", load)
    fits = 0 < wanted.ndim <= load.ndim and all(
        given in (1, there)
        for given, there in zip(reversed(wanted.shape), reversed(load.shape), strict=False)
    )
    if not fits or wanted.shape[-1] != load.shape[-1]:
        raise TrimtabError(f"target has shape {tuple(wanted.shape)}; the load has {tuple(load.shape)}")
    if not (float(xp.min(wanted)) > 0 and math.isfinite(float(xp.max(wanted)))):
        raise TrimtabError("target must be positive and finite for every expert")
    return wanted / xp.sum(wanted, axis=-1, keepdims=True)


def as_bias(values: Any, what: str, like: Array = None) -> tuple[Any, Array]:
    """(namespace, float64 copy of a bias (..., experts)): finite; shaped as ``like`` where given."""
    xp, bias = as_floats(values, what, like)
    if bias.ndim == 0 or 0 in bias.shape:
        raise TrimtabError(f"{what} needs the shape (..., experts); given {tuple(bias.shape)}")
    if like is not None and bias.shape != like.shape:
        raise TrimtabError(f"{what} has shape {tuple(bias.shape)}; expected {tuple(like.shape)}")
    if not bool(xp.all(xp.isfinite(bias))):
        raise TrimtabError(f"{what} must be finite; it has NaN or infinite entries")
    return xp, xp.asarray(bias, copy=True)


def relative_load(load: Array, target: Array | None = None) -> Array:
    """Share over wanted share, (..., experts): 1 is as wanted. ``load`` and ``target`` as checked here."""
    xp = array_namespace(load)
    total = xp.sum(load, axis=-1, keepdims=True)
    if target is None:
        return load * (load.shape[-1] / total)
    return load / (total * target)


def at_least(xp: Any, array: Array, low: float) -> Array:
    """``array`` with nothing below ``low``; a fifth of the time of the standard's clip."""
    return xp.maximum(array, low)


def at_most(xp: Any, array: Array, high: float) -> Array:
    """``array`` with nothing above ``high``."""
    return xp.minimum(array, high)


def positive(value: float, what: str, *, zero: bool = False) -> float:
    """``value`` where it is a finite number above zero (or zero, where ``zero``)."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (value == 0 and not zero):
        raise TrimtabError(f"{what} must be a number {'of at least' if zero else 'above'} 0; given {value!r}")
    return float(value)
