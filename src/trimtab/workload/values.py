"""Columns of text or numbers, as Arrow arrays, turned into checked token counts, times and sessions."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import NONE

MOST_TOKENS = 2**30  # of one prompt or output: the sum of two must fit 32 bits


class BadValue(Exception):
    """A value of the block at hand that cannot be used: its row there, its column, and why."""

    def __init__(self, row: int, column: str, reason: str):
        super().__init__(row, column, reason)
        self.row, self.column, self.reason = row, column, reason


def tokens(values: Any, column: str) -> NDArray[np.int32]:
    """Whole numbers of tokens, 0 or more.

    Raises
    ------
    BadValue
        for the first value that is none.
    """
    numbers = _numbers(values, column)
    problems = (
        (numbers < 0, "is negative"),
        (numbers != np.floor(numbers), "is not a whole number of tokens"),
        (numbers > MOST_TOKENS, f"is more than {MOST_TOKENS:,} tokens"),
    )
    for bad, problem in problems:
        if bad.any():
            _refuse(values, int(np.argmax(bad)), column, problem)
    return numbers.astype(np.int32)


class Clock:
    """Arrival times block by block: numbers as they stand, date-times from the first of all.

    ``sorted_only`` makes a negative time and one below its predecessor an error; ``from_first``
    counts numbers from the first as well.
    """

    def __init__(self, column: str, sorted_only: bool, from_first: bool):
        self.column, self.sorted_only, self.from_first = column, sorted_only, from_first
        self.kind: Any = None  # Arrow type of date-times, "number", or None before the first block
        self.start: Any = 0  # the first time: ns since 1970, or s
        self.last = -np.inf

    def seconds(self, values: Any) -> NDArray[np.float64]:
        """Times of the next block in s.

        Raises
        ------
        BadValue
            for the first time that is none, that is negative or, if that matters, too early.
        """
        if len(values) == 0:
            return np.empty(0)
        if self.kind is None:
            self.kind = _time_kind(values[0])
            if self.kind != "number":
                self.start = _cast(values[:1], self.kind, self.column, "a date-time")[0]
            elif self.from_first:
                self.start = _numbers(values[:1], self.column)[0]
        if self.kind == "number":
            times = _numbers(values, self.column)
            if (times < 0).any() and self.sorted_only:
                _refuse(values, int(np.argmax(times < 0)), self.column, "is negative")
            times = times - self.start
        else:
            times = (_cast(values, self.kind, self.column, "a date-time") - self.start) / 1e9
        if self.sorted_only:
            early = times < np.concatenate([[self.last], times[:-1]])
            if early.any():
                _refuse(values, int(np.argmax(early)), self.column, "is earlier than the row before")
            self.last = times[-1]
        return np.asarray(times, np.float64)


def numbered(blocks: list[Any]) -> NDArray[np.int32]:
    """Session labels as numbers from 0 in order of appearance; NONE for empty ones."""
    import pyarrow
    import pyarrow.compute

    labels = pyarrow.chunked_array(blocks).cast(pyarrow.string())
    known = pyarrow.compute.unique(labels)
    known = known.filter(pyarrow.compute.not_equal(known, ""))  # drops null as well
    numbers = pyarrow.compute.index_in(labels, known).fill_null(NONE).to_numpy()
    return np.asarray(numbers, np.int32)


def _numbers(values: Any, column: str) -> NDArray[np.float64]:
    """Finite numbers; NaN, infinity and nothing are none."""
    import pyarrow

    numbers = _cast(values, pyarrow.float64(), column, "a number")
    if not np.isfinite(numbers).all():
        _refuse(values, int(np.argmin(np.isfinite(numbers))), column, "is not a number")
    return numbers


def _cast(values: Any, kind: Any, column: str, wanted: str) -> NDArray[Any]:
    """The values as an Arrow type, date-times as whole nanoseconds since 1970."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_string(values.type):
        values = pyarrow.compute.utf8_trim_whitespace(values)
    try:
        made = values.cast(kind)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        _refuse(values, _first_uncastable(values, kind), column, f"is not {wanted}")
    if made.null_count:
        _refuse(
            values, int(np.argmax(made.is_null().to_numpy(zero_copy_only=False))), column, f"is not {wanted}"
        )
    if pyarrow.types.is_timestamp(kind):
        made = made.cast(pyarrow.int64())
    return np.asarray(made.to_numpy(zero_copy_only=False))


def _first_uncastable(values: Any, kind: Any) -> int:
    """Halving: the first value that does not cast is in the first half, or in the second."""
    start, stop = 0, len(values)
    while stop - start > 1:
        middle = (start + stop) // 2
        if _casts(values[start:middle], kind):
            start = middle
        else:
            stop = middle
    return start


def _casts(values: Any, kind: Any) -> bool:
    import pyarrow

    try:
        values.cast(kind)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        return False
    return True


def _time_kind(first: Any) -> Any:
    """How times are written, judged by the first one."""
    import pyarrow

    if pyarrow.types.is_timestamp(first.type):
        return pyarrow.timestamp("ns", tz=first.type.tz)
    sample = pyarrow.array([first.as_py()])
    if pyarrow.types.is_string(sample.type):
        for kind in (pyarrow.timestamp("ns"), pyarrow.timestamp("ns", tz="UTC")):
            if _casts(sample, kind):
                return kind
    return "number"


def _refuse(values: Any, row: int, column: str, problem: str) -> NoReturn:
    value = values[row].as_py()
    shown = "nothing" if value is None or value == "" else repr(value)
    raise BadValue(row, column, f"{shown} {problem}")
