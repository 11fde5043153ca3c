"""One request of a run: where it went, what it met there, and where its time went."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import NONE, Status
from trimtab.errors import TrimtabError
from trimtab.report.metrics import span
from trimtab.report.words import number
from trimtab.result import Result

PHASES = {  # name -> (what it is called, column at its begin, column at its end)
    "queue": ("waiting for a first batch", "arrival", "scheduled"),
    "prefill": ("prefill", "scheduled", "first_token"),
    "decode": ("decode, pauses included", "first_token", "finished"),
    "ttft": ("time to first token", "arrival", "first_token"),
    "e2el": ("end to end", "arrival", "finished"),
}


def request_story(result: Result, request: int) -> dict[str, Any]:
    """All that is known of request ``request`` (its place in the run, from 0).

    Times are ms, ``at_s`` is s since the first arrival; a phase that it did not complete is NaN.
    ``longer_than``: share of the completed requests whose phase was shorter. ``met``: requests waiting
    and running on every replica when it came, (R,) each. Raises `TrimtabError` for a number out of range.
    """
    table = result.requests
    if not 0 <= request < len(table):
        raise TrimtabError(f"--request {request}: the run has requests 0 to {len(table) - 1}")
    row = table[request]
    done = table[table["status"] == Status.FINISHED]
    phases, longer_than = phases_ms(row), {}
    for name, (_, begin, end) in PHASES.items():
        took = phases[name] / 1e3
        known = math.isfinite(took)  # then it is itself among those that are done
        longer_than[name] = float((done[end] - done[begin] < took).mean()) if known else math.nan
    start, _ = span(result)
    return {
        "request": request,
        "status": Status(int(row["status"])).name.lower(),
        "at_s": float(row["arrival"]) - start,
        "replica": int(row["replica"]),
        "router": result.scenario.router.name,
        "prompt_tokens": int(row["prefill_tokens"]),
        "output_tokens": int(row["decode_tokens"]),
        "cached_prompt_tokens": int(row["hit_tokens"]),
        "preemptions": int(row["preemptions"]),
        "retries": int(row["retries"]),
        "phases_ms": phases,
        "longer_than": longer_than,
        "met": met(table, float(row["arrival"]), len(result.replicas)),
    }


def phases_ms(row: Any) -> dict[str, float]:
    """Each of `PHASES` of a request (its row), ms; NaN where it was not served to its end."""
    done = row["status"] == Status.FINISHED
    return {
        name: 1e3 * float(row[end] - row[begin]) if done else math.nan
        for name, (_, begin, end) in PHASES.items()
    }


def met(table: NDArray[Any], now: float, replicas: int) -> dict[str, list[int]]:
    """Requests waiting and running on each replica just before ``now``, of those that were served."""
    served = table[
        (table["replica"] != NONE) & (table["arrival"] < now) & (table["status"] == Status.FINISHED)
    ]
    waiting = served["replica"][served["scheduled"] > now]
    running = served["replica"][(served["scheduled"] <= now) & (served["finished"] > now)]
    return {
        "waiting": np.bincount(waiting, minlength=replicas).tolist(),
        "running": np.bincount(running, minlength=replicas).tolist(),
    }


def request_lines(story: dict[str, Any]) -> list[str]:
    """The story for the terminal."""
    cached = f" ({story['cached_prompt_tokens']:,} from the cache)" if story["cached_prompt_tokens"] else ""
    lines = [
        f"request {story['request']}, {story['status']}: {story['prompt_tokens']:,} prompt tokens{cached} and"
        f" {story['output_tokens']:,} output tokens, at {number(story['at_s'], 's')}",
        place_line(story),
    ]
    for name, (words, _, _) in PHASES.items():
        took = story["phases_ms"][name]
        if math.isfinite(took):
            share = number(story["longer_than"][name], "share")
            lines.append(f"  {words:26} {number(took, 'ms'):>9}   longer than {share} of the requests")
    counts = [name for name in ("preemptions", "retries") if story[name]]
    return [*lines, *(f"  {name:26} {story[name]:>9}" for name in counts)]


def place_line(story: dict[str, Any]) -> str:
    """Where it went, and what it met there and would have met elsewhere."""
    replica = story["replica"]
    if replica == NONE:
        return f"{story['router']} sent it nowhere"
    here = " and ".join(f"{counts[replica]} {what}" for what, counts in story["met"].items())
    others = []
    for what, counts in story["met"].items():
        rest = counts[:replica] + counts[replica + 1 :]
        if rest:
            low, high = min(rest), max(rest)
            others.append(f"{low} {what}" if low == high else f"{low} to {high} {what}")
    elsewhere = f"; the others {' and '.join(others)}" if others else ""
    return f"{story['router']} sent it to replica {replica}, which had {here}{elsewhere}"
