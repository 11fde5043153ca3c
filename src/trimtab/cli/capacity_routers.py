"""``trimtab capacity --routers``: the load that each router carries, or the replicas it needs, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.plan.router_gain import RouterLoads, RouterSizes


def loads_data(found: RouterLoads) -> dict[str, Any]:
    """What ``--json`` prints."""
    from trimtab.plan.router_gain import say_loads

    return {
        **_asked(found),
        "replications": found.answers[found.first].replications,
        "routers": {
            name: {
                "load": each.load.value, "low": each.load.low, "high": each.load.high,
                "within_tolerance": each.close, "binding": str(each.binding),
            }
            for name, each in found.answers.items()
        },
        "ratios": {name: ratio._asdict() for name, ratio in found.ratios.items()},
        "headline": [say_loads(found, other) for other in found.ratios],
    }  # fmt: skip


def sizes_data(found: RouterSizes) -> dict[str, Any]:
    """What ``--json`` prints with ``--load``."""
    from trimtab.plan.router_gain import say_sizes

    return {
        **_asked(found),
        "load": found.answers[found.first].load,
        "routers": {
            name: {
                "replicas": each.replicas, "low": each.low, "high": each.high, "binding": str(each.binding),
            }
            for name, each in found.answers.items()
        },
        "saved": {name: {"low": low, "high": high} for name, (low, high) in found.saved.items()},
        "headline": [say_sizes(found, other) for other in found.saved],
    }  # fmt: skip


def _asked(found: RouterLoads | RouterSizes) -> dict[str, Any]:
    """What both answers have."""
    first = found.answers[found.first]
    return {
        "scenario": first.scenario.name,
        "bounds": [str(bound) for bound in first.bounds],
        "first": found.first,
        "ideal": first.ideal,
        "requests": first.requests,
    }


def load_lines(found: RouterLoads) -> list[Any]:
    """What is asked, the table, and a sentence per other router."""
    data = loads_data(found)
    title = f"{data['scenario']} within {', '.join(data['bounds'])}"
    lines = [f"{title}; {_paired(data)}", loads_table(found), *data["headline"]]
    if any(each.load.high > each.ideal for each in found.answers.values()):
        lines.append(too_short(data["requests"]))
    return lines


def too_short(requests: int) -> str:
    """What to know of a load as great as a perfect system's."""
    return (
        f"this close to a perfect system, queues grow for longer than {requests or 'these'} requests last:"
        " for good it carries a little less; more --requests tell"
    )


def size_lines(found: RouterSizes) -> list[Any]:
    """As ``load_lines``, with ``--load``."""
    data = sizes_data(found)
    title = (
        f"{data['scenario']}: replicas for {data['load']:.4g} requests/s within {', '.join(data['bounds'])}"
    )
    return [f"{title}; {_paired(data)}", sizes_table(found), *data["headline"]]


def _paired(data: dict[str, Any]) -> str:
    return f"the same trials of {data['requests'] or 'all'} requests for every router"


def loads_table(found: RouterLoads) -> Table:
    """A line per router, the greatest load first."""
    table = _table(
        "router", "requests/s", "95 % interval", "of perfect", f"{found.first} carries", "gives way"
    )
    for name, each in sorted(found.answers.items(), key=lambda pair: -pair[1].load.value):
        ratio = found.ratios.get(name)
        times = f"{ratio.value:.3f}x ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else ""
        table.add_row(
            name, f"{each.load.value:.4g}", f"{each.load.low:.4g} to {each.load.high:.4g}",
            f"{100 * each.load.value / each.ideal:.0f} %", times, str(each.binding),
        )  # fmt: skip
    return table


def sizes_table(found: RouterSizes) -> Table:
    """A line per router, the fewest replicas first."""
    table = _table("router", "replicas", "at 95 %", f"{found.first} saves", "gives way")
    for name, each in sorted(found.answers.items(), key=lambda pair: pair[1].replicas):
        saved = f"{found.saved[name][0]} to {found.saved[name][1]}" if name in found.saved else ""
        table.add_row(name, str(each.replicas), f"{each.low} to {each.high}", saved, str(each.binding))
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        last = index in (0, len(columns) - 1)
        table.add_column(name, justify="left" if last else "right", no_wrap=True)
    return table
