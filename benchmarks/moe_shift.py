"""Traffic turns from a mixture to code, and the biases of a trained model follow it, or do not.

Per seed two models of `moe_training` (code 3 % of their text): one trained while its biases were moved
a little at random (`Recipe.jitter`), so that it bears it later, and a plain one. Each serves held-out batches
of 4,096 bytes: 6 of the mixture, 40 of code only, 14 of the mixture again, with each strategy. A batch's
biases come from the batches before it. Measured on the last 20 batches of code, beside the model's own
trained biases on the same ones, and beside those of the plain model (``loss_against_plain_percent``).
Finished parts are kept in --runs; a run that was interrupted goes on there.

    python benchmarks/moe_shift.py [--quick] [--seeds N] [--steps N] [--runs FOLDER] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab import balance
from trimtab.balance.measures import summary
from trimtab.moe import adaptation, shift, strategies
from trimtab.moe.adaptation import Record
from trimtab.moe.shift import PREFILL, Stream, figures, ground_of, layer_seconds, run, verdicts, violations
from trimtab.moe.store import Parts, digest, key, recall, source
from trimtab.moe.strategies import STRATEGIES
from trimtab.moe.text import Corpus, load_corpus
from trimtab.moe.training import JITTER, Recipe, excess
from trimtab.report.canvas import INK, Box, Canvas, Chart
from trimtab.report.plots import PALETTE

WORKED = (70, 20, 5, 3, 1, 1, 0, 0)  # per cent of the tokens on each of 8 experts: the worked example
STRENGTHS = tuple(f"quantile x {strength}" for strength in (0.25, 0.5, 0.75, 0.9))
CURVE = ("fixed", *STRENGTHS, "quantile")
HEADLINE = "quantile"
MOVED, PLAIN = "trained with moved biases", "plain"
JITTERS = {MOVED: JITTER, PLAIN: 0.0}
QUICK = ("fixed", "ewma", "quantile", "guarded", "quantile x 0.5")
IN_PLAIN = (*CURVE, "quantile, cap 1.1")
SERVING = (adaptation, strategies, shift, balance.laws, balance.limits, balance.quantile, balance.domains,
           balance.prices, balance.predictor, balance.guard, balance.threshold, balance.balancer)  # fmt: skip
COLUMNS = {
    "excess_global": "global", "removed_global": "removed", "excess_batch": "per batch",
    "removed_batch": "removed", "balancedness": "balancedness", "perplexity": "perplexity",
    "loss_increase_percent": "loss %",
    "loss_against_plain_percent": "against plain %", "kl": "KL, nat", "lag_batches": "lag",
    "back_excess": "back",
    "back_batches": "back lag", "prefill_ms": "prefill ms", "decode_ms": "decode ms",
}  # fmt: skip


@dataclass(frozen=True)
class Studied:
    """One model of one seed: figures by strategy, MaxVio over chance by batch, the headline's A/B verdicts,
    and the loss of the trained biases on the settled batches."""

    figures: dict[str, dict[str, float]]
    series: dict[str, list[float]]
    verdicts: dict[str, str]
    loss: float


def study(
    recipe: Recipe, names: Iterable[str], stream: Stream, corpus: Corpus, runs: Path, label: str
) -> Studied:
    """Serve the stream with each strategy, by a model that is trained or found in ``runs``."""

    def told(step: int, loss: float) -> None:
        if step % 100 == 99:
            print(f"  {label}: training, step {step + 1} of {recipe.steps}, loss {loss:.3f}", flush=True)

    trained = recall(recipe, corpus, runs, told)
    texts = stream.texts(corpus, recipe)
    mark = digest(
        key(recipe, corpus), str(stream), str([text.sum() for text in texts]), *map(source, SERVING)
    )
    ground = ground_of(trained, corpus, recipe)
    records: dict[str, Record] = {}
    for name in names:
        records |= run([name], ground, texts, stream, Parts(runs, mark))
        print(f"  {label}: {name}", flush=True)
    fixed = records["fixed"]
    calm = excess(fixed.loads[: stream.before])
    print(f"  {label}: MaxVio over chance, trained biases, mixture, per batch {calm['excess_batch']:.3f}")
    return Studied(
        {name: figures(record, fixed, stream) for name, record in records.items()},
        {name: violations(record.loads).tolist() for name, record in records.items()},
        verdicts(records[HEADLINE], fixed, stream),
        float(fixed.losses[stream.window].mean()),
    )


def seed_study(
    seed: int,
    steps: int,
    names: Iterable[str],
    in_plain: Iterable[str],
    stream: Stream,
    corpus: Corpus,
    runs: Path,
) -> dict[str, Studied]:
    """Both models of one seed."""
    found = {
        label: study(
            Recipe(seed=seed, steps=steps, jitter=jitter),
            names if label == MOVED else in_plain,
            stream,
            corpus,
            runs,
            f"{label}, seed {seed}",
        )
        for label, jitter in JITTERS.items()
    }
    for studied in found.values():
        for row in studied.figures.values():
            own = studied.loss * (1.0 + row["loss_increase_percent"] / 100.0)
            row["loss_against_plain_percent"] = 100.0 * (own / found[PLAIN].loss - 1.0)
    return found


Means = dict[str, dict[str, dict[str, float]]]  # model -> strategy -> figure


def averaged(found: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over seeds."""
    return {
        name: {figure: float(np.mean([seed[name][figure] for seed in found])) for figure in found[0][name]}
        for name in found[0]
    }


def table(label: str, mean: dict[str, dict[str, float]]) -> None:
    """A row per strategy."""
    print(f"\n{label}\n\n| strategy | " + " | ".join(COLUMNS.values()) + " |")
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


def draw(path: Path, mean: Means, series: dict[str, list[float]], stream: Stream) -> None:
    """The curves of strength of both models, and MaxVio batch by batch."""
    canvas = Canvas(1240, 470)
    canvas.text(
        30, 40, "From a mixture to code: what evening the load costs, and how soon it is even", 20, INK
    )
    costs = [row["loss_against_plain_percent"] for rows in mean.values() for row in rows.values()]
    see = "Down is even, left is free: the quantile law at growing strength."
    titles = (
        "MaxVio over chance, per batch", see, "loss on code, per cent above the plain model left as trained"
    )  # fmt: skip
    top = 1.15 * max(row["excess_batch"] for rows in mean.values() for row in rows.values())
    reach = max(costs) - min(costs)
    across = (min(costs) - 0.08 * reach, max(costs) + 0.25 * reach)
    chart = Chart(canvas, Box(75, 128, 560, 400), titles, across, (0, top))
    placed: list[tuple[float, float]] = []  # labels that would lie on another are left out
    for colour, (label, rows) in zip(PALETTE, mean.items(), strict=False):
        curve = [rows[name] for name in CURVE if name in rows]
        xs = np.array([row["loss_against_plain_percent"] for row in curve])
        chart.curve(xs, np.array([row["excess_batch"] for row in curve]), colour, 2.5)
        for name, row in rows.items():
            x, y = chart.across(row["loss_against_plain_percent"]), chart.up(max(0.0, row["excess_batch"]))
            canvas.dot(x, y, 4, colour)
            if label == MOVED and all(
                abs(y - other) > 13 or abs(x - beside) > 110 for beside, other in placed
            ):
                canvas.text(x + 7, y + 12, name.replace("quantile x", "x"), 11, INK)
                placed.append((x, y))
    chart.legend(list(zip(mean, PALETTE, strict=False)))
    shown = [name for name in ("fixed", "ewma", HEADLINE, "domain, calibrated") if name in series]
    top = 1.25 * max(max(series[name]) for name in shown)
    see = "Code begins at the first mark, the mixture is back at the second."
    over = Chart(canvas, Box(680, 128, 1210, 400), (f"The same, {MOVED}", see, "batch of 4,096 bytes"),
                 (0, len(series["fixed"])), (0, top))  # fmt: skip
    for mark in (stream.before, stream.back):
        canvas.line([(over.across(mark), 128), (over.across(mark), 400)], INK, 1)
    for name, colour in zip(shown, PALETTE, strict=False):
        over.curve(np.arange(len(series[name])), np.array(series[name]), colour)
    over.legend(list(zip(shown, PALETTE, strict=False)))
    canvas.save(path)


def result(mean: Means, judged: list[dict[str, str]]) -> dict[str, Any]:
    """The figures that are held to their targets, and the curves."""
    rows, plain = mean[MOVED], mean[PLAIN]
    head, fixed = rows[HEADLINE], rows["fixed"]
    kept = ("removed_global", "removed_batch", "loss_increase_percent", "loss_against_plain_percent", "kl")
    curves = {
        label: [
            {name: round(each[name], 4) for name in kept} for curve in CURVE if (each := found.get(curve))
        ]
        for label, found in mean.items()
    }
    return {
        "excess_fixed_global": round(fixed["excess_global"], 4),
        "excess_fixed_batch": round(fixed["excess_batch"], 4),
        "excess_removed_global": round(head["removed_global"], 4),
        "excess_removed_batch": round(head["removed_batch"], 4),
        "loss_increase_percent": round(head["loss_increase_percent"], 4),
        "loss_against_plain_percent": round(head["loss_against_plain_percent"], 4),
        "plain_excess_removed_batch": round(plain[HEADLINE]["removed_batch"], 4),
        "plain_loss_increase_percent": round(plain[HEADLINE]["loss_increase_percent"], 4),
        "kl": round(head["kl"], 5),
        "lag_batches": head["lag_batches"],
        "back_excess": round(head["back_excess"], 4),
        "prefill_speedup": round(fixed["prefill_ms"] / head["prefill_ms"], 4),
        "decode_speedup": round(fixed["decode_ms"] / head["decode_ms"], 4),
        "ab_balancedness_wins": sum(verdict["balancedness"] == "B" for verdict in judged),
        "curves": curves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 40 steps, few strategies")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/moe"), help="where finished parts are kept")
    parser.add_argument("--plot", type=Path, help="write a picture (PNG) there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick, begin = arguments.quick, time.process_time()
    seeds, steps = (1, 40) if quick else (arguments.seeds, arguments.steps)
    stream = Stream(2, 8, 2, 4) if quick else Stream()
    corpus = load_corpus(0.2 if quick else 2.0)
    names = QUICK if quick else (*STRATEGIES, *STRENGTHS)
    in_plain = ("fixed", HEADLINE) if quick else IN_PLAIN
    done = [seed_study(seed, steps, names, in_plain, stream, corpus, arguments.runs) for seed in range(seeds)]
    mean = {label: averaged([found[label].figures for found in done]) for label in JITTERS}
    series = {name: np.mean([found[MOVED].series[name] for found in done], axis=0).tolist() for name in names}
    print(f"\ncode after a mixture, {seeds} seeds, {asdict(stream)}; MaxVio is that over chance")
    for label, rows in mean.items():
        table(label, rows)
    worked = worked_example()
    judged = [found[MOVED].verdicts for found in done]
    print(f"A/B, trained biases (A) against {HEADLINE} (B), by seed: {judged}")
    if arguments.plot:
        draw(arguments.plot, mean, series, stream)
    print(
        json.dumps(
            {
                "name": "moe_shift",
                **result(mean, judged),
                "seeds": seeds,
                "cpu_s": round(time.process_time() - begin, 1),
                "worked_max_violation": round(worked["max_violation"], 4),
            }
        )
    )


if __name__ == "__main__":
    main()
