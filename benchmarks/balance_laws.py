"""Bias laws on simulated gates: what an update costs, how fast each law evens a load and how even it stays.

Two gates, both with sigmoid scores and batches of 4096 tokens; the bias of a batch comes from the
batches before it:

* example: 8 experts, top-1, without a bias 70/20/5/3/1/1/0/0 per cent of the tokens (0: one in 10,000);
* drift: 64 experts, top-6, skewed; preferences wander from batch to batch, and are dealt anew half-way.

Per gate and law: excess MaxVio over chance per batch and of all batches together, over the last quarter,
and batches until 90 % of the excess was gone (example: from the start; drift: after the new deal).

    python benchmarks/balance_laws.py [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trimtab.balance import Limits, annealed, law, load_of
from trimtab.balance.measures import max_violation, noise_floor, summary

EXAMPLE = (0.70, 0.20, 0.05, 0.03, 0.01, 0.01, 0.0001, 0.0001)
TOKENS = 4096
LAYERS, EXPERTS = 60, 256  # of the update that is timed: DeepSeek-V3's gates
HELD = "sign, every gate held at its bound"
LAGS = 5  # batches that are averaged before 90 % is said to be reached
Make = Callable[[int], Any]  # top_k -> law

# The published rate first; then one that moves as far in fifty batches as a shift at inference asks for.
LAWS: dict[str, Make] = {
    "none": lambda top_k: None,
    "sign 0.001": lambda top_k: law("sign"),
    "sign 0.01": lambda top_k: law("sign", 0.01),
    "sign 0.02 annealed to 0.001": lambda top_k: law("sign", annealed(0.02, 40, 40, 0.001)),
    "proportional 0.01": lambda top_k: law("proportional"),
    "tanh 0.01": lambda top_k: law("tanh", 0.01),
    "window 1000, 0.01": lambda top_k: law("window"),
    "window 10, 0.01": lambda top_k: law("window", 10),
    "ewma 0.001": lambda top_k: law("ewma"),
    "ewma 0.01": lambda top_k: law("ewma", 0.01),
    "quantile": lambda top_k: law("quantile", top_k),
    "quantile, memory 0.5": lambda top_k: law("quantile", top_k, memory=0.5),
    "quantile, memory 0.9": lambda top_k: law("quantile", top_k, memory=0.9),
    "quantile, published price": lambda top_k: law("quantile", top_k, price="next"),
    "quantile-histogram": lambda top_k: law("quantile-histogram", top_k),
}


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def example_gate(batches: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Scores (tokens, 8): log share + Gumbel noise is largest for each expert as often as its share says."""
    for _ in range(batches):
        yield sigmoid(np.log(EXAMPLE) + generator.gumbel(size=(TOKENS, len(EXAMPLE))))


def drifting_gate(batches: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Scores (tokens, 64): a preference of standard deviation 0.7 per expert, noise of 1 per token."""
    preference = 0.7 * generator.standard_normal(64)
    for batch in range(batches):
        if batch == batches // 2:
            preference = 0.7 * generator.standard_normal(64)
        # Keeps its variance; half forgotten after 340 batches.
        preference = 0.998 * preference + 0.7 * np.sqrt(1 - 0.998**2) * generator.standard_normal(64)
        yield sigmoid(preference + generator.standard_normal((TOKENS, 64)))


def run(make: Make, scores: Iterator[np.ndarray], top_k: int) -> np.ndarray:
    """Loads (batches, experts) with the law in force, each batch served with the bias from before it."""
    bias_law = make(top_k)
    loads = []
    for batch in scores:
        loads.append(load_of(batch, None if bias_law is None else bias_law.bias, top_k))
        if bias_law is not None:
            bias_law.update(batch if bias_law.observes == "scores" else loads[-1])
    return np.array(loads)


def figures(loads: np.ndarray, top_k: int, shift: int) -> dict[str, float]:
    """Excess MaxVio per batch and global over the last quarter; batches from ``shift`` to 90 % removed."""
    batches, experts = loads.shape
    excess = max_violation(loads) - noise_floor(experts, TOKENS * top_k)
    last = loads[-(batches // 4) :]
    floor = noise_floor(experts, len(last) * TOKENS * top_k)
    smooth = np.convolve(excess[shift:], np.ones(LAGS) / LAGS, mode="valid")
    reached = np.flatnonzero(smooth <= 0.1 * excess[shift])
    return {
        "excess_batch": float(excess[-(batches // 4) :].mean()),
        "excess_global": float(max_violation(last.sum(axis=0)) - floor),
        "lag_batches": int(reached[0]) if reached.size else -1,
    }


def convergence(batches: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Gate -> law -> figures; every law meets the same scores."""
    gates = {"example": (example_gate, 1, 0), "drift": (drifting_gate, 6, batches // 2)}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (gate, top_k, shift) in gates.items():
        print(f"\n{name}: {batches} batches of {TOKENS} tokens, top-{top_k}")
        print("| law | excess MaxVio per batch | global | batches to 90 % |\n|---|---|---|---|")
        found[name] = {}
        for label, make in LAWS.items():
            row = figures(run(make, gate(batches, np.random.default_rng(seed)), top_k), top_k, shift)
            found[name][label] = row
            lag = "never" if row["lag_batches"] < 0 else f"{row['lag_batches']:.0f}"
            print(f"| {label} | {row['excess_batch']:.3f} | {row['excess_global']:.3f} | {lag} |", flush=True)
    return found


def update_microseconds(repeats: int, seed: int) -> dict[str, float]:
    """Median CPU time of one update of all gates of a model, per law that reads loads.

    Loads differ from batch to batch and do not answer to the bias, so rates are small enough to stay clear
    of the bounds; "held" meets the same one until every gate's bias is at
    its bound, which is where the bound costs most.
    """
    stream = np.random.default_rng(seed).integers(1, 1000, (16, LAYERS, EXPERTS))
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "sign": ("sign", {}),
        "sign, bound 0.5, leak 0.001": ("sign", {"limits": Limits(leak=0.001, bound=0.5)}),
        "proportional": ("proportional", {}),
        "tanh": ("tanh", {}),
        "window of 20": ("window", {"window_size": 20, "learning_rate": 1e-4}),
        "ewma": ("ewma", {"learning_rate": 1e-4}),
        HELD: ("sign", {"limits": Limits(bound=0.002)}),
    }
    found = {}
    for label, (name, keywords) in settings.items():
        bias_law, times = law(name, **keywords), []
        for i in range(repeats):
            loads = stream[0 if label == HELD else i % len(stream)]
            begin = time.process_time()
            bias_law.update(loads)
            times.append(time.process_time() - begin)
        found[label] = float(np.median(times[repeats // 4 :]) * 1e6)
        print(f"| {label} | {found[label]:.0f} |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few batches, seconds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    worked = summary([70, 20, 5, 3, 1, 1, 0, 0])
    print("70/20/5/3/1/1/0/0: " + ", ".join(f"{name} {value:.3f}" for name, value in worked.items()))
    print(f"\nmicroseconds per update, {LAYERS} layers x {EXPERTS} experts\n| law | us |\n|---|---|")
    update = update_microseconds(40 if arguments.quick else 400, arguments.seed)
    found = convergence(60 if arguments.quick else 600, arguments.seed)
    best = min(found["drift"].values(), key=lambda row: row["excess_batch"])
    print(
        json.dumps(
            {
                "name": "balance_laws",
                "update_us": round(max(us for label, us in update.items() if label != HELD), 1),
                "update_held_us": round(update[HELD], 1),
                "sign_excess_global": round(found["example"]["sign 0.001"]["excess_global"], 4),
                "drift_best_excess_batch": round(best["excess_batch"], 4),
                "drift_best_lag_batches": best["lag_batches"],
                "worked_example": {name: round(value, 4) for name, value in worked.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
