"""Expert placement against EPLB's published rule: how even, how long it takes, and what it is worth in time.

Loads, none of them measured here:

* published: vllm-ascend #3042 (the example of FlashLB), the README of EPLB, and 70/20/5/3/1/1/0/0 %;
* Zipf: the load of the r-th expert goes as r^-s, experts shuffled per layer, times lognormal noise of 0.3;
  s = 0.4 to 1.2 is a max/mean of experts of about 5 to 60 where there are 256 (above 7 was seen in
  checkpoints, arXiv 2503.05066);
* shifting: windows whose logarithms wander by 0.5 from window to window; placed on four, and judged on
  these and on the fifth, which nobody has seen.

Rebalancing starts from the placement for the first window. Times are of DeepSeek-V3's expert layers on
8 x H200 by the engine's cost.

    python benchmarks/expert_placement.py [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from trimtab.hardware import get_device, get_model
from trimtab.moe import even_placement, place, published_placement, rebalance
from trimtab.moe.placement_cost import expert_seconds

PUBLISHED: dict[str, tuple[list[list[float]], int, int]] = {  # loads, devices, redundant
    "FlashLB's example": ([[600, 560, 120, 120, 20, 10, 10, 10]], 8, 8),
    "EPLB's README": (
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ],
        8,
        4,
    ),
    "70/20/5/3/1/1/0/0": ([[70, 20, 5, 3, 1, 1, 0, 0]], 4, 4),
}
SHAPES = {  # experts, devices, redundant, layers
    "mixtral-8x7b": (8, 8, 8, 32),
    "qwen3-30b-a3b": (128, 8, 16, 48),
    "deepseek-v3": (256, 32, 32, 58),
}
EXPONENTS = (0.4, 0.8, 1.2)
LARGE, LARGE_EXPONENT = "deepseek-v3", 0.8


def zipf(layers: int, experts: int, exponent: float, generator: np.random.Generator) -> np.ndarray:
    """Loads (layers, experts)."""
    ranked = np.arange(1, experts + 1) ** -exponent
    shuffled = np.stack([generator.permutation(ranked) for _ in range(layers)])
    return shuffled * generator.lognormal(0, 0.3, shuffled.shape)


def compared(
    label: str, loads: np.ndarray, devices: int, redundant: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Per layer max/mean of EPLB's rule, ours, and ours with balanced split; CPU seconds of ours."""
    rule = published_placement(loads, devices, redundant).max_over_mean(loads)
    begin = time.process_time()
    placement = place(loads, devices, redundant)
    seconds = time.process_time() - begin
    ours, balanced = placement.max_over_mean(loads), placement.max_over_mean(loads, "balanced")
    print(
        f"| {label} | {devices} x {placement.slots.shape[2]} | {rule.mean():.4f} | {ours.mean():.4f} "
        f"| {ours.max():.4f} | {balanced.mean():.4f} | {seconds:.2f} |",
        flush=True,
    )
    return rule, ours, balanced, seconds


def evenness(layers_at_most: int, seed: int) -> dict[str, Any]:
    print("| loads | slots | EPLB | trimtab | worst layer | balanced split | CPU s |\n|" + "---|" * 7)
    figures: dict[str, Any] = {}
    for label, (loads, devices, redundant) in PUBLISHED.items():
        rule, ours, _, _ = compared(label, np.array(loads), devices, redundant)
        figures[f"{label}: EPLB, ours"] = [round(float(rule.mean()), 4), round(float(ours.mean()), 4)]
        if label.startswith("FlashLB"):
            figures["eplb_example_max_over_mean"] = round(float(ours[0]), 4)
    ratios = []
    for shape, (experts, devices, redundant, layers) in SHAPES.items():
        for exponent in EXPONENTS:
            generator = np.random.default_rng(seed)
            loads = zipf(min(layers, layers_at_most), experts, exponent, generator)
            rule, ours, _, seconds = compared(f"{shape}, Zipf {exponent}", loads, devices, redundant)
            ratios.append((ours / rule).mean())
            figures["worst_ratio_of_a_layer"] = max(
                figures.get("worst_ratio_of_a_layer", 0.0), round(float((ours / rule).max()), 6)
            )
            if shape == LARGE and exponent == LARGE_EXPONENT:
                figures["large_max_over_mean"] = round(float(ours.mean()), 4)
                figures["large_cpu_s"] = round(seconds, 3)
    figures["mean_ratio_zipf"] = round(float(np.mean(ratios)), 4)
    return figures


def shifting(layers: int, seed: int) -> dict[str, float]:
    """Several windows at once, and few moves when the load has shifted (32 devices, 256 + 32 experts)."""
    generator = np.random.default_rng(seed)
    windows = [zipf(layers, 256, 0.8, generator)]
    for _ in range(4):
        windows.append(windows[-1] * generator.lognormal(0, 0.5, windows[-1].shape))
    loads, unseen = np.stack(windows[:4]), windows[4]
    rule, ours = published_placement(loads, 32, 32), place(loads, 32, 32)
    now = place(loads[0], 32, 32)
    anew = published_placement(loads[1], 32, 32)
    print(f"\nmax/mean over 4 shifting windows: EPLB {rule.max_over_mean(loads).mean():.4f}, ", end="")
    print(f"trimtab {ours.max_over_mean(loads).mean():.4f}; over the next, unseen: ", end="")
    print(f"{rule.max_over_mean(unseen).mean():.4f}, {ours.max_over_mean(unseen).mean():.4f}")
    print("\n| after a shift | moved per layer | max/mean |\n|---|---|---|")
    print(f"| the old placement | 0 | {now.max_over_mean(loads[1]).mean():.4f} |")
    for moves in (4, 8, 16, 32):
        found = rebalance(now, loads[1], moves)
        moved, uneven = found.moved_from(now).mean(), found.max_over_mean(loads[1]).mean()
        print(f"| rebalanced | {moved:.1f} | {uneven:.4f} |")
        if moves == 16:
            figures = {"after_16_moves_max_over_mean": round(float(uneven), 4)}
    moved, uneven = anew.moved_from(now).mean(), anew.max_over_mean(loads[1]).mean()
    print(f"| EPLB anew | {moved:.1f} | {uneven:.4f} |")
    return {
        "shifting_eplb": round(float(rule.max_over_mean(loads).mean()), 4),
        "shifting_ours": round(float(ours.max_over_mean(loads).mean()), 4),
        "unseen_eplb": round(float(rule.max_over_mean(unseen).mean()), 4),
        "unseen_ours": round(float(ours.max_over_mean(unseen).mean()), 4),
        **figures,
        "eplb_anew_moved_per_layer": round(float(moved), 1),
    }


def seconds_of_iterations(layers: int, seed: int) -> dict[str, float]:
    """Expert layers' milliseconds per iteration of DeepSeek-V3 on 8 x H200, Zipf 0.6, 32 redundant."""
    model, device = get_model("deepseek-v3"), get_device("h200")
    loads = zipf(layers, 256, 0.6, np.random.default_rng(seed))
    order, bare = even_placement(layers, 256, 8), place(loads, 8)
    rule, ours = published_placement(loads, 8, 32), place(loads, 8, 32)
    cases = {
        "in order": (order, "even"),
        "trimtab, none redundant": (bare, "even"),
        "EPLB": (rule, "even"),
        "trimtab": (ours, "even"),
        "trimtab, fewest": (ours, "fewest"),
    }
    print(f"\n| tokens of the batch | {' | '.join(cases)} |\n|{'---|' * (len(cases) + 1)}")
    found: dict[int, dict[str, float]] = {}
    for tokens in (16, 64, 256, 1024, 4096, 16384):
        found[tokens] = {
            name: 1000 * float(expert_seconds(placement, loads, model, device, tokens, split=split))  # type: ignore[arg-type]
            for name, (placement, split) in cases.items()
        }
        print(f"| {tokens:,} | {' | '.join(f'{value:.2f}' for value in found[tokens].values())} |")
    return {
        "prefill_16384_ours_vs_in_order": round(found[16384]["trimtab"] / found[16384]["in order"], 4),
        "decode_64_even_split_vs_in_order": round(found[64]["trimtab"] / found[64]["in order"], 4),
        "decode_64_fewest_vs_even_split": round(found[64]["trimtab, fewest"] / found[64]["trimtab"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four layers of each model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    layers = 4 if arguments.quick else 58
    figures = evenness(layers, arguments.seed)
    figures |= shifting(layers, arguments.seed) | seconds_of_iterations(layers, arguments.seed)
    print(json.dumps({"name": "expert_placement", **figures}))


if __name__ == "__main__":
    main()
