"""How far calibrated execution times are off, on shapes and models that the fit did not see.

    python benchmarks/exectime_error.py [PROFILING] [--quick]

PROFILING: a folder in Vidur's layout (default ../shared/data/vidur/profiling). The figures are those of the
worst device; ``devices`` has each device's, and its operators'. ``--quick``: A40 only.
Iterations are layers without attention, whose public profiles are not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from trimtab.exectime.calibrate import calibrate, collect, iteration_errors, predicted
from trimtab.exectime.calibration import FOLDER as SHIPPED
from trimtab.exectime.calibration import Calibration, load_calibration, shipped_calibrations

SHARED = Path(os.environ.get("TRIMTAB_SHARED", Path(__file__).parents[2] / "shared"))
NODES = {"a100": "a100_dgx", "h100": "h100_dgx", "a40": "a40_pairwise_nvlink"}


def measure(root: Path, device: str) -> dict[str, Any]:
    found = collect([root / "compute" / device, root / "network" / NODES[device]])
    fitted = calibrate(found, lambda what: print(f"  {device}: {what}", file=sys.stderr, flush=True))
    if device in shipped_calibrations():
        same = load_calibration(SHIPPED / f"{device}.json").errors == fitted.errors
        print(f"{device}: the calibration that ships has {'these' if same else 'OTHER'} errors")
    return fitted.errors


def by_data_sheet(root: Path) -> dict[str, float]:
    """Median iteration error of each device from its data sheet and the constants of another one."""
    found = {name: collect([root / "compute" / name]) for name in NODES}
    medians = {}
    for name, profile in found.items():
        for other in (other for other in NODES if other != name):
            constants = Calibration(other, efficiency=load_calibration(SHIPPED / f"{other}.json").efficiency)
            seconds, _ = predicted(constants, profile.kernels, profile.rows)
            medians[f"{name} with constants of {other}"] = iteration_errors(profile.rows, seconds)["median"]
    return medians


def show(device: str, errors: dict[str, Any]) -> None:
    print(f"{device}\n  {'operator':26}{'rows':>7}{'constants':>11}{'calibrated':>12}  regression")
    for name, entry in errors["operators"].items():
        print(
            f"  {name:26}{entry['rows']:7,}{entry['constants']:11.1%}{entry['calibrated']:12.1%}"
            f"  {entry['predictor']}"
        )
    iteration, left = errors["iteration"], errors["left_out"]
    print(f"  linear operators {errors['linear']:.1%}")
    print(f"  iterations, held-out shapes: median {iteration['median']:.1%}, p99 {iteration['p99']:.1%}")
    print(f"  iterations, model left out: median {left['median']:.1%}, p99 {left['p99']:.1%}")
    for model, median in left["models"].items():
        print(f"    {model:24}{median:8.1%} median")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=SHARED / "data" / "vidur" / "profiling")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not options.root.is_dir():
        print(f"error: no profiles at {options.root}; set TRIMTAB_SHARED", file=sys.stderr)
        return 2
    devices = {name: measure(options.root, name) for name in (["a40"] if options.quick else NODES)}
    for name, errors in devices.items():
        show(name, errors)
    sheets = {} if options.quick else by_data_sheet(options.root)
    for pair, median in sheets.items():
        print(f"by data sheet, {pair}: {median:.1%} median of iterations")
    figures = {
        "name": "exectime_error",
        "heldout_linear_mape": max(errors["linear"] for errors in devices.values()),
        "heldout_iteration_median": max(errors["iteration"]["median"] for errors in devices.values()),
        "heldout_iteration_p99": max(errors["iteration"]["p99"] for errors in devices.values()),
        "leave_model_out_median": max(errors["left_out"]["median"] for errors in devices.values()),
        "data_sheet_iteration_median": max(sheets.values(), default=None),
        "devices": devices,
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
