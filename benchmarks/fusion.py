"""Gates between modalities on real data: weights, accuracy and use, against rivals and the first sketch.

* standing: three data sets that come with Python packages (see `trimtab.fusion.datasets`; two are downloaded
  once, and skipped where there is no network) x methods x seeds; the same halves and initial weights for
  every method of a seed; intervals are Student's t over seeds, differences paired by seed;
* long: 500 epochs of the first data set;
* recovery: a model trained into a collapse (99.4 % for one modality), then balanced;
* cost: CPU time of a training step with the gate over one with a bare softmax, interleaved, median of
  ratios, at the shapes of aligned CMU-MOSEI (batch 32) and of the first data set's small model. Random
  features: the time does not depend on them.

    python benchmarks/fusion.py [--quick] [--seeds N] [--data FOLDER ...]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.errors import TrimtabError
from trimtab.fusion import FusionModel, GateNetwork, ModalityGate
from trimtab.fusion.collapse import recover
from trimtab.fusion.compare import OURS, PLAIN, Plan, Store, best_rival, compare
from trimtab.fusion.datasets import STANDING, load
from trimtab.fusion.page import signed_points
from trimtab.fusion.train import Recipe
from trimtab.fusion.views import Views

MOSEI = {"text": (50, 768), "vision": (50, 35), "audio": (50, 74)}
STEPS = 500  # to recover within
SETTLED = 100  # epochs of the long run before which weights may be anywhere


class Softmax(nn.Module):
    """The gate of a model that balances nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, present: Tensor | None = None) -> Tensor:
        return torch.softmax(self.network(*inputs), -1)


def data_sets(given: list[str], quick: bool) -> tuple[list[Views], list[str]]:
    """(data, why something is left out)."""
    found, skipped = [], []
    for source in given or (STANDING[-1:] if quick else STANDING):
        try:
            found.append(load(source))
        except TrimtabError as error:  # noqa: PERF203 - three at most
            if given:
                raise
            skipped.append(f"{source}: {error}")
    return found, skipped


def print_data_set(each: dict[str, Any]) -> None:
    dominant, total = each["dominant"], len(each["modalities"])
    print(f"\n{each['name']}: {each['samples']} samples, dominant {dominant}")
    print(f"| method | accuracy | vs plain | without {dominant} | vs plain | weights | Shapley shares |")
    print("|" + "---|" * 7)
    for name, row in each["methods"].items():
        weights = " ".join(f"{row['weights'][index][0]:.3f}" for index in range(total))
        shares = " ".join(f"{share:.2f}" for share in row["shapley_shares"])
        print(
            f"| {name} | {row['accuracy'][0]:.4f} | {signed_points(row['accuracy_difference'])} "
            f"| {row['without_dominant'][0]:.4f} | {signed_points(row['without_dominant_difference'])} "
            f"| {weights} | {shares} |",
            flush=True,
        )


def standing_figures(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the tables say about our method."""
    ours = {each["name"]: each["methods"][OURS] for each in found}
    rivals = {each["name"]: best_rival(each) for each in found}
    accuracy = {name: row["accuracy_difference"] for name, row in ours.items()}
    without = {name: row["without_dominant_difference"] for name, row in ours.items()}
    behind = {name: row["without_dominant"][0] - rivals[name][1].value for name, row in ours.items()}
    first = found[0]["methods"]
    return {
        "max_weight_error": rounded(ours[found[0]["name"]]["weight_error"]),
        "max_weight_error_each": {name: rounded(row["weight_error"]) for name, row in ours.items()},
        "accuracy_difference": {name: list(map(rounded, each)) for name, each in accuracy.items()},
        "data_sets_less_accurate": sum(high < 0 for _, _, high in accuracy.values()),
        "without_dominant_difference": {name: list(map(rounded, each)) for name, each in without.items()},
        "without_dominant_low": rounded(min(low for _, low, _ in without.values())),
        "best_rival": {name: rival for name, (rival, _) in rivals.items()},
        "without_dominant_vs_best_rival": rounded(min(behind.values())),
        "plain_weights": [rounded(weight[0]) for weight in first[PLAIN]["weights"]],
        "literal_weights": [rounded(weight[0]) for weight in first["literal"]["weights"]],
        "balanced_alone_without_dominant_difference": {
            each["name"]: list(map(rounded, each["methods"]["balanced"]["without_dominant_difference"]))
            for each in found
        },
    }


def rounded(value: float) -> float:
    return round(float(value), 4)


def long_figures(long: dict[str, Any]) -> dict[str, Any]:
    """Weights and bias from epoch 100 to the last one, and those of the literal rule."""
    print("\n| long run | weights at the end | largest error | bias at the end |\n|---|---|---|---|")
    figures: dict[str, Any] = {}
    for name, rows in long["methods"].items():
        target = np.full(len(long["modalities"]), 0.15)
        target[long["modalities"].index(long["dominant"])] = 1 - target[1:].sum()
        late = [w for epoch, w in zip(rows["epoch"], rows["test_weights"], strict=True) if epoch > SETTLED]
        error = float(np.abs(np.array(late or rows["test_weights"][-1:]) - target).max())
        bias = max(map(abs, rows["bias"][-1]))
        print(
            f"| {name} | {np.round(rows['test_weights'][-1], 3)} | {error:.3f} "
            f"| {np.round(rows['bias'][-1], 2)} |"
        )
        if name == OURS:
            figures |= {"max_weight_error_long": rounded(error), "largest_bias_long": rounded(bias)}
        elif name == "literal":
            figures |= {"literal_weight_error_long": rounded(error), "literal_bias_long": rounded(bias)}
    return figures


def recovery_figures(data: Views, dominant: str, plan: Plan) -> dict[str, Any]:
    """The slowest of up to five seeds."""
    steps = []
    print(
        "\n| collapse, seed | weights | recovered, steps | weights at the end | spread | accuracy | after |"
    )
    print("|" + "---|" * 7)
    for seed in range(min(5, plan.seeds)):
        found = recover(data, dominant, Recipe(PLAIN, 10, plan.batch_size(data), seed=seed), STEPS + 100)
        steps.append(found.steps if found.steps is not None else STEPS + 100)
        print(
            f"| {seed} | {np.round(found.start, 4)} | {found.steps} | {np.round(found.weights[-1][1], 3)} "
            f"| {found.spread:.4f} | {found.accuracy_before:.4f} | {found.accuracy_after:.4f} |"
        )
    return {"collapse_start": list(map(rounded, found.start)), "recovery_steps": max(steps)}


def cost(shapes: dict[str, tuple[int, ...]], batch: int, rounds: int, steps: int) -> float:
    """Fraction that a step with the gate takes longer than one with a softmax."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(batch, *shape, generator=generator) for shape in shapes.values()]
    labels = torch.randint(0, 7, (batch,), generator=generator)
    names = list(shapes)

    def trainer(gate: Any) -> Any:
        model = FusionModel(shapes, 7, gate)
        optimizer = torch.optim.Adam(model.parameters())

        def seconds() -> float:
            begin = time.process_time()
            for _ in range(steps):
                loss = nn.functional.cross_entropy(model(views), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return time.process_time() - begin

        return seconds

    bare = trainer(Softmax(GateNetwork([64] * len(names))))
    ours = trainer(ModalityGate(names, GateNetwork([64] * len(names)), dominant=names[0]))
    bare(), ours()
    # Each between two of the other, so that a machine that slows down favours neither.
    ratios = []
    for _ in range(rounds):
        before, here, after = bare(), ours(), bare()
        ratios.append(2 * here / (before + after))
    return float(np.median(ratios)) - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data", nargs="+", default=[], help="named data sets, folders or MMSA files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    found, skipped = data_sets(options.data, options.quick)
    for line in skipped:
        print(f"skipped: {line}")
    plan = Plan(
        seeds=2 if options.quick else options.seeds, epochs=8 if options.quick else 30, grid_seeds=0,
        long_epochs=40 if options.quick else 500,
    )  # fmt: skip
    result = compare(found, plan, Store(None))
    for each in result["data"]:
        print_data_set(each)
    figures = {"name": "fusion", "seeds": plan.seeds, **standing_figures(result["data"])}
    figures |= long_figures(result["long"])
    figures |= recovery_figures(found[0], result["data"][0]["dominant"], plan)
    rounds = 5 if options.quick else 31
    figures["cost_per_step"] = rounded(cost(MOSEI, 32, rounds, 4))
    figures["cost_per_step_small_model"] = rounded(cost(found[0].shapes, 50, rounds, 50))
    figures["skipped_data"] = [line.partition(":")[0] for line in skipped]
    figures["cpu_s"] = round(time.process_time() - begin, 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
