"""Service levels as bounds on a whole run: ``ttft:p99<1s``, ``tpot:mean<40ms``, ``goodput>95%``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import Status
from trimtab.errors import TrimtabError, unknown
from trimtab.report.metrics import itl_centres_ms, meets_slo
from trimtab.result import Result
from trimtab.scenario import Scenario

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token, per request",
    "itl": "time between tokens",
    "e2e": "end-to-end latency",
    "queue": "time until first scheduled",
}
EXAMPLE = "ttft:p99<1s,tpot:p99<50ms,goodput>95%"
ATTAINED = 0.99  # of the requests, where a scenario's slo is all that is known
PATTERN = re.compile(
    r"(?P<metric>\w+)(:(?P<figure>\w+(\.\d+)?))?(?P<sign>[<>])=?(?P<value>[\d.]+)(?P<unit>\w*|%)"
)


@dataclass(frozen=True)
class Bound:
    """One bound. ``share`` is the quantile (0.99) or, of goodput, the share to reach; None bounds the mean.

    Each comes down to the mean of a quantity over requests that may not exceed ``target``: whether a
    request is over ``limit_s`` (allowed of 1 - share of them), or the seconds themselves.
    """

    metric: str
    share: float | None
    limit_s: float = math.nan

    @property
    def target(self) -> float:
        """The most that the mean may be."""
        return self.limit_s if self.share is None else 1.0 - self.share

    def __str__(self) -> str:
        if self.metric == "goodput":
            return f"goodput>{100 * (self.share or 0):g}%"
        figure = "mean" if self.share is None else f"p{100 * self.share:g}"
        return f"{self.metric}:{figure}<{1e3 * self.limit_s:g}ms"


def parse_bounds(text: str | None, scenario: Scenario) -> tuple[Bound, ...]:
    """The bounds in ``text``; without one, that 99 % of the requests meet the scenario's own slo.

    Raises
    ------
    TrimtabError
        for what cannot be read, and where neither the text nor the scenario bounds anything.
    """
    slos = [scenario.slo, *(one.slo for one in scenario.classes)]
    bounded = any(bound is not None for slo in slos if slo for bound in slo.model_dump().values())
    if text is None:
        if not bounded:
            raise TrimtabError(
                f"a capacity needs service levels: give --slo {EXAMPLE}, or the scenario's slo"
            )
        return (Bound("goodput", ATTAINED),)
    bounds = tuple(_parse(part.strip()) for part in text.split(",") if part.strip())
    if not bounds:
        raise TrimtabError(f"--slo is empty; for example {EXAMPLE}")
    if not bounded and any(bound.metric == "goodput" for bound in bounds):
        raise TrimtabError(
            "a bound on goodput needs the scenario's slo, which sets nothing; e.g. slo.ttft_ms"
        )
    return bounds


def _parse(text: str) -> Bound:
    found = PATTERN.fullmatch(text.replace(" ", ""))
    if not found:
        raise TrimtabError(f"cannot read the service level {text!r}; they look like {EXAMPLE}")
    metric, figure, unit = found["metric"], found["figure"], found["unit"]
    try:
        value = float(found["value"])
    except ValueError:
        raise TrimtabError(f"cannot read the number in {text!r}; for example {EXAMPLE}") from None
    if metric == "goodput":
        share = value / 100 if unit == "%" else value
        if found["sign"] != ">" or figure or unit not in ("", "%") or not 0 < share < 1:
            raise TrimtabError(f"{text!r}: goodput is a share of requests, as in goodput>95%")
        return Bound("goodput", share)
    if metric not in METRICS:
        raise unknown("service level", metric, [*METRICS, "goodput"])
    if found["sign"] != "<" or unit not in ("s", "ms") or value <= 0:
        raise TrimtabError(
            f"{text!r}: give the most that {metric} may be, in s or ms, as in {metric}:p99<500ms"
        )
    return Bound(metric, _share(figure or "p99", text), value * (1e-3 if unit == "ms" else 1.0))


def _share(figure: str, text: str) -> float | None:
    if figure == "mean":
        return None
    percent = figure[1:] if figure[:1] == "p" else ""
    try:
        share = round(float(percent) / 100, 12)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise TrimtabError(f"{text!r}: {figure!r} is neither mean nor a percentile such as p99")
    return share


def quantity(bound: Bound, figures: dict[str, float]) -> str:
    """What a trial found where the bound is, in words."""
    name = "goodput" if bound.metric == "goodput" else str(bound).partition("<")[0].replace(":", " ")
    value = figures[str(bound)]
    return (
        f"{name} is {100 * value:.3g} %" if bound.metric == "goodput" else f"{name} is {1e3 * value:.4g} ms"
    )


# --- measuring ----------------------------------------------------------------------------------


def seconds_of(table: NDArray[Any], metric: str) -> NDArray[np.float64]:
    """Seconds of each row of a request table (of TPOT: rows of two output tokens or more); inf where the
    request was not served."""
    if metric == "tpot":
        table = table[table["decode_tokens"] > 1]
    since, until = {
        "ttft": ("arrival", "first_token"),
        "tpot": ("first_token", "finished"),
        "e2e": ("arrival", "finished"),
        "queue": ("arrival", "scheduled"),
    }[metric]
    seconds = table[until] - table[since]
    if metric == "tpot":
        seconds = seconds / (table["decode_tokens"] - 1)
    return np.where(table["status"] == Status.FINISHED, seconds, np.inf)


def measure(result: Result, bounds: Sequence[Bound], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(bounds, 2): sum and number of what each bound limits, over the requests ``kept`` (N,).

    ITL comes from the run's histogram, which knows no single requests: of it all gaps count.
    """
    table = result.requests[kept]
    rows = []
    for bound in bounds:
        if bound.metric == "goodput":
            missed = ~meets_slo(result)[kept]
            rows.append((missed.sum(), len(missed)))
        elif bound.metric == "itl":
            centres, counts = itl_centres_ms() / 1e3, result.itl_counts
            quantity = centres if bound.share is None else (centres > bound.limit_s).astype(float)
            rows.append((counts @ quantity, counts.sum()))
        else:
            seconds = seconds_of(table, bound.metric)
            quantity = seconds if bound.share is None else (seconds > bound.limit_s).astype(float)
            rows.append((quantity.sum(), len(quantity)))
    return np.array(rows, dtype=np.float64).reshape(len(bounds), 2)


def figure_of(result: Result, bound: Bound, kept: NDArray[np.bool_]) -> float:
    """The bounded figure itself: seconds, or of goodput the share reached."""
    if bound.metric == "goodput":
        return float(meets_slo(result)[kept].mean())
    if bound.metric == "itl":
        centres, counts = itl_centres_ms() / 1e3, np.maximum(result.itl_counts, 0)
        if not counts.sum():
            return 0.0
        if bound.share is None:
            return float(counts @ centres / counts.sum())
        return float(centres[np.searchsorted(np.cumsum(counts), bound.share * counts.sum())])
    seconds = seconds_of(result.requests[kept], bound.metric)
    return float(seconds.mean()) if bound.share is None else order_statistic(seconds, bound.share)


def order_statistic(seconds: NDArray[np.float64], share: float) -> float:
    """The least value that ``share`` of them do not exceed; nan of none."""
    if not len(seconds):
        return math.nan
    at = min(max(math.ceil(share * len(seconds) - 1e-9), 1), len(seconds)) - 1
    return float(np.partition(seconds, at)[at])
