"""A comparison on disk: the page to read, the table to load, all figures as JSON."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.report.atomic import replacing
from trimtab.report.html import compare_page
from trimtab.report.run_folder import scenario_yaml, write_json
from trimtab.report.words import headline, notices

if TYPE_CHECKING:
    from trimtab.comparison import Comparison, Estimate

FORMAT = 1
MARKER = "comparison.json"


def save_comparison(comparison: Comparison, directory: str | Path) -> Path:
    """Write index.html, table.csv, comparison.json and scenario.yaml; an earlier comparison is replaced.

    Raises
    ------
    TrimtabError
        where ``directory`` is something else than an earlier comparison, or cannot be written.
    """
    with replacing(directory, MARKER) as draft:
        (draft / "index.html").write_text(compare_page(comparison), encoding="utf-8")
        (draft / "scenario.yaml").write_text(scenario_yaml(comparison.scenario))
        write_json(draft / MARKER, _contents(comparison))
        _write_table(draft / "table.csv", comparison)
    return Path(directory)


def _contents(comparison: Comparison) -> dict[str, Any]:
    answer, backing = headline(comparison)
    return {
        "format": FORMAT,
        "scenario": comparison.scenario.name,
        "digest": comparison.scenario.digest(),
        "complete": comparison.complete,
        "routers": comparison.routers,
        "seeds": comparison.seeds,
        "baseline": comparison.baseline,
        "headline": f"{answer} {backing}",
        "notices": notices(comparison),
        "verdicts": {
            key: {"best": verdict.best, "winner": verdict.winner, "tied": verdict.tied}
            for key, verdict in comparison.verdicts.items()
        },
        "table": {
            key: {router: _estimate(estimate) for router, estimate in row.items()}
            for key, row in comparison.table.items()
        },
        "runs": [
            {"router": digest.router, "seed": digest.seed, "summary": digest.summary}
            for digest in comparison.digests
        ],
        "provenance": comparison.digests[0].provenance,
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": estimate.value.value,
        "interval": [estimate.value.low, estimate.value.high],
        "per_seed": estimate.per_seed,
        "relative": estimate.relative,
        "to_best": list(estimate.to_best),
        "to_baseline": list(estimate.to_baseline),
    }


def _write_table(path: Path, comparison: Comparison) -> None:
    """One row per metric and router: what a spreadsheet or pandas takes."""
    heads = ("metric", "router", "mean", "low", "high", "to_baseline", "to_baseline_low", "to_baseline_high")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*heads, "relative", "verdict"))
        for key, row in comparison.table.items():
            verdict = comparison.verdicts[key]
            for router, estimate in row.items():
                state = "best" if verdict.winner == router else "tie" if router in verdict.tied else "behind"
                figures = [f"{x:.6g}" for x in (*estimate.value, *estimate.to_baseline)]
                writer.writerow((key, router, *figures, estimate.relative, state))
