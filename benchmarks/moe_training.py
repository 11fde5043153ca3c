"""Balancing a mixture of experts while it trains: loss terms against bias laws, on real text.

The small byte-level model of `trimtab.moe` on a mixture of prose, mathematics and a little code (all from
installed packages). Measured on held-out files: perplexity per byte beside that of byte frequencies alone,
MaxVio over chance of all batches together and of each; in training, steps until balanced (20 batches
together within 0.1 of chance, lasting 20 batches). Trained models are kept in --runs; a run that was
interrupted goes on there.

    python benchmarks/moe_training.py [--quick] [--seeds N] [--steps N] [--only LABEL ...] [--runs FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from trimtab.moe.store import recall
from trimtab.moe.text import Corpus, load_corpus
from trimtab.moe.training import JITTER, MIXTURE, Recipe, held_out_figures, steps_until_balanced, unigram_loss

# Method, strength, jitter; the weaker coefficient is the one that the loss-free paper compares with.
CONTENDERS: dict[str, tuple[str, float | None, float]] = {
    "quantile": ("quantile", None, 0.0),
    "auxiliary loss 0.01": ("auxiliary", 0.01, 0.0),
    "auxiliary loss 0.001": ("auxiliary", 0.001, 0.0),
    "global-batch loss 0.01": ("global-batch", 0.01, 0.0),
    "sign": ("sign", None, 0.0),
    "proportional": ("proportional", None, 0.0),
    "quantile, moved biases": ("quantile", None, JITTER),  # what moe_shift serves
}
FIGURES = ("perplexity", "excess_global", "excess_batch", "steps_until_balanced")


def measure(label: str, seed: int, steps: int, corpus: Corpus, runs: Path, batches: int) -> dict[str, float]:
    """Figures of one training run, trained now or before."""
    method, strength, jitter = CONTENDERS[label]
    recipe = Recipe(method=method, strength=strength, jitter=jitter, seed=seed, steps=steps)

    def told(step: int, loss: float) -> None:
        if step % 100 == 99:
            print(f"  {label}, seed {seed}: step {step + 1} of {steps}, loss {loss:.3f}", flush=True)

    trained = recall(recipe, corpus, runs, told)
    figures = held_out_figures(trained.model, corpus, recipe, batches)
    return {**figures, "steps_until_balanced": steps_until_balanced(trained.loads)}


def table(found: dict[str, list[dict[str, float]]]) -> None:
    """A row per contender: mean over seeds, and the standard deviation of the perplexity."""
    print("\n| balanced by | perplexity per byte | MaxVio over chance, global | per batch | balanced after |")
    print("|---|---|---|---|---|")
    for label, rows in found.items():
        mean = {name: float(np.mean([row[name] for row in rows])) for name in FIGURES}
        spread = np.std([row["perplexity"] for row in rows], ddof=1) if len(rows) > 1 else math.nan
        steps = ", ".join("never" if row[FIGURES[3]] < 0 else f"{row[FIGURES[3]]:.0f}" for row in rows)
        print(
            f"| {label} | {mean['perplexity']:.3f} +- {spread:.3f} | {mean['excess_global']:.3f} "
            f"| {mean['excess_batch']:.3f} | {steps} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 steps, one seed, two contenders")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="beside the first two")
    parser.add_argument("--runs", type=Path, default=Path("runs/moe"), help="where trained models are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    seeds, steps = (1, 60) if quick else (arguments.seeds, arguments.steps)
    chosen = [] if quick else CONTENDERS if arguments.only is None else arguments.only
    labels = [label for label in CONTENDERS if label in chosen or label in list(CONTENDERS)[:2]]
    begin = time.process_time()
    corpus = load_corpus(0.2 if quick else 2.0)
    unigram = math.exp(unigram_loss(corpus, MIXTURE))
    tokens = steps * Recipe().sequences * Recipe().shape.context
    print(
        f"text {corpus.digest()}; {tokens:,} bytes per run; byte frequencies alone: perplexity {unigram:.2f}"
    )
    found: dict[str, list[dict[str, float]]] = {label: [] for label in labels}
    for seed in range(seeds):
        for label in labels:
            found[label].append(measure(label, seed, steps, corpus, arguments.runs, 8 if quick else 64))
    table(found)
    mean = {label: {name: float(np.mean([row[name] for row in rows])) for name in FIGURES}
            for label, rows in found.items()}  # fmt: skip
    best, rival = mean["quantile"], mean["auxiliary loss 0.01"]
    print(
        json.dumps(
            {
                "name": "moe_training",
                "excess_global": round(best["excess_global"], 4),
                "excess_batch": round(best["excess_batch"], 4),
                "perplexity": round(best["perplexity"], 4),
                "perplexity_auxiliary": round(rival["perplexity"], 4),
                "excess_global_auxiliary": round(rival["excess_global"], 4),
                "perplexity_unigram": round(unigram, 2),
                "steps_until_balanced": best["steps_until_balanced"],
                "tokens": tokens,
                "seeds": seeds,
                "cpu_s": round(time.process_time() - begin, 1),
                "contenders": {
                    label: {name: round(value, 4) for name, value in row.items()}
                    for label, row in mean.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
