"""How many replicas does a load need? Try until 99 % of the requests meet the scenario's SLO."""

import trimtab as tt

for replicas in range(3, 9):
    result = tt.simulate("azure-conv", overrides={"replicas.count": replicas, "workload.num_requests": 4000})
    summary = tt.summarize(result)
    share = summary["request_goodput"] / summary["request_throughput"]
    print(f"{replicas} replicas: {share:.1%} of the requests are good")
    if share >= 0.99:
        break
