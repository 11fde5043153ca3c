"""``trimtab capacity``: how much a cluster carries, or how few replicas carry a load."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from trimtab.cli import options
from trimtab.cli.capacity_routers import load_lines, loads_data, size_lines, sizes_data, too_short
from trimtab.cli.progress import Report, progress_bar
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.plan.bounds import Bound
    from trimtab.plan.capacity import Capacity, Size
    from trimtab.plan.over_time import FleetOverTime
    from trimtab.scenario import Scenario

SloOption = Annotated[
    str | None,
    typer.Option(
        "--slo",
        metavar="BOUNDS",
        help="e.g. ttft:p99<1s,tpot:p99<50ms; default: 99 % meet the scenario's slo.",
    ),
]
TrialOption = Annotated[
    int | None,
    typer.Option("--requests", help="Requests per trial; default: as many as it takes, from 2,000."),
]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Threads; all cores by default.")]
Answer = tuple[dict[str, Any], list[Any]]  # for --json, and what is printed: lines and tables
BAR = 40  # characters of the longest bar of a series


def capacity(
    scenario: options.ScenarioArgument,
    slo: SloOption = None,
    load: Annotated[
        float | None,
        typer.Option("--load", metavar="QPS", help="Ask instead how few replicas carry this load."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Wanted half width of the interval, as a share.")
    ] = 0.03,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    replicas: options.ReplicasOption = None,
    tp: options.TpOption = None,
    pp: options.PpOption = None,
    scheduler: options.SchedulerOption = None,
    router: Annotated[str | None, typer.Option("--router", help="Router; see `trimtab routers`.")] = None,
    routers: Annotated[
        str | None,
        typer.Option(
            "--routers", metavar="NAMES", help="The first against the others, commas between; or all."
        ),
    ] = None,
    requests: TrialOption = None,
    seed: options.SeedOption = None,
    setting: options.SetOption = None,
    workers: WorkersOption = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Find the greatest load that SCENARIO's cluster carries under service levels, with its interval."""
    _check(tolerance=tolerance, load=load, requests=requests, workers=workers)
    if routers is not None and router is not None:
        raise TrimtabError("give --router or --routers, not both")
    chosen = options.scenario_with(
        scenario, setting, model=model, device=device, replicas=replicas, tp=tp, pp=pp, scheduler=scheduler,
        router=router, seed=seed,
    )  # fmt: skip
    from trimtab.plan.bounds import parse_bounds

    bounds = parse_bounds(slo, chosen)
    if any(group.autoscale for group in chosen.replicas):
        if load is not None:
            raise TrimtabError(f"--load: {chosen.name} is autoscaled, so its own arrivals are the load")
        if routers is not None:
            raise TrimtabError(f"--routers: {chosen.name} is autoscaled; compare fixed fleets")
        from trimtab.plan.over_time import follow

        with progress_bar(f"following {chosen.name}", "runs", quiet or as_json):
            over_time = follow(chosen, bounds, workers=workers)
        _print(_time_data(over_time), _time_lines(over_time), quiet, as_json)
        return
    asked = Asked(chosen, bounds, load, requests, workers)
    what = f"trying loads on {chosen.name}"
    with progress_bar(what, "trials", quiet or as_json) as report:
        if routers is not None:
            answer = _of_routers(asked, routers, tolerance, report)
        else:
            answer = _of_one(asked, tolerance, report)
    _print(*answer, quiet, as_json)


class Asked(NamedTuple):
    """How much is carried within ``bounds``, or, with ``load``, by how few replicas that is."""

    scenario: Scenario
    bounds: tuple[Bound, ...]
    load: float | None
    requests: int | None
    workers: int | None


def _of_one(asked: Asked, tolerance: float, report: Report) -> Answer:
    from trimtab.plan.capacity import fewest_replicas, greatest_load

    scenario, bounds, load, requests, workers = asked
    if load is not None:
        size = fewest_replicas(scenario, bounds, load, requests, workers, report)
        return _size_data(size), _size_lines(size)
    found = greatest_load(scenario, bounds, tolerance, requests, workers, report)
    return _load_data(found), _load_lines(found)


def _of_routers(asked: Asked, routers: str, tolerance: float, report: Report) -> Answer:
    from trimtab.plan.router_gain import router_loads, router_sizes

    scenario, bounds, load, requests, workers = asked
    if load is not None:
        sizes = router_sizes(scenario, bounds, routers, load, requests, workers, report)
        return sizes_data(sizes), size_lines(sizes)
    loads = router_loads(scenario, bounds, routers, tolerance, requests, workers, report)
    return loads_data(loads), load_lines(loads)


def _check(tolerance: float, load: float | None, requests: int | None, workers: int | None) -> None:
    if not 0 < tolerance < 1:
        raise TrimtabError(f"--tolerance must be a share between 0 and 1, such as 0.03; got {tolerance:g}")
    if load is not None and not 0 < load < float("inf"):
        raise TrimtabError(f"--load must be requests per second above 0, got {load:g}")
    for name, value in (("requests", requests), ("workers", workers)):
        if value is not None and value < 1:
            raise TrimtabError(f"--{name} must be 1 or more, got {value}")


def _print(data: dict[str, Any], lines: list[Any], quiet: bool, as_json: bool) -> None:
    if as_json:
        json.dump(data, sys.stdout, indent=1)
        print()
    elif not quiet:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
        for line in lines:
            console.print(line, markup=False)


# --- greatest load ------------------------------------------------------------------------------


def _load_data(found: Capacity) -> dict[str, Any]:
    return {
        "scenario": found.scenario.name,
        "bounds": [str(bound) for bound in found.bounds],
        "load": found.load.value,
        "low": found.load.low,
        "high": found.load.high,
        "within_tolerance": found.close,
        "binding": str(found.binding),
        "resource": _resource(found.figures),
        "ideal": found.ideal,
        "replicas": sum(group.count for group in found.scenario.replicas),
        "requests": found.requests,
        "replications": found.replications,
        "trials": found.trials,
        "figures": _known(found.figures),
    }


def _load_lines(found: Capacity) -> list[str]:
    load, replicas = found.load, sum(group.count for group in found.scenario.replicas)
    half = (load.high - load.low) / 2 / load.value
    lines = [
        f"{found.scenario.name}: {load.value:.4g} requests/s within {', '.join(map(str, found.bounds))}",
        f"95 % interval {load.low:.4g} to {load.high:.4g} (+-{100 * half:.1f} %), from {found.trials} trials"
        f" of {found.requests or 'all'} requests, {found.replications} replications",
        f"{load.value / replicas:.4g} requests/s per replica; a perfect system carries {found.ideal:.4g},"
        f" of which this is {100 * load.value / found.ideal:.0f} %",
        f"what gives way first: {found.binding}; {_resource(found.figures)}",
    ]
    if load.high > found.ideal:
        lines.append(too_short(found.requests))
    if not found.close:
        lines.append(
            "the interval is wider than asked for: this level hardly depends on the load; more --requests"
        )
    return lines


def _resource(figures: dict[str, float]) -> str:
    from trimtab.plan.trial import what_binds

    return what_binds(figures)


def _known(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: value if abs(value) < float("inf") else None for name, value in figures.items()}


# --- fewest replicas ----------------------------------------------------------------------------


def _size_data(size: Size) -> dict[str, Any]:
    return {
        "scenario": size.scenario.name,
        "bounds": [str(bound) for bound in size.bounds],
        "load": size.load,
        "replicas": size.replicas,
        "low": size.low,
        "high": size.high,
        "binding": str(size.binding),
        "resource": _resource(size.figures),
        "ideal": size.ideal,
        "requests": size.requests,
        "replications": size.replications,
        "trials": size.trials,
        "figures": _known(size.figures),
    }


def _size_lines(size: Size) -> list[str]:
    sure = f"surely {size.low}" if size.low == size.high else f"between {size.low} and {size.high}"
    return [
        f"{size.scenario.name}: {size.replicas} replicas carry {size.load:.4g} requests/s within"
        f" {', '.join(map(str, size.bounds))}",
        f"at 95 % confidence {sure}, from {size.trials} trials of {size.requests or 'all'} requests",
        f"a perfect system needs {size.ideal}",
        f"what gives way first: {size.binding}; {_resource(size.figures)}",
    ]


# --- over time ----------------------------------------------------------------------------------


def _time_data(found: FleetOverTime) -> dict[str, Any]:
    return {
        "scenario": found.scenario.name,
        "bounds": {
            str(b): {"value": v, "met": m} for b, (v, m) in zip(found.bounds, found.reached, strict=True)
        },
        "mean_replicas": found.mean.tolist(),
        "peak_replicas": found.peak.tolist(),
        "replica_hours": found.hours.tolist(),
        "fixed_replicas": found.fixed.replicas if found.fixed else None,
        "series": {name: getattr(found, name).tolist() for name in ("edges", "rate", "paid", "perfect")},
    }


def _time_lines(found: FleetOverTime) -> list[str]:
    top = max(found.paid.max(), found.perfect.max())
    mean, peak, ideal = found.mean.mean(), found.peak.max(), found.perfect
    lines = [
        f"{found.scenario.name}: {mean:.2f} replicas on average, {peak:.0f} at the peak,"
        f" {found.hours.mean():.3g} replica-hours ({len(found.mean)} seeds)",
        f"a perfect system that scales at once: {ideal.mean():.2f} on average, {ideal.max():.0f} at the peak",
    ]
    if found.fixed:
        lines.append(
            f"a fixed fleet that carries the peak rate: {found.fixed.replicas} replicas, all the time;"
            f" scaling saves {100 * (1 - mean / found.fixed.replicas):.0f} %"
        )
    for bound, (value, met) in zip(found.bounds, found.reached, strict=True):
        shown = f"{100 * value:.3g} %" if bound.metric == "goodput" else f"{1e3 * value:.4g} ms"
        lines.append(f"{bound}: {shown}, {'met' if met else 'NOT met'}")
    lines.append("\n     time  requests/s  replicas (perfect)")
    step = len(found.paid) // 24
    for at in range(0, len(found.paid), step):
        rate, paid, perfect = (
            series[at : at + step].mean() for series in (found.rate, found.paid, found.perfect)
        )
        bar = "#" * round(BAR * paid / top)
        lines.append(f"{found.edges[at]:8.0f} s  {rate:10.4g}  {paid:6.2f} ({perfect:5.2f})  {bar}")
    return lines
