"""The doctor on real RLHF runs: are injected faults named, and is it silent on healthy runs?

Runs of examples/rlhf_cpu, each fault and each healthy setting with every seed; the doctor sees only their
logs. The supervised start and the reward model of a seed serve all of its runs.

    python benchmarks/doctor.py [--quick] [--seeds N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import torch

from trimtab.rlhf.doctor import diagnose
from trimtab.rlhf.log_files import read_logs
from trimtab.rlhf.measure_ranges import late

EXAMPLE = Path(__file__).parents[1] / "examples" / "rlhf_cpu"
NAMED = {  # fault -> the finding that names it
    "kl_target": "kl-target-scale",
    "beta0": "no-kl-penalty",
    "lr30": "updates-too-large",
    "top_p": "sampling-narrowed",
}
HEALTHY: dict[str, dict[str, float]] = {
    "as it is": {},
    "KL coefficient 0.5": {"kl_coefficient": 0.5},
    "half the learning rate": {"learning_rate": 5e-5},
    "adaptive KL, target 0.05 per token": {"kl_target": 0.05},
}


def example() -> ModuleType:
    """examples/rlhf_cpu as a module."""
    sys.path.insert(0, str(EXAMPLE))
    spec = importlib.util.spec_from_file_location("rlhf_cpu", EXAMPLE / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rlhf_cpu"] = module
    spec.loader.exec_module(module)
    return module


def run(rlhf: ModuleType, start: Any, settings: Any, steps: int, seed: int, log: Path) -> list[str]:
    """Names of what the doctor finds in the log of one run."""
    measured = enumerate(rlhf.ppo(start, settings, steps, seed), 1)
    lines = [rlhf.line_of(step, facts) for step, facts in measured]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [finding.name for finding in diagnose([log]).findings]


def show(run_name: str, seed: int, found: list[str], verdict: str) -> None:
    print(f"| {run_name} | {seed} | {', '.join(found) or '-'} | {verdict} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, short runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder to keep the logs in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rlhf, steps = example(), 16 if options.quick else 40
    folder = options.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    named = silent = faults = healthy = 0
    begin = time.process_time()
    print("| run | seed | found | |\n|---|---|---|---|")
    for seed in range(1 if options.quick else options.seeds):
        start = rlhf.begin(seed, options.quick)
        for fault, wanted in NAMED.items():
            found = run(rlhf, start, rlhf.FAULTS[fault], steps, seed, folder / f"{fault}-{seed}.log")
            # Named means: it is the first that the doctor says.
            right = found[:1] == [wanted]
            named, faults = named + right, faults + 1
            show(fault, seed, found, "named" if right else "MISSED")
        for number, (label, changes) in enumerate(HEALTHY.items()):
            settings = rlhf.Settings(**changes)
            found = run(rlhf, start, settings, steps, seed, folder / f"healthy{number}-{seed}.log")
            silent, healthy = silent + (not found), healthy + 1
            show(label, seed, found, "FALSE" if found else "silent")
    # Of PPO where nothing is wrong: standard deviations of the reward model's score, nats per token.
    plain = [read_logs([log]).measures for log in sorted(folder.glob("healthy0-*.log"))]
    gains = [fmean(late(each["reward"])) - each["reward"][0].value for each in plain]
    figures = {
        "name": "doctor",
        "faults_named": round(named / faults, 4),
        "healthy_silent": round(silent / healthy, 4),
        "healthy_least_reward_gain": round(min(gains), 3),
        "healthy_most_kl": round(max(fmean(late(each["kl"])) for each in plain), 4),
        "faults": faults,
        "healthy": healthy,
        "cpu_s": round(time.process_time() - begin, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
