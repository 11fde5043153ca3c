"""How closely the engine repeats reference runs of Vidur, request by request.

``python benchmarks/vidur_agreement.py [CASE_DIR ...] [--tables DIR]``

A case folder holds ``config.json`` (Vidur's own), ``requests.csv`` (arrivals, lengths, the replica of
each request, its times) and ``summary.json`` (percentiles, number of batches, which operator tables).
Same arrivals, lengths, assignment and tables: what then differs is scheduling and event logic. The
case goes the way a user's would: Vidur's configuration becomes a scenario, the scenario is simulated.
Without arguments: every case under ``$TRIMTAB_SHARED/data/vidur``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.result import Result
from trimtab.simulation import simulate
from trimtab.vidur import from_vidur

SHARED = Path(os.environ.get("TRIMTAB_SHARED", Path(__file__).parents[2] / "shared"))
PERCENTILES = (50, 90, 99)
COLUMNS = ("replica", "prefill_completed_at", "completed_at", "num_restarts")
KEYS = ("num_batches", "num_blocks", "predictor_tables", "ttft_s", "e2e_s", "tpot_s", "scheduling_delay_s")
Times = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """What Vidur wrote down: columns of requests.csv, and summary.json."""

    folder: Path
    columns: dict[str, Times]  # (N,) each; times in s
    summary: dict[str, Any]


@dataclass(frozen=True)
class Agreement:
    """One case. Errors in s; percentile errors relative to Vidur's figure."""

    name: str
    requests: int
    batches: int
    vidur_batches: int
    first_token_error: float
    finished_error: float
    restarts_differ: int
    percentile_errors: dict[str, float]
    seconds: float
    vidur_seconds: float

    @property
    def time_error(self) -> float:
        return max(self.first_token_error, self.finished_error)


def read_reference(folder: Path) -> Reference:
    """The case in ``folder``; a file that is missing or holds something else is an error of one line."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        with (folder / "requests.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
    except OSError as error:
        raise TrimtabError(
            f"{error.filename}: {error.strerror}; a case holds config.json, requests.csv and summary.json"
        ) from None
    except (ValueError, KeyError) as error:
        raise TrimtabError(f"{folder}: not a reference case of Vidur ({error})") from None
    missing = [key for key in KEYS if key not in summary]
    if missing or not rows:
        raise TrimtabError(
            f"{folder}: summary.json lacks {', '.join(missing)}" if missing else f"{folder}: no requests"
        )
    return Reference(folder, columns, summary)


def run_case(reference: Reference, tables: Path) -> Result:
    """Simulate the case: Vidur's configuration, with traffic, routing and times from the reference."""
    scenario = from_vidur(str(reference.folder / "config.json")).scenario
    scenario["workload"] = {
        "arrivals": {"kind": "trace"},
        "lengths": {"kind": "trace"},
        "trace": {"path": str(reference.folder / "requests.csv"), "format": "vidur"},
    }
    assignment = reference.columns["replica"].astype(int).tolist()
    scenario["router"] = {"name": "replay", "assignment": assignment}
    for group in scenario["replicas"]:
        path = tables / reference.summary["predictor_tables"]
        group["exectime"] = {"kind": "tables", "path": str(path)}
        group["scheduler"]["num_blocks"] = int(reference.summary["num_blocks"])
    return simulate(scenario, max_iterations=0)


def latencies(
    arrival: Times, scheduled: Times, first: Times, finished: Times, decode: Times
) -> dict[str, Times]:
    """The latencies of summary.json; TPOT divides by the decode tokens at arrival."""
    return {
        "ttft_s": first - arrival,
        "e2e_s": finished - arrival,
        "tpot_s": (finished - first) / decode,
        "scheduling_delay_s": scheduled - arrival,
    }


def percentile_errors(reference: Reference, result: Result) -> dict[str, float]:
    """Per latency the largest error over p50, p90, p99 and mean, relative to Vidur's (of 0: in s)."""
    ours = result.requests
    found = latencies(
        ours["arrival"], ours["scheduled"], ours["first_token"], ours["finished"], ours["decode_tokens"]
    )
    errors = {}
    for name, values in found.items():
        figures = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES} | {
            "mean": float(values.mean())
        }
        stated = reference.summary[name]
        errors[name] = max(abs(figures[key] - stated[key]) / (stated[key] or 1.0) for key in figures)
    return errors


def compare(reference: Reference, tables: Path) -> Agreement:
    result = run_case(reference, tables)
    ours, columns = result.requests, reference.columns
    return Agreement(
        name=reference.folder.name,
        requests=len(ours),
        batches=int(result.replicas["iterations"].sum()),
        vidur_batches=int(reference.summary["num_batches"]),
        first_token_error=float(np.abs(ours["first_token"] - columns["prefill_completed_at"]).max()),
        finished_error=float(np.abs(ours["finished"] - columns["completed_at"]).max()),
        restarts_differ=int((ours["preemptions"] != columns["num_restarts"]).sum()),
        percentile_errors=percentile_errors(reference, result),
        seconds=result.cpu_seconds,
        vidur_seconds=float(reference.summary.get("vidur_seconds", {}).get("loop", np.nan)),
    )


def show(agreement: Agreement) -> None:
    one = agreement
    restarts = f", restarts differ for {one.restarts_differ} requests" if one.restarts_differ else ""
    print(f"{one.name}: {one.requests:,} requests")
    print(f"  batches            {one.batches:,} (Vidur {one.vidur_batches:,}){restarts}")
    worst = f"{one.first_token_error:.1e} s first token, {one.finished_error:.1e} s completion"
    print(f"  largest time error {worst}")
    errors = ", ".join(
        f"{name.removesuffix('_s')} {100 * error:.1e} %" for name, error in one.percentile_errors.items()
    )
    print(f"  percentile errors  {errors}   (largest of p50, p90, p99, mean)")
    print(
        f"  CPU time           {1000 * one.seconds:.1f} ms (Vidur's loop {1000 * one.vidur_seconds:,.0f} ms)"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", type=Path, metavar="CASE_DIR", help="folders of reference runs")
    parser.add_argument(
        "--tables", type=Path, metavar="DIR", help="operator tables (default: those of the shared data)"
    )
    parser.add_argument("--quick", action="store_true", help="the first case only")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    folders = arguments.cases or sorted(
        path.parent for path in SHARED.glob("data/vidur/cases/*/summary.json")
    )
    tables = arguments.tables or SHARED / "data" / "vidur" / "predictor_tables"
    started = time.perf_counter()
    try:
        if not folders:
            raise TrimtabError(f"no reference cases under {SHARED}; name case folders, or set TRIMTAB_SHARED")
        simulate({"workload": {"num_requests": 1}})  # compiles, so that the cases show their own time
        agreements = []
        for folder in folders[: 1 if arguments.quick else None]:
            agreements.append(compare(read_reference(folder), tables))
            show(agreements[-1])
    except TrimtabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figures = {
        "name": "vidur_agreement",
        "cases": len(agreements),
        "max_time_error_s": max(one.time_error for one in agreements),
        "batches_equal": all(one.batches == one.vidur_batches for one in agreements),
        "max_percentile_error": max(max(one.percentile_errors.values()) for one in agreements),
        "seconds": round(time.perf_counter() - started, 2),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
