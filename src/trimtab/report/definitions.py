"""What every figure of a summary means: one line and one unit each, the source of docs and tooltips."""

from __future__ import annotations

from typing import NamedTuple

QUANTILES = {"median": 0.5, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", "std", *QUANTILES)


class Definition(NamedTuple):
    """``vidur`` is the name of the same quantity in Vidur's docs/metrics, where it has one."""

    unit: str
    title: str
    meaning: str
    vidur: str = ""


# One value per request, token or iteration; emitted as <statistic>_<name>.
FAMILIES: dict[str, Definition] = {
    "ttft_ms": Definition(
        "ms",
        "time to first token",
        "arrival to the end of the iteration that produces the first output token, queueing included",
        "prefill_time_e2e_cdf",
    ),
    "tpot_ms": Definition(
        "ms",
        "time per output token",
        "(finished - first token) / (output tokens - 1): the first token is not counted; a request"
        " with one output token has none",
    ),
    "itl_ms": Definition(
        "ms",
        "inter-token latency",
        "gap between one output token and the next of the same request, over all tokens but first ones;"
        " from a histogram with bins 0.2 % wide",
        "decode_token_execution_plus_preemption_times",
    ),
    "e2el_ms": Definition(
        "ms", "end-to-end latency", "arrival to the last output token", "request_e2e_time_cdf"
    ),
    "normalized_latency_ms": Definition(
        "ms/token",
        "normalised latency",
        "end-to-end latency / output tokens",
        "request_e2e_time_normalised_cdf",
    ),
    "scheduling_delay_ms": Definition(
        "ms",
        "scheduling delay",
        "arrival to the start of the first iteration that works on the request",
        "request_scheduling_delay_cdf",
    ),
    "execution_ms": Definition(
        "ms",
        "execution time",
        "time inside running iterations, work that a preemption threw away included",
        "request_execution_time_cdf",
    ),
    "execution_normalized_ms": Definition(
        "ms/token",
        "normalised execution time",
        "execution time / output tokens",
    ),
    "preempted_ms": Definition(
        "ms",
        "preempted time",
        "finished - scheduled - execution: begun, but in no running iteration (preempted, or passed over)",
        "request_preempted_time_cdf",
    ),
    "execution_plus_preemption_ms": Definition(
        "ms",
        "execution plus preemption",
        "first scheduled to the last output token",
        "request_execution_plus_preemption_times_cdf",
    ),
    "execution_plus_preemption_normalized_ms": Definition(
        "ms/token",
        "normalised execution plus preemption",
        "execution plus preemption / output tokens",
    ),
    "prefill_ms": Definition(
        "ms",
        "prefill time",
        "first scheduled to the first output token: time to first token less the scheduling delay",
        "prefill_time_execution_plus_preemption_cdf",
    ),
    "prefill_normalized_ms": Definition(
        "ms/token",
        "normalised prefill time",
        "prefill time / prompt tokens",
        "prefill_time_execution_plus_preemption_normalized_cdf",
    ),
    "decode_normalized_ms": Definition(
        "ms/token",
        "decode time per output token, Vidur's",
        "(finished - first token) / output tokens: what Vidur calls TPOT; the first token is counted",
        "decode_time_execution_plus_preemption_normalized_cdf",
    ),
    "inter_arrival_ms": Definition(
        "ms",
        "inter-arrival delay",
        "gap between an arrival and the one before it",
        "request_inter_arrival_delay_histogram",
    ),
    "prompt_tokens": Definition(
        "tokens",
        "prompt tokens",
        "tokens of the prompt, per request that arrived",
    ),
    "output_tokens": Definition(
        "tokens",
        "output tokens",
        "output tokens asked for, per request that arrived",
    ),
    "request_tokens": Definition(
        "tokens",
        "request tokens",
        "prompt plus output tokens, per request that arrived",
        "request_num_tokens_histogram",
    ),
    "prompt_output_ratio": Definition(
        "",
        "prompt to output ratio",
        "prompt tokens / output tokens, per request that arrived",
    ),
    "restarts": Definition(
        "", "restarts", "preemptions by recompute, per completed request", "request_num_restarts_histogram"
    ),
    "kv_transfer_ms": Definition(
        "ms",
        "KV transfer time",
        "end of the prefill until the KV is where the request decodes, links in use waited for; per completed"
        " request that decoded on another replica than its prefill",
    ),
    "batch_size": Definition(
        "sequences",
        "batch size",
        "sequences in an iteration, each iteration counting once",
        "batch_sizes_cdf",
    ),
    "batch_tokens": Definition(
        "tokens",
        "batch tokens",
        "tokens computed in an iteration: prefill chunks plus one per decode",
        "batch_num_tokens_cdf",
    ),
    "iteration_ms": Definition(
        "ms",
        "iteration time",
        "start of an iteration on the first pipeline stage to its end on the last",
        "batch_execution_time",
    ),
}

# One value per run.
SCALARS: dict[str, Definition] = {
    "completed": Definition("requests", "completed", "requests that got their last output token"),
    "failed": Definition(
        "requests", "failed", "requests rejected or not finished when the run ended: submitted - completed"
    ),
    "rejected": Definition("requests", "rejected", "requests that admission control turned away"),
    "aborted": Definition("requests", "aborted", "requests whose client gave up waiting"),
    "crashed": Definition(
        "requests",
        "crashed",
        "requests lost to a crash, or to a fleet that never came back, with no retry left",
    ),
    "retries": Definition("", "retries", "further attempts after a crash, all requests"),
    "duration": Definition("s", "duration", "first arrival to the end of the run (the last completion)"),
    "total_input_tokens": Definition("tokens", "input tokens", "prompt tokens of completed requests"),
    "total_output_tokens": Definition("tokens", "output tokens", "output tokens of completed requests"),
    "request_throughput": Definition("requests/s", "request throughput", "completed / duration"),
    "request_goodput": Definition(
        "requests/s",
        "goodput",
        "completed requests that meet every bound of the SLO / duration; none without an SLO",
    ),
    "slo_attainment": Definition(
        "share", "SLO attainment", "requests that meet every bound of the SLO / requests submitted"
    ),
    "output_throughput": Definition(
        "tokens/s", "output throughput", "output tokens of completed requests / duration"
    ),
    "total_token_throughput": Definition(
        "tokens/s", "token throughput", "prompt and output tokens of completed requests / duration"
    ),
    "preemptions": Definition("", "preemptions", "preemptions by recompute, all requests"),
    "preemptions_per_request": Definition("", "preemptions per request", "preemptions / requests submitted"),
    "iterations": Definition("", "iterations", "batches run, all replicas"),
    "iterations_recorded": Definition(
        "",
        "iterations recorded",
        "iterations kept in the table, on which the batch distributions rest",
    ),
    "mean_queue_length": Definition(
        "requests", "queue length", "requests waiting at a replica: mean over time and replicas"
    ),
    "mean_running": Definition(
        "requests", "running requests", "requests holding KV at a replica: mean over time and replicas"
    ),
    "busy_share": Definition(
        "share", "busy share", "share of time that a pipeline stage computes", "busy_time_percent"
    ),
    "mfu": Definition(
        "share",
        "model FLOPs utilisation",
        "FLOPs of the model (2 x tokens x parameters + attention) / busy time / peak, over all replicas",
        "mfu",
    ),
    "kv_utilization": Definition(
        "share", "KV utilisation", "KV blocks in use / blocks: mean over time and blocks", "memory_usage"
    ),
    "kv_peak": Definition(
        "share", "KV peak", "highest share of KV blocks in use at any moment at any replica"
    ),
    "prefix_hit_rate": Definition(
        "share",
        "prefix hit rate",
        "share of prompt tokens found in the prefix cache instead of computed; none without prefix caching",
    ),
    "tokens_per_step": Definition(
        "tokens",
        "tokens per step",
        "output tokens / decode steps of requests, with speculation: accepted drafts and one; none without",
    ),
    "kv_link_utilization": Definition(
        "share",
        "KV link utilisation",
        "share of time that a replica that prefills sends KV, mean over these; none without disaggregation",
    ),
    "availability": Definition(
        "share", "availability", "time in which replicas were up / duration, mean over replicas"
    ),
    "class_fairness": Definition(
        "",
        "class fairness",
        "Jain index over classes of (tokens of completed requests / tokens asked for); 1 is even",
    ),
    "cost": Definition(
        "USD",
        "cost",
        "price per hour of each replica x hours in which it was paid for: ordered, serving or leaving",
    ),
    "cost_per_hour": Definition("USD", "cost per hour", "cost / duration in hours"),
    "cost_per_million_output_tokens": Definition(
        "USD", "cost per million output tokens", "cost / output tokens of completed requests x 1,000,000"
    ),
    "cost_per_thousand_requests": Definition(
        "USD", "cost per 1,000 requests", "cost / completed requests x 1,000"
    ),
    "replica_hours": Definition("h", "replica hours", "hours in which each replica was paid for, summed"),
    "mean_replicas": Definition("replicas", "replicas", "replicas that are paid for, mean over the duration"),
    "peak_replicas": Definition("replicas", "most replicas", "most replicas paid for at any moment"),
    "scale_ups": Definition(
        "replicas", "replicas called", "times that autoscaling ordered a replica or took a leaving one back"
    ),
    "scale_downs": Definition(
        "replicas", "replicas sent away", "times that autoscaling cancelled an order or drained a replica"
    ),
}

# How evenly a quantity is spread over the replicas; emitted as load_<quantity>_<measure>.
LOADS: dict[str, str] = {
    "requests": "requests routed to each replica",
    "tokens": "tokens computed by each replica",
    "busy": "busy time of each replica",
    "outstanding": "requests waiting or running at each replica, averaged over the time that requests arrive",
}
MEASURES: dict[str, Definition] = {
    "cv": Definition("", "CV", "coefficient of variation (standard deviation / mean); 0 is even"),
    "jain": Definition("", "Jain index", "(sum x)^2 / (n sum x^2); 1 is even, 1/n is all on one"),
    "max_over_mean": Definition("", "max / mean", "the busiest replica against the average; 1 is even"),
}

# One row per replica, in replicas.csv. Times are those in which the replica is paid for.
REPLICA_COLUMNS: dict[str, Definition] = {
    "replica": Definition("", "replica", "index, as in the request table"),
    "group": Definition("", "group", "name of the replica's group"),
    "device": Definition("", "device", "device of the group"),
    "speed": Definition("", "speed", "relative to the fastest of the fleet"),
    "requests": Definition("requests", "requests", "requests routed to it"),
    "request_share": Definition("share", "request share", "of all routed requests"),
    "token_share": Definition("share", "token share", "of all tokens computed"),
    "finished": Definition("requests", "finished", "requests that it completed"),
    "preemptions": Definition("", "preemptions", "preemptions by recompute"),
    "iterations": Definition("", "iterations", "batches run"),
    "prefill_tokens": Definition(
        "tokens", "prefill tokens", "prompt tokens computed, recomputed ones included"
    ),
    "decode_tokens": Definition("tokens", "decode tokens", "tokens generated by decode steps"),
    "busy_share": Definition(
        "share", "busy share", "share of time that a stage computes", "busy_time_percent"
    ),
    "mfu": Definition("share", "MFU", "model FLOPs / busy time / peak", "mfu"),
    "kv_utilization": Definition("share", "KV mean", "KV blocks in use, mean over time", "memory_usage"),
    "kv_peak": Definition("share", "KV peak", "highest share of KV blocks in use"),
    "prefix_hit_rate": Definition(
        "share", "hits", "share of prompt tokens found in the prefix cache instead of computed"
    ),
    "mean_queue_length": Definition("requests", "queue", "requests waiting, mean over time"),
    "mean_running": Definition("requests", "running", "requests holding KV, mean over time"),
}

WORDS = {"mean": "mean", "std": "standard deviation", "median": "median"}


def all_keys() -> list[str]:
    """Every key that ``summarize`` emits, in its order."""
    keys = list(SCALARS)
    keys += [f"load_{quantity}_{measure}" for quantity in LOADS for measure in MEASURES]
    return keys + [f"{statistic}_{name}" for name in FAMILIES for statistic in STATISTICS]


def define(key: str) -> Definition:
    """The definition of a summary key, statistic included.

    Raises KeyError for a key that ``summarize`` never emits.

    >>> define("p99_ttft_ms").title
    'p99 time to first token'
    """
    if key in SCALARS:
        return SCALARS[key]
    if key.startswith("load_"):
        quantity, _, measure = key.removeprefix("load_").partition("_")
        base = MEASURES[measure]
        return Definition(base.unit, f"{base.title} of {quantity}", f"{base.meaning}; of {LOADS[quantity]}")
    statistic, _, name = key.partition("_")
    if statistic not in STATISTICS:
        raise KeyError(key)
    base = FAMILIES[name]
    word = WORDS.get(statistic, statistic)
    return Definition(base.unit, f"{word} {base.title}", base.meaning, base.vidur)
