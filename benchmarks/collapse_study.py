"""Does a router that learns collapse on one replica, and do the remedies of this project's seeds help?

Presets original, optimized and lossfree, optimized with each of its four strategies taken back, and loss-free
balancing with and without its bias: five trainings each. Then the policies on arrivals that training never
saw, the same for all and for three heuristics. Finished trainings are kept, and taken up again.

    python benchmarks/collapse_study.py [--quick] [--out FOLDER] [--publish]

``--publish`` writes the tables and pictures into docs/background. Figures per variant: ``share_ratio``, the
busiest replica's share times the number of replicas, the most of any update of any training, taking the best
replica each time (``share_ratio_tossing``: drawing it, as training does); ``p99_ttft`` and ``goodput``
against least-outstanding, ``recovery_s``; each [mean, low, high] over trainings. ``busiest_share_ratio_...``
is the larger of the two.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _collapse import DECIDED, KEPT, VARIANTS, Json, judge, outcome
from _collapse_plots import Panel, Row, draw_curves, draw_ends

from trimtab.cli.progress import progress_bar
from trimtab.report.bootstrap import student_t

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "background" / "collapse-study.md"
BEGIN, END = "<!-- written by benchmarks/collapse_study.py -->", "<!-- end of the written part -->"
SEEDS, QUICK_SEEDS = range(5), range(2)
RIVALS = ("least-outstanding", "round-robin", "random")
LIMIT = 1.3  # of share_ratio
LAST = 5  # updates at the end, over which a measure is averaged
NEITHER = "original, no KL, no penalty"
STRATEGIES = tuple(variant.name for variant in VARIANTS if variant.name.startswith("without"))
BIASED = (
    ("lossfree", "lossfree, no bias"),
    ("from nothing, bias", "from nothing, no bias"),
)
Interval = tuple[float, float, float]


def interval(values: Sequence[float]) -> Interval:
    """Mean and its 95 % interval over trainings (Student's t)."""
    found = np.array(values)
    half = student_t(len(found) - 1) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return float(found.mean()), float(found.mean()) - half, float(found.mean()) + half


def tail(run: Json, base: Json) -> float:
    """log of the p99 TTFT over least-outstanding's, mean over evaluation seeds."""
    return float(np.log(np.array(run["p99_ttft_ms"]) / np.array(base["p99_ttft_ms"])).mean())


def good(run: Json, base: Json) -> float:
    return float(np.mean(run["goodput"]) / np.mean(base["goodput"]))


def ratio_of(logs: Sequence[float]) -> Interval:
    mean, low, high = (math.exp(value) for value in interval(logs))
    return mean, low, high


def figures_of(runs: Sequence[Json], base: Json) -> Json:
    """Of one variant: ``runs`` are its trainings."""
    curves = {name: np.array([run["curves"][name] for run in runs]) for name in KEPT}
    found: Json = {
        "share_ratio": float(np.nanmax(curves[DECIDED])),
        "share_ratio_tossing": float(np.nanmax(curves["route/share_max_equal"])),
        "kl_ref": float(curves["kl_ref"][:, -LAST:].mean()),
        "entropy": float(curves["route/entropy"][:, -LAST:].mean()),
        "queue_variance": float(curves["queue/variance"][:, -LAST:].mean()),
    }
    for how in ("clone", "best", "tossed"):
        mine = [run[how] for run in runs]
        found[how] = {
            "share_ratio": max(max(one["share"]) for one in mine),
            "p99_ttft": ratio_of([tail(one, base) for one in mine]),
            "goodput": interval([good(one, base) for one in mine]),
            "recovery_s": interval([float(np.mean(one["recovery_s"])) for one in mine]),
        }
    return found


def effect(runs: dict[str, list[Json]], one: str, other: str) -> Json:
    """Of ``one`` against ``other``, training by training with the same seed."""
    pairs = list(zip(runs[one], runs[other], strict=True))
    queues = [[math.log(np.mean(run["curves"]["queue/variance"])) for run in pair] for pair in pairs]
    found: Json = {"queue_variance": ratio_of([mine - its for mine, its in queues])}
    for how in ("best", "tossed"):
        slower = [np.mean(mine[how]["recovery_s"]) - np.mean(its[how]["recovery_s"]) for mine, its in pairs]
        found[how] = {
            "p99_ttft": ratio_of([tail(mine[how], its[how]) for mine, its in pairs]),
            "goodput": interval([good(mine[how], its[how]) for mine, its in pairs]),
            "recovery_s": interval([float(each) for each in slower]),
        }
    return found


# --- what a person reads ------------------------------------------------------------------------


def span(found: Sequence[float], digits: int = 2) -> str:
    return f"{found[0]:.{digits}f} ({found[1]:.{digits}f} to {found[2]:.{digits}f})"


def tables(found: Json) -> str:
    """Markdown: how training went, how it ended, and what each change did."""
    training = [
        "| training | busiest share x 4: best | tossing | KL to the clone | entropy | queue variance |",
        "|---|---|---|---|---|---|",
    ]
    ends = [
        "| router | p99 TTFT | within the SLO | recovery, s | tossing: p99 TTFT | in the SLO | recovery, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in found["variants"].items():
        shares = f"{each['share_ratio']:.2f} | {each['share_ratio_tossing']:.2f}"
        training.append(
            f"| {name} | {shares} | {each['kl_ref']:.3f} | {each['entropy']:.2f} "
            f"| {each['queue_variance']:,.0f} |"
        )
        ends.append(f"| {name} | {cells(each['best'])} | {cells(each['tossed'])} |")
    for name, each in found["heuristics"].items():
        shown = f"{each['p99_ttft']:.2f} | {each['goodput']:.3f} | {each['recovery_s']:.1f}"
        ends.append(f"| `{name}` | {shown} | | | |")
    effects = [
        "| change | queue variance | p99 TTFT | in the SLO | recovery, s | tossing: p99 TTFT | recovery, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in found["effects"].items():
        tossed = f"{span(each['tossed']['p99_ttft'])} | {span(each['tossed']['recovery_s'], 1)}"
        queues = span(each["queue_variance"])
        effects.append(f"| {name} | {queues} | {cells(each['best'])} | {tossed} |")
    return "\n".join(
        [
            "**Training** (share: the most of any update of any training; the rest: over the last updates)",
            "", *training, "",
            "**Afterwards** (p99 TTFT and requests within the SLO: of least-outstanding's)",
            "", *ends, "",
            "**What each change did** (recovery: difference; the rest: ratio; queue variance in training)",
            "", *effects,
        ]
    )  # fmt: skip


def cells(each: Json) -> str:
    return f"{span(each['p99_ttft'])} | {span(each['goodput'], 3)} | {span(each['recovery_s'], 1)}"


def pictures(folder: Path, runs: dict[str, list[Json]], found: Json) -> None:
    """Three PNG into ``folder``."""

    def curves(names: Sequence[str]) -> dict[str, Any]:
        return {
            name: {each: np.array([run["curves"][each] for run in runs[name]]) for each in KEPT}
            for name in names
        }

    presets = ("original", "optimized", "lossfree", "lossfree, no bias", NEITHER)
    draw_curves(
        folder / "collapse-presets.png", "Training: the presets, and neither KL nor penalty", curves(presets)
    )
    removed = ("optimized", *STRATEGIES)
    draw_curves(folder / "collapse-strategies.png", "Training: a strategy taken back", curves(removed))
    panels = []
    for key, name, see, unit, most in (
        ("p99_ttft", "p99 TTFT", "Less is better.", "of least-outstanding's", 2.0),
        ("goodput", "Within the SLO", "More is better.", "of least-outstanding's", 2.0),
        ("recovery_s", "Recovery", "Less is better.", "seconds", 60.0),
    ):
        rows = [Row(router, *each["best"][key]) for router, each in found["variants"].items()]
        rows += [Row(router, *[each[key]] * 3) for router, each in found["heuristics"].items()]
        panels.append(Panel(name, see, unit, most, rows))
    draw_ends(folder / "collapse-ends.png", "After training, best replica each time", panels)


def publish(text: str, runs: dict[str, list[Json]], found: Json) -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n\n{text}\n\n{END}{page.split(END)[1]}", encoding="utf-8")
    pictures(PAGE.parent, runs, found)


# --- the study ----------------------------------------------------------------------------------


def collect(folder: Path, quick: bool) -> dict[str, list[Json]]:
    """All trainings, those first that were done before."""
    seeds = QUICK_SEEDS if quick else SEEDS
    runs: dict[str, list[Json]] = {variant.name: [] for variant in VARIANTS}
    jobs = [(variant, seed) for seed in seeds for variant in VARIANTS]
    with progress_bar("trainings", "runs", time_left=True) as report:
        for done, (variant, seed) in enumerate(jobs):

            def told(text: str, variant: Any = variant, seed: int = seed, done: int = done) -> None:
                report(done, len(jobs), f"{variant.name}, seed {seed}: {text}")

            runs[variant.name].append(outcome(variant, seed, quick, folder, told))
    return runs


def study(runs: dict[str, list[Json]], quick: bool) -> Json:
    rivals = {name: judge(name, quick) for name in RIVALS}
    base = rivals["least-outstanding"]
    pairs = [(name, "optimized") for name in STRATEGIES] + [(NEITHER, "original"), *BIASED]
    return {
        "variants": {name: figures_of(mine, base) for name, mine in runs.items()},
        "heuristics": {
            name: {
                "share_ratio": max(each["share"]),
                "p99_ttft": math.exp(tail(each, base)),
                "goodput": good(each, base),
                "recovery_s": float(np.mean(each["recovery_s"])),
            }
            for name, each in rivals.items()
        },
        "effects": {f"{one}, against {other}": effect(runs, one, other) for one, other in pairs},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two trainings each, of three updates")
    parser.add_argument("--out", type=Path, help="where finished trainings are kept")
    parser.add_argument("--publish", action="store_true", help="rewrite the page's tables and pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or (Path(scratch) if options.quick else ROOT / "runs" / "collapse-study")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            runs = collect(folder, options.quick)
        except KeyboardInterrupt:
            print(f"finished trainings are in {folder}; the same command goes on from there", file=sys.stderr)
            return 130
        found = study(runs, options.quick)
        text = tables(found)
        print(text)
        if options.publish:
            publish(text, runs, found)
        else:
            pictures(folder, runs, found)
    presets = ("original", "optimized", "lossfree")
    most = ("share_ratio", "share_ratio_tossing")
    shares = {name: max(found["variants"][name][key] for key in most) for name in presets}
    for name, share in shares.items():
        print(f"{name}: busiest share x replicas {share:.2f} at most in any update; wanted: {LIMIT} or less")
    print(
        json.dumps(
            {"name": "collapse_study", "trainings": sum(map(len, runs.values())),
             **{f"busiest_share_ratio_{name}": value for name, value in shares.items()}, **found}
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
