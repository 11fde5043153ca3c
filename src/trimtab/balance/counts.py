"""Counts over processes: all layers of a model in one all-reduce.

This package knows no framework; the caller says how to sum. With torch.distributed:

    reduce = lambda buffer: dist.all_reduce(torch.from_numpy(buffer))   # NumPy counts, gloo
    reduce = dist.all_reduce                                            # tensors, gloo or nccl
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

from trimtab.balance.arrays import Array
from trimtab.errors import TrimtabError

# Sums an array over all processes: in place (the result is then ignored) or as what it returns.
Reduce = Callable[[Array], Any]


def reduced(counts: Array, reduce: Reduce | None) -> Array:
    """``counts`` summed over processes; as they are where ``reduce`` is None."""
    if reduce is None:
        return counts
    xp = array_namespace(counts)
    buffer = xp.asarray(counts, copy=True)
    result = reduce(buffer)
    # In-place reductions return None, or (asynchronous ones) a handle: the buffer has the sums.
    summed = result if hasattr(result, "shape") else buffer
    if tuple(summed.shape) != tuple(counts.shape):
        raise TrimtabError(f"reduce changed the shape {tuple(counts.shape)} to {tuple(summed.shape)}")
    return summed


def reduce_counts(layers: Sequence[Array], reduce: Reduce) -> list[Array]:
    """Loads of several layers, each (..., experts) of its own shape, summed over processes at once.

    One call of ``reduce`` on one flat float64 buffer, whatever the number of layers: the time is that of
    a single small message. Every process must give the same shapes in the same order.
    """
    if not layers:
        raise TrimtabError("reduce_counts needs at least one layer; given none")
    xp = array_namespace(*layers)
    flat = [xp.reshape(xp.astype(layer, xp.float64), (-1,)) for layer in layers]
    buffer = reduced(xp.concat(flat), reduce)
    summed, offset = [], 0
    for layer, part in zip(layers, flat, strict=True):
        end = offset + part.shape[0]
        summed.append(xp.reshape(buffer[offset:end], layer.shape))
        offset = end
    return summed
