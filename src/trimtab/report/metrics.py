"""A run in figures: ``summarize`` for the run, ``request_columns`` per request, ``replica_rows`` per replica.

Definitions are in ``trimtab.report.definitions``. Key names are those of ``vllm bench serve`` where it
has one. There is no warm-up: every request counts, as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import ITL_BINS, ITL_GAMMA, ITL_LOWEST, NONE, Power, Status
from trimtab.report.definitions import FAMILIES, MEASURES, QUANTILES, REPLICA_COLUMNS, STATISTICS
from trimtab.report.load import evenness, while_arriving
from trimtab.result import Result
from trimtab.scenario import Slo

Floats = NDArray[np.float64]
UNKNOWN = float("nan")


def summarize(result: Result) -> dict[str, float]:
    """Every figure of the run, by key; NaN where the run has no such figure.

    Times are milliseconds where the key ends in ``_ms``, else seconds.
    """
    rows = replica_rows(result)
    summary = _scalars(result, rows)
    summary |= _loads(result)
    distributions = request_columns(result) | _iteration_columns(result)
    for name in FAMILIES:
        if name == "itl_ms":
            figures = _histogram_statistics(result.itl_counts)
        else:
            figures = statistics(distributions[name])
        summary |= {f"{statistic}_{name}": figures[statistic] for statistic in STATISTICS}
    return summary


def span(result: Result) -> tuple[float, float]:
    """(start, end) of the run, s: the first arrival, and the last thing that happened."""
    arrival = result.requests["arrival"]
    arrival = arrival[np.isfinite(arrival)]
    start = float(arrival.min()) if len(arrival) else 0.0
    end = max(float(result.replicas["last_change"].max(initial=0.0)), start)
    finished = result.requests["finished"][_done(result)]
    return start, max(end, float(finished.max(initial=0.0)))


def paid_share(result: Result) -> Floats:
    """(R,) share of the run in which each replica was paid for; exactly 1 where it never was off."""
    start, end = span(result)
    replicas = result.replicas
    since = np.maximum(replicas["on_since"], start)
    running = np.where(replicas["power"] == Power.OFF, 0.0, np.maximum(end - since, 0.0))
    return np.asarray((replicas["on"] + running) / (end - start) if end > start else 1.0 + 0.0 * running)


def _done(result: Result) -> NDArray[np.bool_]:
    return np.asarray(result.requests["status"] == Status.FINISHED)


def request_columns(result: Result) -> dict[str, Floats]:
    """The distributions over requests, by family name; completed requests unless it says otherwise.

    Each is (completed,), but ``tpot_ms`` (completed with two output tokens or more,), ``kv_transfer_ms``
    (moved,) and the five about what was asked (arrived,), ``inter_arrival_ms`` one less.
    """
    table = result.requests
    arrived = np.isfinite(table["arrival"])
    arrival = np.sort(table["arrival"][arrived])
    asked_prompt = table["prefill_tokens"][arrived].astype(np.float64)
    asked_output = table["decode_tokens"][arrived].astype(np.float64)

    done = np.flatnonzero(_done(result))
    at = {name: table[name][done] for name in ("arrival", "scheduled", "first_token", "finished")}
    prompt = table["prefill_tokens"][done].astype(np.float64)
    output = table["decode_tokens"][done].astype(np.float64)
    begun = 1e3 * (at["finished"] - at["scheduled"])
    execution = 1e3 * table["execution"][done]
    decode = 1e3 * (at["finished"] - at["first_token"])
    prefill = 1e3 * (at["first_token"] - at["scheduled"])
    total = 1e3 * (at["finished"] - at["arrival"])
    several = output > 1
    return {
        "ttft_ms": 1e3 * (at["first_token"] - at["arrival"]),
        "tpot_ms": decode[several] / (output[several] - 1),
        "e2el_ms": total,
        "normalized_latency_ms": total / output,
        "scheduling_delay_ms": 1e3 * (at["scheduled"] - at["arrival"]),
        "execution_ms": execution,
        "execution_normalized_ms": execution / output,
        "preempted_ms": np.maximum(begun - execution, 0.0),  # rounding may leave -1e-12
        "execution_plus_preemption_ms": begun,
        "execution_plus_preemption_normalized_ms": begun / output,
        "prefill_ms": prefill,
        "prefill_normalized_ms": prefill / np.maximum(prompt, 1.0),
        "decode_normalized_ms": decode / output,
        "inter_arrival_ms": 1e3 * np.diff(arrival),
        "prompt_tokens": asked_prompt,
        "output_tokens": asked_output,
        "request_tokens": asked_prompt + asked_output,
        "prompt_output_ratio": asked_prompt / asked_output,
        "restarts": table["preemptions"][done].astype(np.float64),
        "kv_transfer_ms": 1e3 * table["transfer"][_moved(result)],
    }


def _moved(result: Result) -> NDArray[np.bool_]:
    """(N,) which requests finished on another replica than their prefill."""
    table = result.requests
    handed_over = (table["prefill_replica"] != NONE) & result.replicas["hands_over"].any()
    return np.asarray(handed_over & (table["prefill_replica"] != table["replica"])) & _done(result)


def _iteration_columns(result: Result) -> dict[str, Floats]:
    table = result.iterations
    return {
        "batch_size": (table["prefills"] + table["decodes"]).astype(np.float64),
        "batch_tokens": (table["prefill_tokens"] + table["decodes"]).astype(np.float64),
        "iteration_ms": 1e3 * (table["end"] - table["start"]),
    }


def statistics(values: Floats) -> dict[str, float]:
    """Mean, standard deviation and quantiles (linear between order statistics, as NumPy's default)."""
    if not len(values):
        return dict.fromkeys(STATISTICS, UNKNOWN)
    ordered = np.sort(values)
    where = np.array(list(QUANTILES.values())) * (len(ordered) - 1)
    low = where.astype(np.int64)
    high = np.minimum(low + 1, len(ordered) - 1)
    quantiles = ordered[low] + (where - low) * (ordered[high] - ordered[low])
    return {"mean": float(values.mean()), "std": float(values.std())} | {
        name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)
    }


def itl_centres_ms() -> Floats:
    """(ITL_BINS,) the geometric middle of each bin of the inter-token histogram, ms."""
    return np.asarray(1e3 * ITL_LOWEST * ITL_GAMMA ** (np.arange(ITL_BINS) + 0.5))


def _histogram_statistics(counts: NDArray[np.int64]) -> dict[str, float]:
    total = int(counts.sum())
    if total == 0:
        return dict.fromkeys(STATISTICS, UNKNOWN)
    centres = itl_centres_ms()
    mean = float(counts @ centres) / total
    spread = float(counts @ (centres - mean) ** 2) / total
    below = np.cumsum(counts)
    ranks = [1 + int(share * (total - 1)) for share in QUANTILES.values()]
    found = centres[np.searchsorted(below, ranks)]
    return {"mean": mean, "std": spread**0.5} | {
        name: float(value) for name, value in zip(QUANTILES, found, strict=True)
    }


def meets_slo(result: Result) -> NDArray[np.bool_]:
    """(N,) which requests finished inside every bound of the scenario's SLO (all, without bounds).

    The ``itl_ms`` bound is held against the request's mean gap between tokens: gaps are kept as one
    histogram of the run, not per request. Requests of one output token have no gap to miss.
    """
    scenario, table = result.scenario, result.requests
    if not scenario.classes:
        return _done(result) & _within(table, scenario.slo)
    good = np.zeros(len(table), np.bool_)
    for index, one in enumerate(scenario.classes):
        good |= (table["klass"] == index) & _within(table, one.slo or scenario.slo)
    return _done(result) & good


def _within(table: NDArray[Any], slo: Slo) -> NDArray[np.bool_]:
    good = np.ones(len(table), np.bool_)
    with np.errstate(invalid="ignore"):  # unfinished requests may hold inf or NaN
        if slo.ttft_ms is not None:
            good &= 1e3 * (table["first_token"] - table["arrival"]) <= slo.ttft_ms
        if slo.e2e_ms is not None:
            good &= 1e3 * (table["finished"] - table["arrival"]) <= slo.e2e_ms
        bounds = [bound for bound in (slo.tpot_ms, slo.itl_ms) if bound is not None]
        if bounds:
            gaps = np.maximum(table["decode_tokens"] - 1, 1)
            good &= 1e3 * (table["finished"] - table["first_token"]) / gaps <= min(bounds)
    return good


def has_slo(result: Result) -> bool:
    """Whether the scenario sets any bound."""
    slos = [result.scenario.slo, *(one.slo for one in result.scenario.classes)]
    return any(bound is not None for slo in slos if slo for bound in slo.model_dump().values())


def _scalars(result: Result, rows: dict[str, Any]) -> dict[str, float]:
    table, replicas = result.requests, result.replicas
    done = _done(result)
    start, end = span(result)
    duration = end - start
    completed = int(done.sum())
    tokens_in = int(table["prefill_tokens"][done].sum(dtype=np.int64))
    tokens_out = int(table["decode_tokens"][done].sum(dtype=np.int64))
    good = int(meets_slo(result).sum()) if has_slo(result) else UNKNOWN
    preemptions = int(replicas["preemptions"].sum())
    paid = paid_share(result)
    prices = [result.groups[group].cost_per_hour for group in replicas["group"]]
    price = sum(each * share for each, share in zip(prices, paid.tolist(), strict=True))
    cost = price * duration / 3600
    flops, seconds = _work(result)
    kv_total = replicas["kv_total"] * paid
    return {
        "completed": completed,
        "failed": len(table) - completed,
        "rejected": int((table["status"] == Status.REJECTED).sum()),
        "aborted": int((table["status"] == Status.ABORTED).sum()),
        "crashed": int((table["status"] == Status.FAILED).sum()),
        "retries": int(table["retries"].sum()),
        "duration": duration,
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": _ratio(completed, duration),
        "request_goodput": _ratio(good, duration),
        "slo_attainment": _ratio(good, len(table)),
        "output_throughput": _ratio(tokens_out, duration),
        "total_token_throughput": _ratio(tokens_in + tokens_out, duration),
        "preemptions": preemptions,
        "preemptions_per_request": _ratio(preemptions, len(table)),
        "iterations": int(replicas["iterations"].sum()),
        "iterations_recorded": len(result.iterations),
        "mean_queue_length": _mean(rows["mean_queue_length"], paid),
        "mean_running": _mean(rows["mean_running"], paid),
        "busy_share": _mean(rows["busy_share"], paid),
        "mfu": _ratio(flops.sum(), seconds.sum()),
        "kv_utilization": _ratio((rows["kv_utilization"] * kv_total).sum(), kv_total.sum()),
        "kv_peak": float(rows["kv_peak"].max()),
        "prefix_hit_rate": _hit_rate(result),
        "tokens_per_step": _tokens_per_step(result),
        "kv_link_utilization": _link_utilization(result, duration),
        "availability": _availability(result),
        "class_fairness": class_fairness(result),
        "cost": cost,
        "cost_per_hour": float(price),
        "cost_per_million_output_tokens": _ratio(1e6 * cost, tokens_out),
        "cost_per_thousand_requests": _ratio(1e3 * cost, completed),
    } | _scaling(result, paid)


def _scaling(result: Result, paid: Floats) -> dict[str, float]:
    """How many replicas were paid for, and how often that was changed; NaN where nothing changes it."""
    start, end = span(result)
    replicas = result.replicas
    return {
        "replica_hours": float(paid.sum()) * (end - start) / 3600,
        "mean_replicas": float(paid.sum()),
        "peak_replicas": int(paid_over_time(result)[1].max()),
        "scale_ups": int(replicas["ordered"].sum()) if result.autoscaled else UNKNOWN,
        "scale_downs": int(replicas["released"].sum()) if result.autoscaled else UNKNOWN,
    }


def paid_over_time(result: Result) -> tuple[Floats, NDArray[np.int64]]:
    """(times (T,) s, replicas paid for from then on (T,)), from the start of the run."""
    start, _ = span(result)
    count = sum(group.count for group in result.scenario.replicas)
    if not result.autoscaled:
        count = len(result.replicas)
    table = result.scalings
    known = np.isin(table["power"], (Power.PROVISIONING, Power.OFF))  # the others were paid for before
    change = np.where(table["power"][known] == Power.OFF, -1, 1)
    order = np.lexsort((change, table["time"][known]))
    times = np.concatenate([[start], table["time"][known][order]])
    return times, count + np.concatenate([[0], np.cumsum(change[order])])


def _hit_rate(result: Result) -> float:
    """Share of prompt tokens that came from a prefix cache; NaN where no group has one."""
    if not any(group.scheduler.prefix_caching for group in result.scenario.replicas):
        return UNKNOWN
    hits = result.replicas["hit_tokens"].sum()
    return _ratio(hits, hits + result.replicas["prefill_done"].sum())


def _tokens_per_step(result: Result) -> float:
    """Of the replicas that speculate."""
    steps = result.replicas["decode_steps"]
    return _ratio(result.replicas["decode_done"][steps > 0].sum(), steps.sum())


def _link_utilization(result: Result, duration: float) -> float:
    """Share of time that the replicas that prefill send KV; NaN where nothing is handed over."""
    prefills = np.array([group.role != "decode" for group in result.scenario.replicas])
    senders = (result.replicas["hands_over"] == 1) & prefills[result.replicas["group"]]
    return _ratio(result.replicas["sending"][senders].sum(), duration * senders.sum())


def _availability(result: Result) -> float:
    """Share of the replicas' paid time in which they were up."""
    start, end = span(result)
    replicas = result.replicas
    since = np.where(replicas["up"] == 0, np.maximum(end - replicas["down_since"], 0.0), 0.0)
    paid = paid_share(result)
    down = float(np.minimum(replicas["down"] + since, (end - start) * paid).sum())
    return 1.0 - _ratio(down, (end - start) * paid.sum()) if end > start else UNKNOWN


def class_fairness(result: Result) -> float:
    """Jain's index of the classes' served shares; NaN with fewer than two classes."""
    count = len(result.scenario.classes)
    if count < 2:
        return UNKNOWN
    table = result.requests
    shares = np.array([served_share(table, table["klass"] == index) for index in range(count)])
    shares = shares[~np.isnan(shares)]
    squares = float((shares**2).sum())
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares > 0 else UNKNOWN


def served_share(table: NDArray[Any], mine: NDArray[np.bool_]) -> float:
    """Tokens of the completed among ``mine`` / tokens that they all asked for."""
    tokens = (table["prefill_tokens"] + table["decode_tokens"])[mine]
    asked = int(tokens.sum())
    return float(tokens[table["status"][mine] == Status.FINISHED].sum()) / asked if asked else UNKNOWN


def _mean(values: Floats, weights: Floats) -> float:
    """Mean over replicas, each by the time for which it was paid."""
    return float(np.average(values, weights=weights)) if weights.any() else UNKNOWN


def _ratio(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom > 0 else UNKNOWN


def _loads(result: Result) -> dict[str, float]:
    replicas, samples = result.replicas, result.samples
    arrival = result.requests["arrival"]
    kept = while_arriving(result.sample_times, arrival[np.isfinite(arrival)])
    loads: dict[str, Any] = {
        "requests": replicas["routed"],
        "tokens": replicas["prefill_done"] + replicas["decode_done"],
        "busy": replicas["busy"] / [result.groups[group].pp for group in replicas["group"]],
        "outstanding": (samples["waiting"] + samples["running"])[kept],
    }
    used = np.flatnonzero(paid_share(result) > 0)
    loads = {quantity: load[..., used] for quantity, load in loads.items()}
    found = {quantity: evenness(load) for quantity, load in loads.items()}
    return {f"load_{quantity}_{name}": found[quantity][name] for quantity in loads for name in MEASURES}


def _work(result: Result) -> tuple[Floats, Floats]:
    """Per replica: FLOPs per device, in units of the device's peak per second; busy seconds.

    ``busy`` sums over pipeline stages, each of which computes every token on its share of the model.
    """
    replicas = result.replicas
    groups = [result.groups[index] for index in replicas["group"]]
    tokens = (replicas["prefill_done"] + replicas["decode_done"]).astype(np.float64)
    linear = 2.0 * tokens * [group.params_per_device for group in groups]
    attention = replicas["attention_pairs"] * [group.attention_flops_per_pair for group in groups]
    stages = np.array([group.pp for group in groups], dtype=np.float64)
    return stages * (linear + attention) / [group.peak_flops for group in groups], replicas["busy"]


def replica_rows(result: Result) -> dict[str, Any]:
    """One array of length R per column of ``definitions.REPLICA_COLUMNS``."""
    replicas = result.replicas
    groups = [result.groups[index] for index in replicas["group"]]
    start, end = span(result)
    duration = np.maximum((end - start) * paid_share(result), 1e-12)
    stages = np.array([group.pp for group in groups], dtype=np.float64)
    tokens = (replicas["prefill_done"] + replicas["decode_done"]).astype(np.float64)
    flops, seconds = _work(result)
    kv_total = np.maximum(replicas["kv_total"], 1).astype(np.float64)
    rows: dict[str, Any] = {
        "replica": np.arange(len(replicas)),
        "group": np.array([group.name for group in groups]),
        "device": np.array([group.device for group in groups]),
        "speed": replicas["speed"],
        "requests": replicas["routed"],
        "request_share": replicas["routed"] / max(int(replicas["routed"].sum()), 1),
        "token_share": tokens / max(tokens.sum(), 1.0),
        "finished": replicas["finished"],
        "preemptions": replicas["preemptions"],
        "iterations": replicas["iterations"],
        "prefill_tokens": replicas["prefill_done"],
        "decode_tokens": replicas["decode_done"],
        "busy_share": replicas["busy"] / (stages * duration),
        "mfu": flops / np.where(seconds > 0, seconds, np.inf),
        "kv_utilization": replicas["kv_area"] / (kv_total * duration),
        "kv_peak": replicas["kv_peak"] / kv_total,
        "prefix_hit_rate": replicas["hit_tokens"]
        / np.maximum(replicas["hit_tokens"] + replicas["prefill_done"], 1),
        "mean_queue_length": replicas["waiting_area"] / duration,
        "mean_running": replicas["running_area"] / duration,
    }
    assert list(rows) == list(REPLICA_COLUMNS)
    return rows
