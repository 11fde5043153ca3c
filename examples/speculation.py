"""When does speculative decoding pay? One replica, four loads, good and bad drafts."""

import trimtab as tt

SPECULATION = {"tokens": 4, "draft_cost": 0.05}
print("mean TPOT / p99 TTFT by the probability that a draft is accepted, ms")
print("qps       off         0.5          0.7          0.9")
for qps in (0.5, 4, 6, 7):
    cells = []
    for acceptance in (None, 0.5, 0.7, 0.9):
        overrides = {"replicas.count": 1, "workload.num_requests": 2000, "workload.arrivals.qps": qps}
        if acceptance is not None:
            overrides["replicas.speculation"] = SPECULATION | {"acceptance": acceptance}
        summary = tt.summarize(tt.simulate("azure-conv", overrides=overrides))
        cells.append(f"{summary['mean_tpot_ms']:5.1f} / {summary['p99_ttft_ms']:5.0f}")
    print(f"{qps:3}", *cells)
