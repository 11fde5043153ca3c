"""Judged routing decisions of a run: ``regret.csv`` beside it, and the section of its page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.plan.regret import HORIZON_S, Decision, summary
from trimtab.report.metrics import span
from trimtab.report.one_request import phases_ms
from trimtab.report.words import number
from trimtab.result import Result

FILE = "regret.csv"
COSTLIEST = 10  # decisions in the table
SHOWN = ("queue", "prefill", "decode")  # phases of each


def write_decisions(decisions: Sequence[Decision], folder: Path) -> None:
    """A row per decision under the names of ``Decision``."""
    lines = [",".join(Decision._fields), *(",".join(f"{value:.9g}" for value in each) for each in decisions)]
    (folder / FILE).write_text("\n".join(lines) + "\n")


def read_decisions(folder: Path) -> list[Decision]:
    """Those that an earlier report judged; none where there is no such file.

    Raises
    ------
    TrimtabError
        for a file that ``write_decisions`` did not write.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    try:
        if tuple(rows[0]) != Decision._fields:
            raise ValueError
        return [
            Decision(int(request), float(time), int(chosen), int(best), float(regret))
            for request, time, chosen, best, regret in rows[1:]
        ]
    except (ValueError, IndexError):
        raise TrimtabError(
            f"{path} is not a table of {', '.join(Decision._fields)}; delete it or judge anew with --regret N"
        ) from None


def regret_words(decisions: Sequence[Decision], router: str) -> str:
    """What was found, in a sentence."""
    said = summary(list(decisions))
    return (
        f"regret of {said['decisions']:.0f} decisions of {router}, against the best choice in hindsight: mean"
        f" {number(1e3 * said['mean_s'], 'ms')}, p99 {number(1e3 * said['p99_s'], 'ms')}, most"
        f" {number(1e3 * said['most_s'], 'ms')}; {number(said['best_share'], 'share')} could not have been"
        f" better (waiting for first tokens, all requests of the next {HORIZON_S:g} s)"
    )


def regret_section(result: Result, decisions: Sequence[Decision]) -> str:
    """HTML: the sentence, a place for the chart, the costliest decisions."""
    words = regret_words(decisions, result.scenario.router.name)
    return f"""<section aria-labelledby="h-regret">
<h2 id="h-regret">What did the routing cost?</h2>
<p class="see">{escape(words[0].upper() + words[1:])}. High points are choices that made others wait: see
the load of the two replicas at that time.</p>
<div class="plot" id="regret"></div>
<div class="scroll" style="margin-top:18px">{_costliest(result, decisions)}</div>
</section>
"""


def _costliest(result: Result, decisions: Sequence[Decision]) -> str:
    """The dearest decisions, and where the request that was sent spent its time."""
    start, _ = span(result)
    rows = []
    for each in sorted(decisions, key=lambda each: -each.regret_s)[:COSTLIEST]:
        if each.regret_s <= 0:
            break
        asked = result.requests[each.request]
        took = phases_ms(asked)
        cells = (
            number(each.time_s - start, "s"),
            str(each.chosen),
            str(each.best),
            number(1e3 * each.regret_s, "ms"),
            f"{asked['prefill_tokens']} + {asked['decode_tokens']}",
            *(number(took[phase], "ms") for phase in SHOWN),
        )
        rows.append(
            f'<tr><th scope="row">request {each.request}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    if not rows:
        return ""
    names = ("at", "went to", "best was", "regret", "tokens", *SHOWN)
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def regret_data(result: Result, decisions: Sequence[Decision]) -> dict[str, Any]:
    """What the chart draws: columns over the decisions, times in s since the first arrival, regret in ms."""
    start, _ = span(result)
    return {
        "request": [each.request for each in decisions],
        "time": [each.time_s - start for each in decisions],
        "chosen": [each.chosen for each in decisions],
        "best": [each.best for each in decisions],
        "regret": [1e3 * each.regret_s for each in decisions],
    }
