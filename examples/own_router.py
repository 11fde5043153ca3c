"""A router of your own: a function of what a router may see, called for every request."""

import numpy as np

import trimtab as tt


def shortest_prompt_queue(view):
    """Fewest prompt tokens still to compute, per unit of speed."""
    return int(np.argmin(view.pending_prefill_tokens / view.speed))


few = {"workload.num_requests": 2000}
for router in ("round-robin", "least-outstanding", shortest_prompt_queue):
    summary = tt.summarize(tt.simulate("mixed-fleet", router=router, overrides=few))
    name = getattr(router, "__name__", router)
    print(f"{name:<24} p99 TTFT {summary['p99_ttft_ms']:>8.0f} ms")
