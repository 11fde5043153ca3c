"""Traffic turns from a mixture to code, and the biases of a trained model follow it, or do not.

Per seed: the model of `moe_training` (code 3 % of its text), then held-out batches of 4,096 bytes: 6 of
the mixture, 40 of code only, 14 of the mixture again, served with each strategy. A batch's biases come from
the batches before it. Measured on the last 20 batches of code, beside the trained biases on the same ones.
Finished parts are kept in --runs; a run that was interrupted goes on there.

    python benchmarks/moe_shift.py [--quick] [--seeds N] [--steps N] [--runs FOLDER] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from trimtab import balance
from trimtab.balance.measures import summary
from trimtab.moe import adaptation, shift, strategies
from trimtab.moe.shift import PREFILL, Stream, figures, ground_of, layer_seconds, run, verdicts, violations
from trimtab.moe.store import Parts, digest, key, recall, source
from trimtab.moe.strategies import STRATEGIES
from trimtab.moe.text import Corpus, load_corpus
from trimtab.moe.training import Recipe, excess
from trimtab.report.canvas import INK, Box, Canvas, Chart
from trimtab.report.plots import PALETTE

WORKED = (70, 20, 5, 3, 1, 1, 0, 0)  # per cent of the tokens on each of 8 experts: the worked example
STRENGTHS = tuple(f"quantile x {strength}" for strength in (0.25, 0.5, 0.75))
CURVE = ("fixed", *STRENGTHS, "quantile")
HEADLINE = "quantile"
QUICK = ("fixed", "ewma", "quantile", "guarded", "quantile x 0.5")
SERVING = (adaptation, strategies, shift, balance.laws, balance.limits, balance.quantile, balance.domains,
           balance.predictor, balance.guard, balance.threshold, balance.balancer)  # fmt: skip
COLUMNS = {
    "excess_global": "global", "removed_global": "removed", "excess_batch": "per batch",
    "removed_batch": "removed", "balancedness": "balancedness", "perplexity": "perplexity",
    "loss_increase_percent": "loss %", "kl": "KL, nat", "lag_batches": "lag", "back_excess": "back",
    "back_batches": "back lag", "prefill_ms": "prefill ms", "decode_ms": "decode ms",
}  # fmt: skip


def study(
    seed: int, names: list[str], steps: int, stream: Stream, corpus: Corpus, runs: Path
) -> tuple[dict[str, dict[str, float]], dict[str, str], dict[str, list[float]]]:
    """Figures by strategy, verdicts of the headline's A/B tests, and MaxVio over chance by batch."""
    recipe = Recipe(seed=seed, steps=steps)

    def told(step: int, loss: float) -> None:
        if step % 100 == 99:
            print(f"  training, seed {seed}: step {step + 1} of {steps}, loss {loss:.3f}", flush=True)

    trained = recall(recipe, corpus, runs, told)
    texts = stream.texts(corpus, recipe)
    mark = digest(
        key(recipe, corpus), str(stream), str([text.sum() for text in texts]), *map(source, SERVING)
    )
    ground = ground_of(trained, corpus, recipe)
    records = {}
    for name in names:
        records |= run([name], ground, texts, stream, Parts(runs, mark))
        print(f"  seed {seed}: {name}", flush=True)
    fixed = records["fixed"]
    calm = excess(fixed.loads[: stream.before])
    print(f"  seed {seed}: MaxVio over chance, trained biases, mixture, per batch {calm['excess_batch']:.3f}")
    found = {name: figures(record, fixed, stream) for name, record in records.items()}
    series = {name: violations(record.loads).tolist() for name, record in records.items()}
    return found, verdicts(records[HEADLINE], fixed, stream), series


def averaged(found: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over seeds."""
    return {
        name: {figure: float(np.mean([seed[name][figure] for seed in found])) for figure in found[0][name]}
        for name in found[0]
    }


def table(mean: dict[str, dict[str, float]]) -> None:
    """A row per strategy."""
    print("\n| strategy | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for name, row in mean.items():
        cells = ["never" if math.isinf(row[column]) else f"{row[column]:.3f}" for column in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |")


def worked_example() -> dict[str, float]:
    """The load that the project started from: its measures, and its time beside an even load's."""
    loads = np.array(WORKED, dtype=float)
    uneven, even = layer_seconds(loads, PREFILL), layer_seconds(np.ones_like(loads), PREFILL)
    found = {**summary(loads), "prefill_ms": 1e3 * uneven, "prefill_ms_even": 1e3 * even}
    print("\n70/20/5/3/1/1/0/0: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def draw(
    path: Path, mean: dict[str, dict[str, float]], series: dict[str, list[float]], stream: Stream
) -> None:
    """The curve of strength, and MaxVio batch by batch."""
    canvas = Canvas(1240, 470)
    canvas.text(
        30, 40, "From a mixture to code: what evening the load costs, and how soon it is even", 20, INK
    )
    costs = [mean[name]["loss_increase_percent"] for name in mean]
    see = "Up is even, left is free: the line is the quantile law at growing strength."
    box = Box(75, 128, 560, 400)
    titles = ("Excess MaxVio removed, per batch", see, "loss increase on code, per cent")
    chart = Chart(canvas, box, titles, (min(0.0, *costs) - 0.1, max(costs) * 1.25), (0, 1.05), percent=True)
    curve = [mean[name] for name in CURVE if name in mean]
    xs = np.array([row["loss_increase_percent"] for row in curve])
    chart.curve(xs, np.array([row["removed_batch"] for row in curve]), PALETTE[0], 2.5)
    placed: list[tuple[float, float]] = []  # labels that would lie on another are left out
    for name, row in mean.items():
        x, y = chart.across(row["loss_increase_percent"]), chart.up(max(0.0, row["removed_batch"]))
        canvas.dot(x, y, 4, PALETTE[0] if name in CURVE else PALETTE[1])
        if all(abs(y - other) > 13 or abs(x - beside) > 130 for beside, other in placed):
            canvas.text(x + 7, y + 12, name.replace("quantile x", "x"), 11, INK)
            placed.append((x, y))
    shown = [name for name in ("fixed", "ewma", HEADLINE, "domain, calibrated") if name in series]
    top = 1.25 * max(max(series[name]) for name in shown)
    see = "Code begins at the first mark, the mixture is back at the second."
    over = Chart(canvas, Box(680, 128, 1210, 400), ("MaxVio over chance", see, "batch of 4,096 bytes"),
                 (0, len(series["fixed"])), (0, top))  # fmt: skip
    for mark in (stream.before, stream.back):
        canvas.line([(over.across(mark), 128), (over.across(mark), 400)], INK, 1)
    for name, colour in zip(shown, PALETTE, strict=False):
        over.curve(np.arange(len(series[name])), np.array(series[name]), colour)
    over.legend(list(zip(shown, PALETTE, strict=False)))
    canvas.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps, few strategies")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/moe"), help="where finished parts are kept")
    parser.add_argument("--plot", type=Path, help="write a picture (PNG) there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick, begin = arguments.quick, time.process_time()
    seeds, steps = (1, 60) if quick else (arguments.seeds, arguments.steps)
    stream = Stream(2, 8, 2, 4) if quick else Stream()
    corpus = load_corpus(0.2 if quick else 2.0)
    names = list(QUICK) if quick else [*STRATEGIES, *STRENGTHS]
    done = [study(seed, names, steps, stream, corpus, arguments.runs) for seed in range(seeds)]
    mean = averaged([found for found, _, _ in done])
    series = {name: np.mean([row[name] for _, _, row in done], axis=0).tolist() for name in names}
    print(f"\ncode after a mixture, {seeds} seeds, {asdict(stream)}; MaxVio is that over chance")
    table(mean)
    worked = worked_example()
    judged = [verdict for _, verdict, _ in done]
    print(f"A/B, trained biases (A) against {HEADLINE} (B), by seed: {judged}")
    if arguments.plot:
        draw(arguments.plot, mean, series, stream)
    head = mean[HEADLINE]
    curve = [
        {
            figure: round(mean[name][figure], 4)
            for figure in ("removed_global", "removed_batch", "loss_increase_percent", "kl")
        }
        for name in CURVE
        if name in mean
    ]
    print(
        json.dumps(
            {
                "name": "moe_shift",
                "excess_fixed_global": round(mean["fixed"]["excess_global"], 4),
                "excess_fixed_batch": round(mean["fixed"]["excess_batch"], 4),
                "excess_removed_global": round(head["removed_global"], 4),
                "excess_removed_batch": round(head["removed_batch"], 4),
                "loss_increase_percent": round(head["loss_increase_percent"], 4),
                "kl": round(head["kl"], 5),
                "lag_batches": head["lag_batches"],
                "back_excess": round(head["back_excess"], 4),
                "prefill_speedup": round(mean["fixed"]["prefill_ms"] / head["prefill_ms"], 4),
                "decode_speedup": round(mean["fixed"]["decode_ms"] / head["decode_ms"], 4),
                "ab_balancedness_wins": sum(verdict["balancedness"] == "B" for verdict in judged),
                "seeds": seeds,
                "cpu_s": round(time.process_time() - begin, 1),
                "worked_max_violation": round(worked["max_violation"], 4),
                "curve": curve,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
