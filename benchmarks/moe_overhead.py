"""What attaching costs: forwards of real Hugging Face model code with and without, and one law update.

Two families with hidden size 1024 and 64 experts, top-8, on 4,096 tokens (8 sequences): DeepSeek-V3, whose
bias is its router's own, and Qwen3-MoE, which has none, so that its top-k is wrapped. Forwards with and
without an attachment alternate in random order, and the median of the paired ratios of CPU time counts. The
strength is 0, so both choose the same experts and do the same work. Laws: ewma reads loads, quantile sorts
all scores.

    python benchmarks/moe_overhead.py [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import numpy as np
import torch

from trimtab.balance import law
from trimtab.moe import attach

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROWS, LENGTH = 8, 512
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "n_routed_experts": 64,
        "num_local_experts": 64,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "q_lora_rank": 256,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "head_dim": 64,
        "num_key_value_heads": 16,
    },
    "qwen3_moe": {"num_experts": 64, "num_key_value_heads": 4, "head_dim": 64},
}
LAYERS, EXPERTS = 60, 256


def model_of(family: str, seed: int) -> Any:
    """Two layers of a family at the size of the target, random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=1024,
        hidden_size=1024,
        moe_intermediate_size=256,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_experts_per_tok=8,
        **FAMILIES[family],
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def seconds(model: Any, ids: torch.Tensor) -> float:
    """CPU time of one forward."""
    begin = time.process_time()
    model(input_ids=ids, use_cache=False)
    return time.process_time() - begin


@torch.no_grad()
def overheads(family: str, laws: list[str], pairs: int, seed: int) -> dict[str, float]:
    """Law -> median paired overhead of a forward, per cent."""
    model = model_of(family, seed)
    generator = np.random.default_rng(seed)
    ids = torch.randint(0, 1024, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    seconds(model, ids)
    ratios: dict[str, list[float]] = {name: [] for name in laws}
    for _ in range(pairs):
        for name in generator.permutation(laws):
            times = {}
            for attached in generator.permutation([True, False]):
                if attached:
                    with attach(model, str(name), strength=0.0):
                        times[True] = seconds(model, ids)
                else:
                    times[False] = seconds(model, ids)
            ratios[str(name)].append(times[True] / times[False])
    return {name: 100 * (float(np.median(each)) - 1) for name, each in ratios.items()}


def update_microseconds(repeats: int, seed: int) -> float:
    """Median CPU time of one ewma update of all gates of a model, (60, 256), in one call."""
    stream = np.random.default_rng(seed).integers(1, 1000, (16, LAYERS, EXPERTS))
    bias_law = law("ewma", 1e-4, start=np.zeros((LAYERS, EXPERTS)))
    times = []
    for i in range(repeats):
        begin = time.process_time()
        bias_law.update(stream[i % len(stream)])
        times.append(time.process_time() - begin)
    return float(np.median(times[repeats // 4 :]) * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pairs, seconds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    laws, pairs = ["ewma", "quantile"], 2 if arguments.quick else 10
    found = {}
    print("| family | law | overhead of a forward |\n|---|---|---|")
    for family in FAMILIES:
        found[family] = overheads(family, laws, pairs, arguments.seed)
        for name in laws:
            print(f"| {family} | {name} | {found[family][name]:+.2f} % |", flush=True)
    update = update_microseconds(40 if arguments.quick else 1000, arguments.seed)
    print(f"one update of {LAYERS} x {EXPERTS}: {update:.0f} us")
    print(
        json.dumps(
            {
                "name": "moe_overhead",
                "overhead_percent": round(max(each["ewma"] for each in found.values()), 2),
                "overhead_quantile_percent": round(max(each["quantile"] for each in found.values()), 2),
                "update_us": round(update, 1),
                "tokens": ROWS * LENGTH,
                "pairs": pairs,
            }
        )
    )


if __name__ == "__main__":
    main()
