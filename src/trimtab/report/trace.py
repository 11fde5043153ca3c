"""A run as a Chrome/Perfetto trace: open trace.json at ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.engine.dtypes import Status
from trimtab.result import Result

# Perfetto stays quick up to about 100,000 events; a trace shows the beginning of longer runs.
MAX_ITERATIONS = 20_000
MAX_REQUESTS = 2_000
MAX_SAMPLES = 20_000  # load samples, all replicas


def write_trace(result: Result, path: str | Path) -> None:
    """One process per replica: its iterations, counters of queue and KV, and its requests' phases.

    Iterations carry sequences, tokens and KV blocks. Requests are asynchronous spans: queue, prefill,
    decode. The first ``MAX_ITERATIONS`` iterations and ``MAX_REQUESTS`` completed requests are
    written, counters up to where the iterations end. Times are microseconds of simulated time.
    """
    iterations = result.iterations[np.argsort(result.iterations["start"], kind="stable")][:MAX_ITERATIONS]
    cut = len(iterations) < len(result.iterations)
    horizon = float(iterations["end"].max()) if cut else float("inf")
    events: list[str] = list(_names(result))
    events.extend(_iteration_events(result, iterations))
    events.extend(_counter_events(result, horizon))
    events.extend(_request_events(result, horizon))
    with Path(path).open("w", encoding="ascii") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        file.write(",\n".join(events))
        file.write("\n]}\n")


def _names(result: Result) -> Iterator[str]:
    for index, replica in enumerate(result.replicas):
        group = result.groups[replica["group"]]
        name = f"replica {index} ({group.device})"
        yield json.dumps({"ph": "M", "pid": index, "name": "process_name", "args": {"name": name}})
        yield json.dumps(
            {"ph": "M", "pid": index, "name": "process_sort_index", "args": {"sort_index": index}}
        )
        for lane in range(group.pp):
            label = "iterations" if group.pp == 1 else f"iterations, batch {lane} in flight"
            yield json.dumps(
                {"ph": "M", "pid": index, "tid": lane, "name": "thread_name", "args": {"name": label}}
            )


def _iteration_events(result: Result, table: Any) -> Iterator[str]:
    lanes = np.zeros(len(table), dtype=np.int64)
    for index, replica in enumerate(result.replicas):
        mine = table["replica"] == index
        # batches in flight overlap in time; a track of the trace must not
        lanes[mine] = np.arange(mine.sum()) % result.groups[replica["group"]].pp
    kinds = np.where(table["prefills"] == 0, "decode", np.where(table["decodes"] == 0, "prefill", "mixed"))
    form = (
        '{"ph":"X","name":"%s","pid":%d,"tid":%d,"ts":%.3f,"dur":%.3f,"args":{"sequences":%d,"tokens":%d,'
        '"prefills":%d,"prefill_tokens":%d,"decodes":%d,"waiting":%d,"running":%d,"kv_blocks":%d}}'
    )
    return (
        form % row
        for row in _rows(
            kinds,
            table["replica"],
            lanes,
            1e6 * table["start"],
            1e6 * (table["end"] - table["start"]),
            table["prefills"] + table["decodes"],
            table["prefill_tokens"] + table["decodes"],
            table["prefills"],
            table["prefill_tokens"],
            table["decodes"],
            table["waiting"],
            table["running"],
            table["kv_used"],
        )
    )


def _counter_events(result: Result, horizon: float) -> Iterator[str]:
    replicas = len(result.replicas)
    step = max(1, -(-len(result.sample_times) * replicas // MAX_SAMPLES))
    form = (
        '{"ph":"C","name":"requests","pid":%d,"ts":%.3f,"args":{"waiting":%d,"running":%d}},\n'
        '{"ph":"C","name":"KV used %%","pid":%d,"ts":%.3f,"args":{"percent":%.2f}}'
    )
    for time, row in zip(result.sample_times[::step], result.samples[::step], strict=True):
        if time > horizon:
            return
        for index, sample in enumerate(row.tolist()):
            waiting, running, kv_used, _ = sample
            yield form % (index, 1e6 * time, waiting, running, index, 1e6 * time, 100 * kv_used)


def _request_events(result: Result, horizon: float) -> Iterator[str]:
    table = result.requests
    shown = np.flatnonzero((table["status"] == Status.FINISHED) & (table["finished"] <= horizon))[
        :MAX_REQUESTS
    ]
    form = '{"ph":"%s","cat":"request","name":"%s","id":%d,"pid":%d,"tid":0,"ts":%.3f%s}'
    row = table[shown]
    for index, replica, prompt, output, arrival, scheduled, first, last in _rows(
        shown,
        row["replica"],
        row["prefill_tokens"],
        row["decode_tokens"],
        1e6 * row["arrival"],
        1e6 * row["scheduled"],
        1e6 * row["first_token"],
        1e6 * row["finished"],
    ):
        facts = f',"args":{{"prompt_tokens":{prompt},"output_tokens":{output}}}'
        name = f"request {index}"
        yield form % ("b", name, index, replica, arrival, facts)
        for phase, begin, end in (
            ("queue", arrival, scheduled),
            ("prefill", scheduled, first),
            ("decode", first, last),
        ):
            yield form % ("b", phase, index, replica, begin, "")
            yield form % ("e", phase, index, replica, end, "")
        yield form % ("e", name, index, replica, last, "")


def _rows(*columns: Any) -> Iterable[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)
