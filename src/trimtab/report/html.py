"""Pages that need nothing but a browser: one file, data and scripts inside, no network."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.report.definitions import Definition
from trimtab.result import Group, Result
from trimtab.scenario import ReplicaGroup, Scenario

if TYPE_CHECKING:
    from trimtab.comparison import Comparison
    from trimtab.plan.regret import Decision

LOGO = (
    '<svg viewBox="0 0 20 20" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" '
    'aria-hidden="true"><path d="M3 15h14M10 15V5M4 8l12-3"/><circle cx="4" cy="8" r="1.6" '
    'fill="currentColor"/><circle cx="16" cy="5" r="1.6" fill="currentColor"/></svg>'
)


def compare_page(comparison: Comparison) -> str:
    """The page of a comparison, complete HTML."""
    from trimtab.report.compare_html import compare_body, compare_data

    return page(
        f"{comparison.scenario.name}: routers compared",
        compare_body(comparison),
        compare_data(comparison),
        ("base.js", "charts.js", "compare.js"),
    )


def run_page(result: Result, summary: dict[str, float], decisions: Sequence[Decision] = ()) -> str:
    """The page of one run, complete HTML; with a section on its judged routing ``decisions``, if any."""
    from trimtab.report.run_html import run_body, run_data

    return page(
        f"{result.scenario.name}: one run",
        run_body(result, summary, decisions),
        run_data(result, summary, decisions),
        ("base.js", "charts.js", "run.js"),
    )


def page(title: str, body: str, data: dict[str, Any], scripts: tuple[str, ...]) -> str:
    """Style, body, data as JSON and scripts in one document."""
    content = json.dumps(rounded(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{asset("report.css")}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{content}</script>
<script>
{"".join(asset(name) for name in scripts)}</script>
</body>
</html>
"""


def asset(name: str) -> str:
    """The text of a file under ``assets``."""
    return resources.files("trimtab.report").joinpath("assets", name).read_text(encoding="utf-8")


def rounded(data: Any) -> Any:
    """JSON-ready, numbers to four figures (a page is looked at); what JSON cannot say is null."""
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    if isinstance(data, np.ndarray):
        return rounded(data.tolist())
    if isinstance(data, (list, tuple)):
        return [rounded(value) for value in data]
    if isinstance(data, np.generic):
        return rounded(data.item())
    if isinstance(data, float):
        if not math.isfinite(data):
            return None
        short = float(f"{data:.4g}")
        return int(short) if short.is_integer() else short
    return data


def tip(text: str, explanation: str) -> str:
    """``text`` that explains itself on hover or focus."""
    return f'<dfn tabindex="0" data-tip="{escape(explanation, quote=True)}">{escape(text)}</dfn>'


def meaning(definition: Definition) -> str:
    """A definition as the sentence of a tooltip."""
    return definition.meaning[:1].upper() + definition.meaning[1:] + "."


def _how_many(group: ReplicaGroup) -> str:
    """``4``, or ``1 to 8`` where the group is autoscaled."""
    scale = group.autoscale
    return f"{scale.min} to {scale.max}" if scale else str(group.count)


def facts(scenario: Scenario, groups: tuple[Group, ...], requests: int, rest: list[tuple[str, str]]) -> str:
    """The list of what was run, under the title."""
    counts = [_how_many(group) for group in scenario.replicas]
    fleet = []
    for count, group in zip(counts, groups, strict=False):
        parallel = f" (TP {group.tp}, PP {group.pp})" if group.tp * group.pp > 1 else ""
        fleet.append(f"<b>{count} x {escape(group.model)}</b> on {escape(group.device)}{parallel}")
    entries = [
        " and ".join(fleet),
        f"scheduler <b>{escape(', '.join(dict.fromkeys(group.scheduler for group in groups)))}</b>",
        f"<b>{requests:,}</b> requests",
        traffic(scenario),
        *(f"{escape(name)} <b>{escape(value)}</b>" for name, value in rest),
    ]
    bounds = {name: bound for name, bound in scenario.slo.model_dump().items() if bound is not None}
    if bounds:
        said = ", ".join(f"{name.removesuffix('_ms').upper()} {bound:g} ms" for name, bound in bounds.items())
        entries.append(f"SLO <b>{said}</b>")
    return f'<ul class="facts">{"".join(f"<li>{entry}</li>" for entry in entries)}</ul>'


def traffic(scenario: Scenario) -> str:
    """How requests arrive, in a few words (HTML)."""
    workload = scenario.workload
    if workload.users is not None:
        return f"<b>{workload.users}</b> users, each sending the next request after its answer"
    arrivals = workload.arrivals
    rate = getattr(arrivals, "qps", None)
    words = {"static": "evenly spaced" if rate else "all at once", "trace": "as in the trace"}
    how = words.get(arrivals.kind, arrivals.kind)
    return f"arrivals <b>{escape(how)}{f', {rate:g} per second' if rate else ''}</b>"


def source_details(scenario: Scenario, provenance: dict[str, Any]) -> str:
    """The scenario and the versions, folded away."""
    from trimtab.report.run_folder import scenario_yaml

    versions = ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in provenance.items())
    return (
        f"<details><summary>Scenario</summary><pre>{escape(scenario_yaml(scenario))}</pre></details>"
        f'<p class="see" style="margin:14px 0 0">Made with {versions}.</p>'
    )
