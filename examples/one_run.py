"""One run: change a scenario, simulate it, read the figures and the table of requests."""

import numpy as np

import trimtab as tt

result = tt.simulate("azure-conv", overrides={"workload.num_requests": 2000, "replicas.count": 5})
summary = tt.summarize(result)
print(f"p99 TTFT {summary['p99_ttft_ms']:.0f} ms, goodput {summary['request_goodput']:.1f} requests/s")

requests = result.requests  # a NumPy table, one row per request, times in seconds
slowest = requests[np.argmax(requests["first_token"] - requests["arrival"])]
print(f"slowest first token: a prompt of {slowest['prefill_tokens']} tokens on replica {slowest['replica']}")
