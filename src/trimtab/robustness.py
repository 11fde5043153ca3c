"""The robustness matrix: a suite of clusters and traffic on which routers are judged side by side.

A cell is a fleet, a kind of arrivals, a load, what prompts share, how old the router's signals are, and
whether a replica fails. The suite varies one factor at a time around a base, then adds the combinations
that hurt. Loads are shares of a saturation that is measured first. ``run_suite`` stores each finished cell
under the hash of all that it depends on, so that an interrupted suite goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from trimtab.comparison import RouterChoice, choose_routers, conclude, run_digest
from trimtab.engine.dtypes import Status
from trimtab.engine.jit import CACHE_DIRECTORY
from trimtab.errors import TrimtabError
from trimtab.report.digest import METRICS, Digest
from trimtab.result import Result
from trimtab.routers import get_router
from trimtab.scenario import Scenario, load_scenario

FORMAT = 1
BASELINE = "least-outstanding"
REQUESTS = 20_000  # of a run, where nothing else is asked
SATURATION_REQUESTS = 8_000  # several times what the batches of a fleet hold
JUDGED = ("p99_ttft_ms", "request_goodput", "mean_ttft_ms", "mean_e2el_ms")

Progress = Callable[[int, int, str], None]
Json = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One scenario of the suite; ``load`` in per cent of saturation."""

    fleet: str
    arrivals: str
    load: int
    prompts: str
    signals: str
    failure: bool = False

    @property
    def name(self) -> str:
        """For example ``mixed/gamma/80/sessions/1s``."""
        parts = (self.fleet, self.arrivals, str(self.load), self.prompts, self.signals)
        return "/".join(parts) + ("/failure" if self.failure else "")


# Both fleets serve Llama 3 8B with vLLM's scheduler and prefix caching, on eight devices.
ENGINE: Json = {"model": "llama-3-8b", "scheduler": {"name": "vllm_v1", "prefix_caching": True}}
FLEETS: dict[str, list[Json]] = {
    "uniform": [{"name": "all", "device": "a100-80", "count": 8, **ENGINE}],
    "mixed": [
        {"name": "new", "device": "h100", "count": 2, **ENGINE},
        {"name": "old", "device": "a100-80", "count": 3, **ENGINE},
        {"name": "small", "device": "l40s", "count": 3, **ENGINE},
    ],
}
PROMPTS: dict[str, Json] = {
    "plain": {"max_tokens": 8192},
    "sessions": {"sessions": {"turns": 5, "think_s": 5, "max_context": 8192}},
    "shared": {"max_tokens": 8192, "prefixes": {"groups": 32, "tokens": 1024, "zipf": 1.0, "share": 0.9}},
}
BURST = {"factor": 3.0, "burst_s": 6.0, "every_s": 30.0}
BURST_MEAN = 1 + (BURST["factor"] - 1) * BURST["burst_s"] / BURST["every_s"]  # times the rate between bursts
SIGNALS: dict[str, Json] = {"fresh": {}, "1s": {"refresh_s": 1.0}, "15s": {"refresh_s": 15.0}}
CELLS: tuple[Cell, ...] = (
    # one factor at a time
    Cell("uniform", "poisson", 60, "plain", "fresh"),
    Cell("uniform", "poisson", 80, "plain", "fresh"),
    Cell("uniform", "poisson", 95, "plain", "fresh"),
    Cell("uniform", "gamma", 80, "plain", "fresh"),
    Cell("uniform", "burst", 80, "plain", "fresh"),
    Cell("uniform", "poisson", 80, "sessions", "fresh"),
    Cell("uniform", "poisson", 80, "shared", "fresh"),
    Cell("uniform", "poisson", 80, "plain", "1s"),
    Cell("uniform", "poisson", 80, "plain", "15s"),
    Cell("mixed", "poisson", 60, "plain", "fresh"),
    Cell("mixed", "poisson", 80, "plain", "fresh"),
    Cell("mixed", "poisson", 95, "plain", "fresh"),
    Cell("mixed", "gamma", 80, "plain", "fresh"),
    Cell("mixed", "burst", 80, "plain", "fresh"),
    Cell("mixed", "poisson", 80, "sessions", "fresh"),
    Cell("mixed", "poisson", 80, "shared", "fresh"),
    Cell("mixed", "poisson", 80, "plain", "1s"),
    Cell("mixed", "poisson", 80, "plain", "15s"),
    # what hurts together
    Cell("uniform", "gamma", 95, "plain", "fresh"),
    Cell("uniform", "gamma", 80, "plain", "15s"),
    Cell("uniform", "poisson", 95, "sessions", "fresh"),
    Cell("uniform", "gamma", 80, "sessions", "15s"),
    Cell("uniform", "gamma", 80, "shared", "1s"),
    Cell("uniform", "burst", 95, "shared", "fresh"),
    Cell("mixed", "gamma", 95, "sessions", "fresh"),
    Cell("mixed", "gamma", 80, "sessions", "1s"),
    Cell("mixed", "gamma", 80, "shared", "15s"),
    Cell("mixed", "burst", 60, "shared", "15s"),
    Cell("mixed", "burst", 80, "sessions", "1s"),
    Cell("mixed", "gamma", 95, "plain", "1s"),
    # a replica crashes, and comes back
    Cell("uniform", "poisson", 80, "plain", "fresh", failure=True),
    Cell("uniform", "gamma", 80, "sessions", "1s", failure=True),
    Cell("uniform", "poisson", 80, "shared", "15s", failure=True),
    Cell("mixed", "poisson", 80, "plain", "fresh", failure=True),
    Cell("mixed", "gamma", 80, "sessions", "fresh", failure=True),
    Cell("mixed", "burst", 60, "plain", "1s", failure=True),
)


def suite() -> tuple[Cell, ...]:
    """The cells that this version can simulate."""
    return tuple(cell for cell in CELLS if not cell.failure or "faults" in Scenario.model_fields)


def scenario_of(cell: Cell, saturation: float, requests: int = REQUESTS) -> Scenario:
    """The scenario of a cell; ``saturation`` in requests per second, of its fleet and prompts."""
    rate = float(f"{cell.load / 100 * saturation:.4g}")
    arrivals: Json = {"kind": cell.arrivals, "qps": rate}
    if cell.arrivals == "gamma":
        arrivals["cv"] = 3.0
    if cell.arrivals == "burst":
        arrivals |= {"qps": float(f"{rate / BURST_MEAN:.4g}"), **BURST}
    data = _common(cell.fleet, cell.prompts, requests, arrivals)
    data |= {"name": cell.name, "signals": SIGNALS[cell.signals]}
    if cell.failure:
        data["faults"] = _crash(requests / rate)
    return load_scenario(data)


def _common(fleet: str, prompts: str, requests: int, arrivals: Json) -> Json:
    return {
        "workload": {"arrivals": arrivals, "num_requests": requests, **PROMPTS[prompts]},
        "replicas": FLEETS[fleet],
        "router": BASELINE,
        "slo": {"ttft_ms": 1000, "tpot_ms": 100},
    }


def _crash(seconds: float) -> Json:
    """The first replica is lost for a tenth of the time that requests arrive, from a third on."""
    down, up = round(seconds / 3, 1), round(seconds / 3 + seconds / 10, 1)
    return {
        "events": [
            {"kind": "crash", "replica": 0, "at_s": down},
            {"kind": "recover", "replica": 0, "at_s": up},
        ]
    }


# --- how much a fleet can carry -----------------------------------------------------------------


@cache
def find_saturation(fleet: str, prompts: str) -> float:
    """Requests per second that the fleet can sustain behind the baseline router.

    Measured by a burst: all requests at time zero, and how fast they leave while every replica is
    busy. A burst of sessions leaves nothing of the prefix caches, which is not how they are served
    later; for them the rate is raised from there until first tokens come late.
    """
    from trimtab.simulation import simulate

    requests = SATURATION_REQUESTS
    burst = simulate(_common(fleet, prompts, requests, {"kind": "static"}))
    rate = steady_rate(burst)
    if prompts != "sessions":
        return rate
    for _ in range(SEARCH_STEPS):
        faster = rate * SEARCH_FACTOR
        run = simulate(_common(fleet, prompts, requests, {"kind": "poisson", "qps": faster}))
        if run.summary()["p90_ttft_ms"] > LATE_MS:
            break
        rate = faster
    return rate


SEARCH_STEPS, SEARCH_FACTOR = 24, 1.05
LATE_MS = 1000.0  # a tenth of the first tokens later than this: the queue is growing


def steady_rate(result: Result) -> float:
    """Completions per second, the sum over replicas of each one's rate while 20 to 80 % of its own finish."""
    total = 0.0
    done = result.requests[result.requests["status"] == Status.FINISHED]
    for replica in range(len(result.replicas)):
        times = np.sort(done["finished"][done["replica"] == replica])
        first, last = int(0.2 * len(times)), int(0.8 * len(times))
        if last > first:
            total += (last - first) / max(float(times[last] - times[first]), 1e-9)
    return total


# --- running ------------------------------------------------------------------------------------


def choose(routers: Sequence[RouterChoice] | str) -> dict[str, RouterChoice]:
    """The routers by name; the baseline is always among them."""
    if isinstance(routers, str) and routers != "all":
        routers = [name.strip() for name in routers.split(",") if name.strip()]
    if routers != "all":
        known = [get_router(each).name if isinstance(each, str) else "" for each in routers]
        routers = [*routers] if BASELINE in known else [BASELINE, *routers]
    return choose_routers(routers)


def run_suite(
    folder: str | Path,
    routers: Sequence[RouterChoice] | str = "all",
    seeds: Sequence[int] = (0, 1, 2),
    requests: int = REQUESTS,
    cells: Sequence[Cell] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Json:
    """Run every cell with every router at every seed; what ``robustness.json`` holds.

    Finished cells lie in ``folder``/cells and are not run again. Ctrl-C keeps them: the result then
    has ``complete`` False. ``progress(done, total, label)`` counts runs.

    Raises
    ------
    TrimtabError
        for unknown routers, no seeds, or a folder that cannot be written.
    """
    chosen = choose(routers)
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise TrimtabError(f"seeds must be different and 0 or more; given: {list(seeds)}")
    wanted = tuple(cells if cells is not None else suite())
    store = Path(folder) / "cells"
    pool = ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1)
    finished: dict[str, Json] = {}
    rates: dict[str, float] = {}
    total = len(wanted) * len(chosen) * len(seeds)
    try:
        store.mkdir(parents=True, exist_ok=True)
        rates = _saturations(wanted, pool)
        scenarios = {
            cell.name: scenario_of(cell, rates[f"{cell.fleet}/{cell.prompts}"], requests) for cell in wanted
        }
        files = {
            name: store / f"{_key(scenario, chosen, seeds)}.json" for name, scenario in scenarios.items()
        }
        finished = {name: _load(path) for name, path in files.items() if path.is_file()}
        finished = {name: found for name, found in finished.items() if found}
        done = len(finished) * len(chosen) * len(seeds)
        if progress:
            progress(done, total, "")
        waiting = [cell.name for cell in wanted if cell.name not in finished]
        for name, outcome, runs in _run_cells(waiting, scenarios, chosen, seeds, pool):
            if outcome is not None:
                write_atomically(files[name], json.dumps(outcome))
                finished[name] = outcome
            if progress:
                progress(done + runs, total, name)
    except KeyboardInterrupt:
        pass  # finished cells are stored
    except OSError as error:
        raise TrimtabError(f"cannot write {error.filename or store}: {error.strerror or error}") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return {
        "name": "robustness",
        "format": FORMAT,
        "trimtab": trimtab.__version__,
        "complete": len(finished) == len(wanted),
        "baseline": BASELINE,
        "routers": list(chosen),
        "seeds": list(seeds),
        "requests": requests,
        "saturation": rates,
        "cells": [finished[cell.name] for cell in wanted if cell.name in finished],
    }


def _saturations(cells: Sequence[Cell], pool: ThreadPoolExecutor) -> dict[str, float]:
    pairs = sorted({(cell.fleet, cell.prompts) for cell in cells})
    futures = {f"{fleet}/{kind}": pool.submit(find_saturation, fleet, kind) for fleet, kind in pairs}
    return {name: future.result() for name, future in futures.items()}


def _run_cells(
    names: list[str],
    scenarios: dict[str, Scenario],
    chosen: dict[str, RouterChoice],
    seeds: Sequence[int],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[str, Json | None, int]]:
    """(cell, what it found once it is whole, runs done so far), one per finished run."""
    jobs: dict[Future[Digest], str] = {}
    digests: dict[str, dict[tuple[str, int], Digest]] = {name: {} for name in names}
    queue = [(name, router, seed) for name in names for seed in seeds for router in chosen]
    queue.reverse()
    runs = 0
    while queue or jobs:
        while queue and len(jobs) < LOOKAHEAD:  # few digests in memory, and no core idle
            name, router, seed = queue.pop()
            jobs[pool.submit(run_digest, scenarios[name], seed, router, chosen[router], 1)] = name
        for future in wait(jobs, return_when=FIRST_COMPLETED).done:
            name, digest = jobs.pop(future), future.result()
            digests[name][digest.router, digest.seed] = digest
            runs += 1
            whole = len(digests[name]) == len(chosen) * len(seeds)
            outcome = _outcome(name, scenarios[name], chosen, seeds, digests.pop(name)) if whole else None
            yield name, outcome, runs


LOOKAHEAD = 64


def _outcome(
    name: str,
    scenario: Scenario,
    chosen: dict[str, RouterChoice],
    seeds: Sequence[int],
    digests: dict[tuple[str, int], Digest],
) -> Json:
    """What is kept of a cell: per router the figures, their intervals, and ratios to the baseline."""
    ordered = [digests[router, seed] for router in chosen for seed in seeds]
    metrics = [metric for metric in METRICS if metric.key in JUDGED]
    table = conclude(scenario, ordered, BASELINE, metrics=metrics).table
    rows: dict[str, Json] = {}
    for router in chosen:
        ttft, good = table["p99_ttft_ms"][router], table["request_goodput"][router]
        own = [digests[router, seed].summary for seed in seeds]
        rows[router] = {
            "p99_ttft_s": ttft.value.value / 1e3,
            "goodput": good.value.value,
            "low": ttft.value.low / 1e3,
            "high": ttft.value.high / 1e3,
            "ratio": [1 + x for x in ttft.to_baseline],
            "goodput_interval": [good.value.low, good.value.high],
            "goodput_difference": list(good.to_baseline),
            "goodput_relative": good.relative,
            "mean_ttft_s": table["mean_ttft_ms"][router].value.value / 1e3,
            "mean_e2e_s": table["mean_e2el_ms"][router].value.value / 1e3,
            "hit_rate": _mean([each["prefix_hit_rate"] for each in own]),
            "attainment": _mean([each["slo_attainment"] for each in own]),
            "failed": sum(int(each["failed"]) for each in own),
            "unbeaten": not ttft.to_best.excludes_zero,
        }
    arrivals = scenario.workload.arrivals.model_dump(mode="json")
    return {"name": name, "digest": scenario.digest(), "arrivals": arrivals, "routers": _plain(rows)}


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _plain(data: Any) -> Any:
    """What JSON cannot say is null."""
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not np.isfinite(data) else data


def _key(scenario: Scenario, chosen: dict[str, RouterChoice], seeds: Sequence[int]) -> str:
    """Changes with the scenario, the routers, the seeds, and the compiled sources themselves."""
    routers = [name if isinstance(router, str) else f"python:{name}" for name, router in chosen.items()]
    engine = Path(CACHE_DIRECTORY).name
    content = [FORMAT, trimtab.__version__, engine, scenario.digest(), routers, list(seeds)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _load(path: Path) -> Json:
    """A stored cell; nothing where the file is damaged."""
    try:
        found = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) and "routers" in found else {}


def write_atomically(path: Path, text: str) -> None:
    """The file is there and whole, or as it was."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
