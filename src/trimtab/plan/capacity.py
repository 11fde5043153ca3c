"""How much a cluster carries, and how few replicas do: answers with intervals.

Every load is tried with the same replications: replication k asks for the same tokens in the same order at
each load, so that what it finds rises smoothly with the load and crosses the service level once.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.plan.bounds import Bound, quantity
from trimtab.plan.estimate import Excess, crossing_interval, crossing_values, excess, worst
from trimtab.plan.ideal import ideal_rate
from trimtab.plan.scale import STEADY, mean_rate
from trimtab.plan.trial import Trial, fleets_of, run_trial
from trimtab.report.bootstrap import Interval
from trimtab.scenario import Scenario
from trimtab.workload import build_traffic

FEWEST_REQUESTS = 2000
STAYS = 10.0  # times as long as the median request stays, requests arrive
PROBES = (2, 4, 8)  # replications of a sequential test: more only where fewer do not tell
REPLICATIONS = (16, 32, 64, 128)  # of the final loads
PLENTY = 64  # with a quarter of them the interval must be half as wide as asked for: luck looks narrow too
KNOWN = math.log(2.0)  # half width of what is bounded, at the answer: from worse no interval is to be trusted
STEP = 0.03  # between them, as a share
WIDEST = 0.25
COARSE = 2.0  # intervals: loads as far apart as that get one in between
MOST_MOVES = 6  # until the crossing lies among the loads
GALLOP = 1.3
NEAR_IDEAL = 0.95
LONGEST = 20_000  # requests of a trial near what a perfect system carries
GROWTH = 1.25  # of the requests wanted: below, trials are not repeated
IDLE = 1e-3  # of the ideal load: where nothing queues any more
TOLERANCE = 0.03

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Capacity:
    """The greatest ``load`` (requests/s, 95 % interval) within ``bounds``.

    ``binding`` is the bound that gives way first; ``ideal`` the load of a perfect system on these replicas;
    ``figures`` the means over replications at the load tried nearest; ``close`` whether the interval is as
    narrow as was asked for; ``loads`` those that the answer rests on, ``values`` (replications,) what each
    replication says of the logarithm of the load (``estimate.crossing_values``).
    """

    scenario: Scenario
    bounds: tuple[Bound, ...]
    load: Interval
    binding: Bound
    ideal: float
    figures: dict[str, float]
    requests: int
    replications: int
    trials: int
    close: bool
    loads: tuple[float, ...]
    values: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class Size:
    """The fewest ``replicas`` that carry ``load``: at least ``low`` and at most ``high``, at 95 % each.

    ``ideal`` is how many a perfect system needs, ``tried`` what every size tried came to.
    ``figures`` are those of ``replicas``.
    """

    scenario: Scenario
    bounds: tuple[Bound, ...]
    load: float
    replicas: int
    low: int
    high: int
    ideal: int
    binding: Bound
    figures: dict[str, float]
    requests: int
    replications: int
    trials: int
    tried: dict[int, dict[str, float]]


@dataclass
class Trials:
    """Trials of one scenario, run in threads (the compiled engine releases the GIL), each once."""

    scenario: Scenario
    bounds: tuple[Bound, ...]
    requests: int
    rate: float  # requests/s of the scenario as it is
    workers: int | None = None
    progress: Progress | None = None
    found: dict[tuple[float, int, int], Trial] = field(default_factory=dict)

    def __enter__(self) -> Trials:
        self.pool = ThreadPoolExecutor(self.workers or os.cpu_count() or 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def run(self, loads: Iterable[float], seeds: range, replicas: int = 0) -> None:
        """Everything of ``loads`` x ``seeds`` that was not run yet; ``replicas`` 0: as in the scenario."""
        missing = [(load, replicas, seed) for load in loads for seed in seeds]
        missing = [each for each in missing if each not in self.found]
        jobs = {
            each: self.pool.submit(
                run_trial,
                self.scenario,
                self.bounds,
                self.requests,
                self.scenario.seed + each[2],
                each[0] / self.rate,
                each[1],
            )
            for each in missing
        }
        for each, job in jobs.items():
            self.found[each] = job.result()
            if self.progress:
                self.progress(len(self.found), 0, f"{each[0]:.4g} requests/s")

    def sums(self, load: float, seeds: range, replicas: int = 0) -> NDArray[np.float64]:
        """(R, bounds, 2) of trials that were run."""
        return np.array([self.found[load, replicas, seed].sums for seed in seeds])

    def probe(self, load: float, replicas: int = 0, counts: Sequence[int] = PROBES) -> tuple[int, Excess]:
        """A sequential test: (the bound that is worst, its excess), with replications until it is sure."""
        targets = [bound.target for bound in self.bounds]
        index, found = 0, Excess(0.0, math.inf)
        for count in counts:
            self.run([load], range(count), replicas)
            index, found = worst(self.sums(load, range(count), replicas), targets)
            if found.sure:
                break
        return index, found

    def means(self, load: float, replicas: int = 0) -> dict[str, float]:
        """Figures of the trials at one load, the mean over replications."""
        rows = [
            trial.figures for (at, size, _), trial in self.found.items() if (at, size) == (load, replicas)
        ]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


def greatest_load(
    scenario: Scenario,
    bounds: tuple[Bound, ...],
    tolerance: float = TOLERANCE,
    requests: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Capacity:
    """The greatest load at which every bound holds, within ``tolerance`` (relative half width) if it can be.

    Brackets, bisects with sequential tests, then lays a few loads around the answer and adds replications
    until the interval is narrow enough. ``requests`` is the number per trial.

    Raises
    ------
    TrimtabError
        for a closed loop, and where a bound cannot be met at any load: it says how far off.
    """
    with trials_of(scenario, bounds, requests, workers, progress) as trials:
        ideal = ideal_load(scenario, bounds)
        about = locate(trials, ideal, adapt=requests is None)
        return settle(trials, around(about, trials.requests), ideal, tolerance)


def trials_of(
    scenario: Scenario,
    bounds: tuple[Bound, ...],
    requests: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Trials:
    """Trials of ``requests`` each; without a number, as many as a good part of the ideal load takes."""
    rate = mean_rate(scenario)
    enough = requests or enough_requests(scenario, bounds, _first(ideal_load(scenario, bounds)) / rate)
    return Trials(scenario, bounds, enough, rate, workers, progress)


def locate(trials: Trials, ideal: float, adapt: bool) -> float:
    """Where the bounds stop to hold, within two steps; with ``adapt`` trials are made as long as it takes."""
    first = _first(ideal)
    while True:
        about = _bisect(trials, first, ideal)
        nearest = min({load for load, _, _ in trials.found}, key=lambda load: abs(load - about))
        wanted = _wanted(trials.means(nearest)["e2e_p50"], about)
        if about > NEAR_IDEAL * ideal:
            wanted = max(wanted, LONGEST)  # queues grow so slowly that a short run does not see it
        if not adapt or not trials.requests or wanted <= GROWTH * trials.requests:
            return about
        # Requests stay longer at that load than where it was looked up: runs were too short for it.
        trials.requests, first = wanted, _rounded(min(about, NEAR_IDEAL * ideal))
        trials.found.clear()


def _first(ideal: float) -> float:
    return _rounded(0.7 * ideal)


def around(load: float, requests: int) -> tuple[float, ...]:
    """Five loads for a start; three where trials of so many ``requests`` are dear."""
    places = (-1, 0, 1) if requests >= LONGEST else (-2, -1, 0, 1, 2)
    return tuple(_rounded(load * (1 + STEP) ** place) for place in places)


def _bisect(trials: Trials, first: float, ideal: float) -> float:
    """Where the bounds stop to hold, within two steps of the final loads."""
    low, high = _bracket(trials, first, ideal)
    while high / low > 1 + 2 * STEP:
        middle = _rounded(math.sqrt(low * high))
        if trials.probe(middle)[1].value > 0:
            high = middle
        else:
            low = middle
    return math.sqrt(low * high)


def ideal_load(scenario: Scenario, bounds: tuple[Bound, ...]) -> float:
    """Requests/s of a perfect system on the scenario's replicas (``ideal.ideal_rate``)."""
    requests = build_traffic(_sample(scenario).workload, scenario.seed).requests
    return ideal_rate(scenario, fleets_of(scenario, requests)[0], requests, bounds)


def _sample(scenario: Scenario) -> Scenario:
    """Enough requests to know their mean lengths."""
    if scenario.workload.arrivals.kind not in STEADY:
        return scenario
    workload = scenario.workload.model_copy(update={"num_requests": FEWEST_REQUESTS, "duration_s": None})
    return scenario.model_copy(update={"workload": workload})


def enough_requests(scenario: Scenario, bounds: tuple[Bound, ...], factor: float, replicas: int = 0) -> int:
    """Requests of a trial at ``factor`` times the scenario's load: 2,000, and as many as arrive while the
    median request stays ten times. 0 where the scenario's own span of time is what counts."""
    if scenario.workload.arrivals.kind not in STEADY:
        return 0
    trial = run_trial(scenario, bounds, FEWEST_REQUESTS, scenario.seed, factor, replicas)
    return _wanted(trial.figures["e2e_p50"], factor * mean_rate(scenario))


def _wanted(stay_s: float, load: float) -> int:
    wanted = STAYS * stay_s * load if math.isfinite(stay_s) else 0.0
    return max(FEWEST_REQUESTS, math.ceil(wanted / 500) * 500)


def _bracket(trials: Trials, first: float, ideal: float) -> tuple[float, float]:
    """(a load at which the bounds hold, one at which they do not)."""
    load = first
    index, found = trials.probe(load)
    if found.value <= 0:
        while found.value <= 0:
            if load > 1.5 * ideal:
                _say_none_binds(trials, load, ideal)
            low, load = load, _rounded(load * GALLOP)
            found = trials.probe(load)[1]
        return low, load
    while found.value > 0:
        if load < IDLE * ideal:
            _say_how_far(trials, load, index)
        high, load = load, _rounded(load / GALLOP**2)
        index, found = trials.probe(load)
    return load, high


def _say_how_far(trials: Trials, load: float, index: int) -> None:
    bound = trials.bounds[index]
    raise TrimtabError(
        f"{bound} cannot be met at any load: at {load:.3g} requests/s, where nothing queues,"
        f" {quantity(bound, trials.means(load))}"
    )


def _say_none_binds(trials: Trials, load: float, ideal: float) -> None:
    kept = ", ".join(str(bound) for bound in trials.bounds)
    raise TrimtabError(
        f"{kept} holds at any load, even at {load:.3g} requests/s; a perfect system carries {ideal:.3g}:"
        " bound the waiting too, as in ttft:p99<1s"
    )


def settle(
    trials: Trials, loads: Sequence[float], ideal: float, tolerance: float, least: int = 0
) -> Capacity:
    """Replications (``least`` or more) at ``loads`` until the interval is narrow and can be trusted; loads
    that it does not touch get no more of them."""
    targets = [bound.target for bound in trials.bounds]
    if trials.requests >= LONGEST:
        least = max(least, PLENTY)  # so close to the limit a few replications have most of the waits
    for count in REPLICATIONS:
        loads, answer, binding = _cover(trials, loads, range(count), fine=count >= least)
        if math.isnan(answer.low):
            continue
        sums = np.array([trials.sums(load, range(count))[:, binding] for load in loads])
        nearest = int(np.argmin([abs(load - answer.value) for load in loads]))
        known = excess(sums[nearest], targets[binding]).half
        half = (answer.high - answer.low) / 2 / answer.value
        narrow = half <= tolerance * min(1.0, math.sqrt(count / PLENTY))
        if count >= least and narrow and known <= KNOWN:
            break
        if count < REPLICATIONS[-1]:
            loads = loads[max(bisect_right(loads, answer.low) - 1, 0) : bisect_left(loads, answer.high) + 1]
    if math.isnan(answer.low):
        raise TrimtabError(
            f"no load between {loads[0]:.4g} and {loads[-1]:.4g} requests/s stands out as the greatest:"
            f" {trials.bounds[binding]} is met or missed by chance; try --requests {4 * trials.requests}"
        )
    return Capacity(
        trials.scenario, trials.bounds, answer, trials.bounds[binding], ideal, trials.means(loads[nearest]),
        trials.requests, count, len(trials.found), half <= tolerance, tuple(loads),
        crossing_values(np.array(loads), sums, targets[binding]),
    )  # fmt: skip


def _cover(
    trials: Trials, around: Sequence[float], seeds: range, fine: bool
) -> tuple[list[float], Interval, int]:
    """(loads, the crossing, the index of its bound): loads are added on both sides, ever farther away, until
    the crossing lies among them; if ``fine`` also in between, until they are as near to it as it is sure,
    since between loads the curve is taken to be straight."""
    step, loads, targets = STEP, list(around), [bound.target for bound in trials.bounds]
    for moves in range(MOST_MOVES):
        trials.run(loads, seeds)
        sums = np.array([trials.sums(load, seeds) for load in loads])
        answer, binding = _least(np.array(loads), sums, targets)
        if moves == MOST_MOVES - 1:
            break
        if math.isnan(answer.low):
            loads = [_rounded(loads[0] / (1 + step)), *loads, _rounded(loads[-1] * (1 + step))]
            step = min(2 * step, WIDEST)
            continue
        at = _rounded(answer.value)
        above = bisect_right(loads, answer.value)
        gap = loads[min(above, len(loads) - 1)] - loads[max(above - 1, 0)]
        if not fine or at in loads or gap <= COARSE * (answer.high - answer.low):
            break
        loads = sorted([*loads, at])
    return loads, answer, binding


def _least(
    loads: NDArray[np.float64], sums: NDArray[np.float64], targets: Sequence[float]
) -> tuple[Interval, int]:
    """The crossing that comes first, of ``sums`` (loads, R, bounds, 2); each end of its interval is the least
    of those of all bounds. A bound that is sure to cross only later does not count."""
    intervals = [crossing_interval(loads, sums[:, :, index], target) for index, target in enumerate(targets)]
    known = [index for index, interval in enumerate(intervals) if not math.isnan(interval.value)]
    if not known:
        return Interval(math.nan, math.nan, math.nan), worst(sums[0], targets)[0]
    binding = min(known, key=lambda index: intervals[index].value)
    value, low, high = intervals[binding]
    near = [intervals[index] for index in known if not math.isnan(intervals[index].low)]
    if math.isnan(low):
        return intervals[binding], binding
    return Interval(value, min(each.low for each in near), min(high, *(each.high for each in near))), binding


def _rounded(load: float) -> float:
    """Four figures: a load that can be said, and tried again."""
    return float(f"{load:.4g}")


# --- how few replicas ---------------------------------------------------------------------------

SIZE_PROBES = (2, 4, 8, 16)
MOST_TIMES = 16  # as many replicas as a perfect system needs, and no more
HOPE = 2  # sizes that may fail before the largest is asked whether there is any


class OutOfReach(TrimtabError):
    """A bound that no number of replicas meets; ``times`` is by how much the best is over it."""

    def __init__(self, message: str, times: float):
        super().__init__(message)
        self.times = times


def fewest_replicas(
    scenario: Scenario,
    bounds: tuple[Bound, ...],
    load: float | None = None,
    requests: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    counts: Sequence[int] = SIZE_PROBES,
    most_times: float = MOST_TIMES,
) -> Size:
    """The fewest replicas that carry ``load`` requests/s (the scenario's own by default) within the bounds.

    Several groups keep their proportions. ``counts`` are the replications of the sequential test of a size;
    with a single one nothing can be sure, and ``low`` and ``high`` are the answer itself.

    Raises
    ------
    OutOfReach
        (a TrimtabError) where not even ``most_times`` the replicas of a perfect system meet a bound.
    TrimtabError
        for a closed loop.
    """
    rate = mean_rate(scenario)
    load = load or rate
    groups = sum(group.count for group in scenario.replicas)
    per_replica = ideal_load(scenario, bounds) / groups
    ideal = max(len(scenario.replicas), math.ceil(load / per_replica - 1e-9))
    most = max(ideal + 1, math.ceil(most_times * ideal))
    requests = requests or enough_requests(scenario, bounds, load / rate, math.ceil(1.3 * ideal))
    with Trials(scenario, bounds, requests, rate, workers, progress) as trials:
        tried: dict[int, tuple[int, Excess]] = {}

        def test(size: int) -> Excess:
            if size not in tried:
                tried[size] = trials.probe(load, size, counts)
            return tried[size][1]

        enough = _gallop(trials, test, tried, load, (ideal, most))
        too_few = max([ideal - 1, *(size for size in tried if size < enough)])
        while enough - too_few > 1:
            middle = (enough + too_few) // 2
            if test(middle).value > 0:
                too_few = middle
            else:
                enough = middle
        low = high = enough
        while len(counts) > 1 and high < most and not (test(high).sure and test(high).value <= 0):
            high += 1
        while len(counts) > 1 and low > ideal and not (test(low - 1).sure and test(low - 1).value > 0):
            low -= 1
        binding = bounds[tried[enough - 1 if enough - 1 in tried else enough][0]]
        replications = max(seed for _, _, seed in trials.found) + 1
        return Size(
            scenario, bounds, load, enough, low, high, ideal, binding, trials.means(load, enough), requests,
            replications, len(trials.found), {size: trials.means(load, size) for size in sorted(tried)},
        )  # fmt: skip


def _gallop(
    trials: Trials,
    test: Callable[[int], Excess],
    tried: dict[int, tuple[int, Excess]],
    load: float,
    ends: tuple[int, int],
) -> int:
    """The first size that holds, of those that grow by a quarter from a perfect system's on."""
    size, most = ends
    while test(size).value > 0:
        if len(tried) == HOPE and test(most).value > 0:
            index, found = tried[most]
            raise OutOfReach(
                f"{trials.bounds[index]} cannot be met with any number of replicas: with {most} for"
                f" {load:.3g} requests/s, where a perfect system needs {ends[0]},"
                f" {quantity(trials.bounds[index], trials.means(load, most))}",
                math.exp(min(found.value, 50.0)),
            )
        size = min(most, max(size + 1, math.ceil(1.25 * size)))
    return size
