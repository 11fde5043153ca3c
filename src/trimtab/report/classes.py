"""What each class of requests asked for and what it got: a row per class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import Status
from trimtab.report.metrics import meets_slo, served_share, span
from trimtab.result import Result

UNKNOWN = float("nan")


def class_rows(result: Result) -> dict[str, NDArray[Any]]:
    """One array of length C per column: what a class asked, how it ended, latencies (ms), goodput.

    ``served_share`` is tokens of completed requests / tokens asked for; ``goodput`` completed requests
    inside the class's SLO per second of the run.
    """
    table = result.requests
    good = meets_slo(result)
    start, end = span(result)
    rows = []
    for index, one in enumerate(result.scenario.classes):
        mine = table["klass"] == index
        done = mine & (table["status"] == Status.FINISHED)
        ttft = 1e3 * (table["first_token"][done] - table["arrival"][done])
        total = 1e3 * (table["finished"][done] - table["arrival"][done])
        rows.append(
            {
                "class": one.name,
                "requests": int(mine.sum()),
                "completed": int(done.sum()),
                "crashed": int((table["status"][mine] == Status.FAILED).sum()),
                "aborted": int((table["status"][mine] == Status.ABORTED).sum()),
                "rejected": int((table["status"][mine] == Status.REJECTED).sum()),
                "served_share": served_share(table, mine),
                "p50_ttft_ms": _quantile(ttft, 0.5),
                "p99_ttft_ms": _quantile(ttft, 0.99),
                "p99_e2el_ms": _quantile(total, 0.99),
                "slo_attainment": float(good[mine].mean()) if mine.any() else UNKNOWN,
                "goodput": float(good[mine].sum()) / (end - start) if end > start else UNKNOWN,
            }
        )
    names = rows[0] if rows else {}
    return {name: np.array([row[name] for row in rows]) for name in names}


def _quantile(values: NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else UNKNOWN
