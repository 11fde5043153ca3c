"""A comparison: the same requests through several routers, and who is better beyond doubt."""

import trimtab as tt

comparison = tt.compare(
    "bursty",
    routers=["round-robin", "power-of-two", "least-outstanding"],
    seeds=[1, 2, 3],
    overrides={"workload.num_requests": 3000},
)
for metric in ("mean_ttft_ms", "p99_ttft_ms"):
    for router, estimate in comparison.table[metric].items():
        interval = estimate.value
        print(f"{metric:<14} {router:<20} {interval.value:8.1f}  [{interval.low:.1f}, {interval.high:.1f}]")
    print(f"{metric:<14} winner: {comparison.verdicts[metric].winner or 'nobody, beyond doubt'}\n")
