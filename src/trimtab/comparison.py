"""Which router is better, and is that sure? The same arrivals for every router, several seeds, intervals.

``compare`` runs routers x seeds on a thread pool (the compiled engine releases the GIL), keeps of each
run only a digest, and turns the digests into estimates with paired 95 % intervals and verdicts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.report import bootstrap
from trimtab.report.bootstrap import Interval
from trimtab.report.digest import HEAT_ROWS, METRICS, Digest, Metric, digest_run
from trimtab.routers import ROUTERS, get_router
from trimtab.scenario import Scenario, load_scenario

Floats = NDArray[np.float64]
Progress = Callable[[int, int, str], None]
RouterChoice = str | Callable[[Any], int]  # a name, or a router in Python
Draws = dict[tuple[int, str, str], Floats]  # (seed, router, metric key) -> (draws + 1,)

HEAT_CELLS = 24_000  # of all load maps together: what a report can carry
HEAT_BINS = 160


@dataclass(frozen=True)
class Estimate:
    """One router on one metric: the mean over seeds, and how it differs from two others.

    Differences are relative (0.1 = 10 % more than the other, the geometric mean over seeds) where
    ``relative`` says so, else in the metric's unit; intervals are paired, at 95 %.
    """

    value: Interval
    per_seed: tuple[float, ...]
    to_best: Interval
    to_baseline: Interval
    relative: bool


@dataclass(frozen=True)
class Verdict:
    """``winner`` only where the paired interval to every other router excludes zero; else who is tied."""

    best: str
    winner: str | None
    tied: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Routers on the same traffic. ``table[metric][router]`` is an Estimate; metrics nobody has are left out.

    ``complete`` is False where the comparison was interrupted; ``seeds`` are those that every router
    finished.
    """

    scenario: Scenario
    routers: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str
    table: dict[str, dict[str, Estimate]]
    verdicts: dict[str, Verdict]
    digests: tuple[Digest, ...]
    complete: bool

    def of(self, router: str) -> list[Digest]:
        """The digests of one router, one per seed."""
        return [digest for digest in self.digests if digest.router == router]


def compare(
    scenario: str | Path | dict[str, Any] | Scenario,
    routers: Sequence[RouterChoice] | str = "all",
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress | None = None,
    workers: int | None = None,
    *,
    baseline: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Comparison:
    """Run every router on ``scenario`` once per seed and say which is better on what.

    ``routers`` are names or functions (as for ``simulate``), or ``"all"``. ``progress(done, total,
    label)`` is called as runs finish. ``baseline`` (``round-robin``, else the first router) is what
    differences are quoted against. Ctrl-C stops after the runs in progress and returns what the whole
    seeds say; without a whole seed it raises KeyboardInterrupt.

    Raises
    ------
    TrimtabError
        for unknown or repeated routers or seeds, and for whatever is wrong with the scenario.
    """
    base = load_scenario(scenario, overrides)
    chosen = choose_routers(routers)
    _check_seeds(seeds)
    reference = _baseline(baseline, list(chosen))
    jobs = [(seed, name) for seed in seeds for name in chosen]  # seed by seed: interrupted, some are whole
    found = _run_all(base, chosen, jobs, progress, workers)
    whole = [seed for seed in seeds if all((seed, name) in found for name in chosen)]
    if not whole:
        raise KeyboardInterrupt
    digests = [found[seed, name] for seed in whole for name in chosen]
    return conclude(base, digests, reference, complete=len(found) == len(jobs))


def choose_routers(routers: Sequence[RouterChoice] | str) -> dict[str, RouterChoice]:
    """The routers to compare by name; ``"all"`` is every router made for comparison."""
    if routers == "all":
        routers = [info.name for info in ROUTERS.values() if info.compared]
    elif isinstance(routers, str):
        routers = [name.strip() for name in routers.split(",") if name.strip()]
    chosen: dict[str, RouterChoice] = {}
    for router in routers:
        name = get_router(router).name if isinstance(router, str) else getattr(router, "__name__", "python")
        if name in chosen:
            raise TrimtabError(f"router {name!r} is given twice")
        chosen[name] = name if isinstance(router, str) else router
    if len(chosen) < 2:
        raise TrimtabError(f"a comparison needs two routers or more; given: {', '.join(chosen) or 'none'}")
    return chosen


def _check_seeds(seeds: Sequence[int]) -> None:
    if not len(seeds):
        raise TrimtabError("a comparison needs at least one seed; three or more make it worth its name")
    if len(set(seeds)) < len(seeds):
        raise TrimtabError(f"seeds must differ; given: {', '.join(str(seed) for seed in seeds)}")
    if min(seeds) < 0:
        raise TrimtabError(f"seeds must be 0 or more; given: {min(seeds)}")


def _baseline(baseline: str | None, names: list[str]) -> str:
    if baseline is None:
        return "round-robin" if "round-robin" in names else names[0]
    name = baseline if baseline in names else get_router(baseline).name
    if name not in names:
        raise TrimtabError(f"baseline {baseline!r} is not among the compared routers: {', '.join(names)}")
    return name


def _run_all(
    base: Scenario,
    chosen: dict[str, RouterChoice],
    jobs: list[tuple[int, str]],
    progress: Progress | None,
    workers: int | None,
) -> dict[tuple[int, str], Digest]:
    """The digests of the jobs that finished: all of them unless Ctrl-C came."""
    found: dict[tuple[int, str], Digest] = {}
    rows = min(base.num_replicas, HEAT_ROWS) * len(chosen)
    bins = min(HEAT_BINS, max(24, HEAT_CELLS // rows))
    pool = ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1)
    try:
        futures: dict[Future[Digest], tuple[int, str]] = {
            pool.submit(run_digest, base, seed, name, chosen[name], bins): (seed, name) for seed, name in jobs
        }
        for future in as_completed(futures):
            job = futures[future]
            found[job] = future.result()
            if progress:
                progress(len(found), len(jobs), f"{job[1]}, seed {job[0]}")
    except KeyboardInterrupt:
        pass  # what is whole is still worth reporting
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return found


def run_digest(base: Scenario, seed: int, name: str, router: RouterChoice, bins: int) -> Digest:
    """One run, reduced; ``bins`` is the width of its load map."""
    from trimtab.simulation import simulate

    digest = digest_run(simulate(base, router=router, seed=seed), bins)
    return replace(digest, router=name)  # a router in Python leaves the scenario's name as it was


# --- what the runs say --------------------------------------------------------------------------


def conclude(
    scenario: Scenario,
    digests: Sequence[Digest],
    baseline: str,
    complete: bool = True,
    metrics: Sequence[Metric] = METRICS,
) -> Comparison:
    """Estimates and verdicts from the digests of every router at every seed, on ``metrics``."""
    routers = tuple(dict.fromkeys(digest.router for digest in digests))
    seeds = tuple(dict.fromkeys(digest.seed for digest in digests))
    assert len(digests) == len(routers) * len(seeds), "every router needs every seed"
    _check_paired(scenario, digests)
    drawn = _resample(digests, seeds, metrics)
    table: dict[str, dict[str, Estimate]] = {}
    verdicts: dict[str, Verdict] = {}
    for metric in metrics:
        values = {
            router: np.array([digest.summary[metric.key] for digest in digests if digest.router == router])
            for router in routers
        }
        known = [router for router in routers if np.isfinite(values[router]).all()]
        if not known:
            continue
        sign = -1.0 if metric.higher_is_better else 1.0
        best = min(known, key=lambda router: sign * values[router].mean())
        samples = {
            router: np.array([drawn[seed, router, metric.key] for seed in seeds]) if metric.source else None
            for router in known
        }
        row = _row({router: values[router] for router in known}, samples, best, baseline)
        table[metric.key] = {router: row.get(router, _unknown(values[router])) for router in routers}
        tied = [name for name in known if not row[name].to_best.excludes_zero]
        verdicts[metric.key] = Verdict(best, best if tied == [best] else None, tuple(tied))
    return Comparison(scenario, routers, seeds, baseline, table, verdicts, tuple(digests), complete)


def _check_paired(scenario: Scenario, digests: Sequence[Digest]) -> None:
    """Routers must have seen the same requests (in a closed loop at times of their own making)."""
    closed = scenario.workload.users is not None or scenario.workload.sessions is not None
    for seed in {digest.seed for digest in digests}:
        asked = {(d.lengths, 0.0 if closed else d.arrivals) for d in digests if d.seed == seed}
        assert len(asked) == 1, f"seed {seed}: routers saw different requests"


def _resample(digests: Sequence[Digest], seeds: tuple[int, ...], wanted: Sequence[Metric]) -> Draws:
    """Every metric under resampled blocks, drawn alike for all routers; entry 0 is the run itself."""
    found: Draws = {}
    for digest in digests:
        blocks = len(digest.blocks["good"].sums)
        weights = bootstrap.draw_weights(blocks, bootstrap.DRAWS, seeds.index(digest.seed))
        for source in {metric.source for metric in wanted if metric.source}:
            metrics = [metric for metric in wanted if metric.source == source]
            shares = tuple(metric.share for metric in metrics if metric.share is not None)
            quantiles = bootstrap.resampled_quantiles(digest.blocks[source], weights, shares)
            mean = bootstrap.resampled_mean(digest.blocks[source], weights)
            for metric in metrics:
                values = mean if metric.share is None else quantiles[shares.index(metric.share)]
                found[digest.seed, digest.router, metric.key] = values * _unit(
                    metric, digest, float(values[0])
                )
    return found


def _unit(metric: Metric, digest: Digest, point: float) -> float:
    """Goodput is a share of requests times a rate; other figures are in the unit of their source."""
    if metric.source != "good":
        return 1.0
    return digest.summary[metric.key] / point if point > 0 else 0.0


def _row(
    values: dict[str, Floats], samples: dict[str, Floats | None], best: str, baseline: str
) -> dict[str, Estimate]:
    """One metric. Figures that are all positive are compared as ratios: a busy seed weighs no more."""
    relative = all((x > 0).all() for x in values.values()) and all(
        (x > 0).all() for x in samples.values() if x is not None
    )

    def scale(x: Floats) -> Floats:
        return np.log(x) if relative else x

    centre = {name: scale(x) for name, x in values.items()}
    spread = {name: None if x is None else scale(x[:, 1:]) - scale(x[:, :1]) for name, x in samples.items()}

    def difference(name: str, other: str) -> Interval:
        if other not in centre:
            return Interval(np.nan, np.nan, np.nan)
        if other == name:
            return Interval(0.0, 0.0, 0.0)
        mine, theirs = spread[name], spread[other]
        moved = None if mine is None or theirs is None else mine - theirs
        found = bootstrap.interval(centre[name] - centre[other], moved)
        return Interval(*(float(np.expm1(x)) for x in found)) if relative else found

    def value(name: str) -> Interval:
        mean = float(values[name].mean())
        found = bootstrap.interval(centre[name], spread[name])
        if relative:
            low, high = (mean * float(np.exp(bound - found.value)) for bound in (found.low, found.high))
            return Interval(mean, low, high)
        return found

    return {
        name: Estimate(
            value(name),
            tuple(values[name].tolist()),
            difference(name, best),
            difference(name, baseline),
            relative,
        )
        for name in values
    }


def _unknown(values: Floats) -> Estimate:
    nothing = Interval(np.nan, np.nan, np.nan)
    return Estimate(nothing, tuple(values.tolist()), nothing, nothing, False)
