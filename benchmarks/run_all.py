"""Runs every benchmark and rewrites RESULTS.md: what was measured, where, and what was to be reached.

A benchmark is a program ``benchmarks/<name>.py`` that prints one JSON object on its last line.
``python benchmarks/run_all.py [NAME ...] [--quick]``; with names only their sections are rewritten;
``--quick`` is passed on and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "RESULTS.md"
SHARED = Path(os.environ.get("TRIMTAB_SHARED", ROOT.parent / "shared"))

# Figure -> (target, relation); a target in words is another figure of the same benchmark.
TARGETS: dict[str, dict[str, tuple[float | str, str]]] = {
    "ppo_speed": {"trained_steps_per_s": (50_000, ">="), "simulated_steps_per_s": (300_000, ">=")},
    "decision_cost": {"microseconds_16": (20, "<="), "microseconds_256": (100, "<=")},
    "learned_router": {
        "geomean_p99_ttft_vs_best_single": (0.9, "<="),
        "worst_cell_vs_best": (1.05, "<="),
        "goodput_vs_best_single": (1.05, ">="),
    },
    "collapse_study": {
        "busiest_share_ratio_original": (1.3, "<="),
        "busiest_share_ratio_optimized": (1.3, "<="),
        "busiest_share_ratio_lossfree": (1.3, "<="),
    },
    "engine_speed": {
        "iterations_per_cpu_s": (3_000_000, ">="),
        "requests_per_cpu_s_4": (100_000, ">="),
        "requests_per_cpu_s_64": (50_000, ">="),
    },
    "capacity_speed": {"seconds": (10, "<="), "half_width": (0.03, "<=")},
    "search_speed": {"configurations": (500, ">="), "seconds": (60, "<="), "fewest_requests": (2000, ">=")},
    "ray_equals_local": {"equal": (1, ">=")},
    "scale": {"cost_ratio": (2, "<="), "cost_ratio_least": (2, "<=")},
    "interval_coverage": {"from_95_percent": (0.02, "<=")},
    "whole_process": {"seconds_warm": (1.5, "<="), "seconds_first": (20, "<=")},
    "million": {"seconds": (60, "<="), "peak_gb": (2, "<=")},
    "prefix_speed": {
        "iterations_per_cpu_s_on": (1_000_000, ">="),
        "requests_per_cpu_s_on": (30_000, ">="),
        "cost_ratio": (2, "<="),
    },
    "robustness": {"seconds": (600, "<="), "num_cells": (24, ">="), "num_routers": (12, ">=")},
    "exectime_error": {
        "heldout_linear_mape": (0.05, "<="),
        "heldout_iteration_median": (0.03, "<="),
        "heldout_iteration_p99": (0.10, "<="),
        "leave_model_out_median": (0.10, "<="),
    },
    "exectime_tables": {"cold_s": (2, "<="), "cached_s": (0.05, "<=")},
    "queueing_theory": {"inside": ("cases", ">=")},
    "gpu_iterations": {
        "iteration_median_error": (0.07, "<="),
        "ttft_error": (0.15, "<="),
        "tpot_error": (0.07, "<="),
        "e2e_error": (0.07, "<="),
    },
    "balance_laws": {"update_us": (200, "<=")},
    "moe_training": {"excess_global": (0.10, "<="), "perplexity": ("perplexity_auxiliary", "<=")},
    "moe_shift": {
        "excess_removed_global": (0.8, ">="),
        "excess_removed_batch": (0.8, ">="),
        "loss_increase_percent": (0.5, "<="),
        "lag_batches": (50, "<="),
    },
    "moe_overhead": {
        "overhead_percent": (3, "<="),
        "overhead_quantile_percent": (3, "<="),
        "update_us": (200, "<="),
    },
    "expert_placement": {
        "eplb_example_max_over_mean": (1.13, "<="),
        "worst_ratio_of_a_layer": (1.0, "<="),
        "large_cpu_s": (2.0, "<="),
    },
    "packing": {
        "cap_violations": (0, "<="),
        "waste_ratio": (0.1, "<="),
        "seconds_16k": (0.2, "<="),
    },
    "doctor": {"faults_named": (0.9, ">="), "healthy_silent": (0.9, ">=")},
    "fusion": {
        "max_weight_error": (0.03, "<="),
        "max_weight_error_long": (0.03, "<="),
        "data_sets_less_accurate": (0, "<="),
        "without_dominant_low": (0, ">="),
        "without_dominant_vs_best_rival": (-0.01, ">="),
        "recovery_steps": (500, "<="),
        "cost_per_step": (0.02, "<="),
    },
    "rlhf_commands": {"accepted_fraction": (1.0, ">="), "plans": (200, ">="), "versions": (4, ">=")},
    "rlhf_fit": {"right_fraction": (0.9, ">=")},
    "rlhf_time": {
        "dense_median_error": (0.2, "<="),
        "moe_median_error": (0.35, "<="),
        "generation_128_over_64": (0.8, ">="),
    },
    "rlhf_search": {"seconds": (10, "<=")},
    "vidur_agreement": {"max_time_error_s": (1e-6, "<="), "batches_equal": (1, ">=")},
}


def arguments_for(name: str) -> list[str] | None:
    """What a benchmark needs on its command line; None where its data is not here."""
    profiling = SHARED / "data" / "vidur" / "profiling"
    if name == "exectime_error":
        return [str(profiling)] if profiling.is_dir() else None
    if name != "vidur_agreement":
        return []
    cases = sorted((SHARED / "data" / "vidur" / "cases").glob("*/"))
    tables = SHARED / "data" / "vidur" / "predictor_tables"
    return [*map(str, cases), "--tables", str(tables)] if cases else None


def run(name: str, quick: bool) -> dict[str, Any]:
    """Run one benchmark; its figures, or what went wrong."""
    arguments = arguments_for(name)
    if arguments is None:
        return {"skipped": "no reference data; set TRIMTAB_SHARED"}
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments, *(["--quick"] if quick else [])]
    print(f"== {name}", flush=True)
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    lines = done.stdout.strip().splitlines()
    try:
        figures: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        figures = {}
    if done.returncode or not figures:
        return {"failed": f"exit code {done.returncode}"}
    return {**figures, "benchmark_wall_s": round(time.perf_counter() - started, 1)}


def table(name: str, figures: dict[str, Any]) -> list[str]:
    """One section of RESULTS.md."""
    command = f"python benchmarks/{name}.py"
    if name == "vidur_agreement":
        command += " ../shared/data/vidur/cases/* --tables ../shared/data/vidur/predictor_tables"
    lines = [
        "",
        f"## {name}",
        "",
        f"`{command}`, {datetime.date.today()}, {commit()}",
        "",
        "| figure | measured | target | |",
        "|---|---|---|---|",
    ]
    for key, value in figures.items():
        if key == "name":
            continue
        target, relation = TARGETS.get(name, {}).get(key, (None, ""))
        target = figures[target] if isinstance(target, str) else target
        verdict = ""
        if target is not None and isinstance(value, (int, float)):
            reached = value >= target if relation == ">=" else value <= target
            verdict = "reached" if reached else "missed"
        wanted = "" if target is None else f"{relation} {shown(target)}"
        lines.append(f"| {key} | {shown(value)} | {wanted} | {verdict} |")
    return lines


def section(name: str, figures: dict[str, Any]) -> list[str]:
    """The lines of a benchmark; the earlier ones where it did not or cannot run, as without a GPU."""
    earlier = RESULTS.read_text(encoding="utf-8") if RESULTS.is_file() else ""
    found = re.search(rf"^## {name}\n.*?(?=^## |\Z)", earlier, re.MULTILINE | re.DOTALL)
    if "skipped" in figures and found and "| skipped |" not in found[0]:
        return ["", *found[0].rstrip().splitlines()]
    return table(name, figures)


def shown(value: Any) -> str:
    if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        return f"{', '.join(value)}: see the command's output"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return f"{len(value)} entries, see the command's output"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value).replace("|", "\\|")
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def machine() -> str:
    """Processor, cores, operating system, Python."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes; RESULTS.md is left alone"
    )
    options = parser.parse_args()
    there = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "run_all" and path.stem[0] != "_")
    unknown = sorted(set(options.names) - set(there))
    if unknown:
        print(f"error: unknown benchmark {unknown[0]!r}; allowed: {', '.join(there)}", file=sys.stderr)
        return 2
    results = {name: run(name, options.quick) for name in options.names or there}
    if not options.quick:
        lines = [
            "# Results",
            "",
            "Written by `make bench`, or by section: `run_all.py NAME ...`.",
            "",
        ]
        lines += [f"- machine: {machine()}"]
        for name in there:
            lines += section(name, results.get(name, {"skipped": "not run"}))
        RESULTS.write_text("\n".join(lines) + "\n")
        print(f"wrote {RESULTS.relative_to(ROOT)}")
    return 1 if any("failed" in figures for figures in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
