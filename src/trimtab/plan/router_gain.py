"""What one router saves over others at equal goodput: the load each carries, or the replicas each needs.

Routers get the same requests, replication by replication, in trials of the same length, so that what luck
gives to all of them drops out of the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction

from trimtab.comparison import choose_routers
from trimtab.plan.bounds import Bound
from trimtab.plan.capacity import (
    TOLERANCE,
    Capacity,
    Progress,
    Size,
    around,
    fewest_replicas,
    ideal_load,
    locate,
    settle,
    trials_of,
)
from trimtab.plan.estimate import exp_interval
from trimtab.report.bootstrap import Interval
from trimtab.scenario import Scenario


@dataclass(frozen=True)
class RouterLoads:
    """``answers[router]`` by router; ``ratios[router]`` is how many times that router's load the ``first``
    one carries, paired, at 95 %."""

    first: str
    answers: dict[str, Capacity]
    ratios: dict[str, Interval]


@dataclass(frozen=True)
class RouterSizes:
    """``answers[router]`` by router; ``saved[router]`` is how many replicas the ``first`` one saves against
    it: the least and the most that the 95 % tests of both leave open."""

    first: str
    answers: dict[str, Size]
    saved: dict[str, tuple[int, int]]


def router_loads(
    scenario: Scenario,
    bounds: tuple[Bound, ...],
    routers: Sequence[str] | str,
    tolerance: float = TOLERANCE,
    requests: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> RouterLoads:
    """The greatest load of each of ``routers`` within ``bounds``, and the first one's over the others'.

    Raises
    ------
    TrimtabError
        for unknown or repeated routers, fewer than two, and as ``greatest_load``.
    """
    ideal = ideal_load(scenario, bounds)  # of no router
    with ExitStack() as stack:
        every = {
            name: stack.enter_context(trials_of(each, bounds, requests, workers, _of(name, progress)))
            for name, each in with_routers(scenario, routers).items()
        }
        about = {name: locate(trials, ideal, requests is None) for name, trials in every.items()}
        longest = max(trials.requests for trials in every.values())
        for name, trials in every.items():
            if trials.requests < longest:
                trials.requests = longest
                trials.found.clear()
                about[name] = locate(trials, ideal, adapt=False)
        answers = {
            name: settle(trials, around(about[name], longest), ideal, tolerance)
            for name, trials in every.items()
        }
        while len({answer.replications for answer in answers.values()}) > 1:
            most = max(answer.replications for answer in answers.values())
            for name, answer in answers.items():
                if answer.replications < most:
                    answers[name] = settle(every[name], answer.loads, ideal, tolerance, most)
    first, *others = answers
    ratios = {name: ratio_of_loads(answers[first], answers[name]) for name in others}
    return RouterLoads(first, answers, ratios)


def ratio_of_loads(one: Capacity, other: Capacity) -> Interval:
    """The load of ``one`` over that of ``other``, found from the same replications, at 95 %."""
    return exp_interval(one.values - other.values)


def router_sizes(
    scenario: Scenario,
    bounds: tuple[Bound, ...],
    routers: Sequence[str] | str,
    load: float,
    requests: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> RouterSizes:
    """The fewest replicas for ``load`` requests/s with each of ``routers``, and how many the first one saves.

    Raises
    ------
    TrimtabError
        for unknown or repeated routers, fewer than two, and as ``fewest_replicas``.
    """
    each = with_routers(scenario, routers)
    answers = {
        name: fewest_replicas(one, bounds, load, requests, workers, _of(name, progress))
        for name, one in each.items()
    }
    longest = max(answer.requests for answer in answers.values())
    for name, answer in answers.items():
        if answer.requests < longest:  # some routers keep requests longer: the same trials for all
            answers[name] = fewest_replicas(each[name], bounds, load, longest, workers, _of(name, progress))
    first, *others = answers
    saved = {name: saved_replicas(answers[first], answers[name]) for name in others}
    return RouterSizes(first, answers, saved)


def saved_replicas(one: Size, other: Size) -> tuple[int, int]:
    """(least, most) replicas that ``one`` saves against ``other``; negative where it costs some."""
    return other.low - one.high, other.high - one.low


def with_routers(scenario: Scenario, routers: Sequence[str] | str) -> dict[str, Scenario]:
    """The scenario with each router, by name, in the order given."""
    return {
        name: scenario.model_copy(update={"router": scenario.router.model_copy(update={"name": name})})
        for name in choose_routers(routers)
    }


def _of(name: str, progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, latest: progress(done, total, f"{name}, {latest}")


# --- in words -----------------------------------------------------------------------------------


def say_loads(found: RouterLoads, other: str) -> str:
    """One sentence: how the first router compares with ``other``."""
    ratio = found.ratios[other]
    times = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) times the load of {other}"
    if ratio.low <= 1 <= ratio.high:
        return f"{found.first} carries {times}: at equal goodput they cannot be told apart"
    few, many = same_work(ratio.value)
    return f"{found.first} carries {times}: {_replicas(few)} the work of {many} at equal goodput"


def say_sizes(found: RouterSizes, other: str) -> str:
    """One sentence: how many replicas the first router saves."""
    one, two = found.answers[found.first], found.answers[other]
    least, most = found.saved[other]
    needs = f"{found.first} needs {_range(one)} and {other} {_range(two)}"
    difference = two.replicas - one.replicas
    if least <= 0 <= most:
        return f"{needs}: at equal goodput nothing is sure to be saved ({least} to {most})"
    word = "saves" if difference > 0 else "costs"
    ends = sorted((abs(least), abs(most)))
    return f"{needs}: it {word} {abs(difference)} ({ends[0]} to {ends[1]}) at equal goodput"


def same_work(ratio: float) -> tuple[int, int]:
    """(few, many) replicas, whole numbers: few of a router that carries ``ratio`` times the load do the work
    of many (many of few, below 1). As small as tells the ratio from 1, or up to 20."""
    lead = max(ratio, 1 / ratio)
    most = max(20, round(lead / (lead - 1))) if lead > 1 else 1
    share = Fraction(1 / lead).limit_denominator(most)
    few, many = max(share.numerator, 1), share.denominator
    return (few, many) if ratio > 1 else (many, few)


def _replicas(count: int) -> str:
    return "1 replica does" if count == 1 else f"{count} replicas do"


def _range(size: Size) -> str:
    sure = "" if size.low == size.high else f" ({size.low} to {size.high})"
    return f"{size.replicas} replica{'s' if size.replicas > 1 else ''}{sure}"
