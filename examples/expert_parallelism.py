"""What an uneven load of expert-parallel ranks costs: iteration time over that of even ranks."""

from trimtab.exectime import build_tables
from trimtab.hardware import default_node, get_device, get_model
from trimtab.scenario import ReplicaGroup

MODEL, DEVICE, RANKS = "qwen3-30b-a3b", "h200", 8
TOKENS = (32, 128, 512, 2048, 8192, 32768)  # prompt tokens of one iteration
IMBALANCES = (1.0, 1.5, 2.0, 4.0)


def iteration_seconds(imbalance: float) -> list[float]:
    group = ReplicaGroup(model=MODEL, device=DEVICE, tp=RANKS, ep=RANKS, moe_imbalance=imbalance)
    device = get_device(DEVICE)
    tables = build_tables(group, get_model(MODEL), device, default_node(device), 256, TOKENS[-1], TOKENS[-1])
    return [tables.stage_seconds([], [(0, tokens)]) for tokens in TOKENS]


even = iteration_seconds(1.0)
print(f"{MODEL} on {RANKS} x {DEVICE}, ep={RANKS}: one prompt of so many tokens")
print("busiest / mean rank" + "".join(f"{tokens:>9,}" for tokens in TOKENS))
print("1.0, milliseconds  " + "".join(f"{seconds * 1000:9.2f}" for seconds in even))
for imbalance in IMBALANCES[1:]:
    ratios = [mine / base for mine, base in zip(iteration_seconds(imbalance), even, strict=True)]
    print(f"{imbalance}, times the even " + "".join(f"{ratio:8.2f}x" for ratio in ratios))
