"""What a comparison or a run says, in sentences: for the terminal and the top of a page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trimtab.report.bootstrap import Interval
from trimtab.report.definitions import define
from trimtab.report.digest import METRICS, Metric

if TYPE_CHECKING:
    from trimtab.comparison import Comparison
    from trimtab.result import Result

LEADING = ("p99_ttft_ms", "mean_e2el_ms")  # quoted in the headline, the first that has something to say
UNITS = {"requests/s": "req/s", "tokens/s": "tok/s", "s": "s"}


def number(value: float, unit: str = "") -> str:
    """Three figures and the unit that fits: ``0.41 s``, ``18.2 ms``, ``93.1 %``; a dash for NaN."""
    if not math.isfinite(value):
        return "-"
    if unit.startswith("ms"):
        rest = unit[2:]
        return f"{_figures(value / 1e3)} s{rest}" if abs(value) >= 999.5 else f"{_figures(value)} ms{rest}"
    if unit == "share":
        return f"{_figures(100 * value)} %"
    return f"{_figures(value)} {UNITS[unit]}" if unit in UNITS else _figures(value)


def between(low: float, high: float, unit: str = "") -> str:
    """``430 to 452 ms``: an interval with its unit said once where both ends share it."""
    first, last = number(low, unit), number(high, unit)
    value, _, name = first.rpartition(" ")
    return f"{value} to {last}" if value and name == last.rpartition(" ")[2] else f"{first} to {last}"


def _figures(value: float) -> str:
    if abs(value) < 5e-7:  # rounding noise
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    return f"{value:.{min(decimals, 6)}f}"


def listing(names: tuple[str, ...] | list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def headline(comparison: Comparison) -> tuple[str, str]:
    """(the answer, what backs it): one or two sentences each."""
    verdicts = comparison.verdicts
    metrics = {metric.key: metric for metric in METRICS}
    decided = [key for key, verdict in verdicts.items() if len(verdict.tied) < len(comparison.routers)]
    if not decided:
        return (
            "Nothing separates these routers on this traffic.",
            f"On each of {len(verdicts)} metrics the 95 % intervals of all differences include zero.",
        )
    unbeaten = {
        router: [key for key in decided if router in verdicts[key].tied] for router in comparison.routers
    }
    champions = sorted(unbeaten, key=lambda router: _rank(comparison, router, len(unbeaten[router])))
    champion = champions[0]
    count = len(unbeaten[champion])
    alone = [key for key in decided if verdicts[key].winner == champion]
    # "decided" metrics are those on which at least one router is shown to be worse
    if count == len(decided):
        also = [name for name in champions[1:] if len(unbeaten[name]) == count]
        if also:
            answer = f"{listing([champion, *also])} cannot be told apart, and nothing beats them."
        else:
            answer = f"{champion} is never beaten: best, or level with the best, on every metric."
    else:
        lost = [metrics[key].title for key in decided if key not in unbeaten[champion]]
        answer = f"{champion} does best on most: it is beaten only on {listing(lost[:4])}."
        if count < len(decided) / 2:
            answer = (
                f"No router wins throughout; {champion} is unbeaten most often,"
                f" on {count} of {len(decided)} metrics."
            )
    backing = _backing(comparison, champion)
    if alone:
        titles = [metrics[key].title for key in alone]
        backing += f" It is alone at the top on {listing(titles)}."
    return answer, backing.strip()


def _rank(comparison: Comparison, router: str, unbeaten: int) -> tuple[float, float]:
    """Most often unbeaten first; among equals the lower tail of the first token."""
    row = comparison.table.get("p99_ttft_ms", {})
    value = row[router].value.value if router in row else math.inf
    return (-unbeaten, value if math.isfinite(value) else math.inf)


def _backing(comparison: Comparison, champion: str) -> str:
    for key in LEADING:
        if key not in comparison.table:
            continue
        estimate = comparison.table[key][champion]
        definition = define(key)
        said = f"Its {definition.title} is {number(estimate.value.value, definition.unit)}"
        if champion == comparison.baseline:
            return said + ", and it is the baseline."
        if estimate.relative and estimate.to_baseline.excludes_zero:
            return f"{said}, {relative(estimate.to_baseline)} than {comparison.baseline}."
        return f"{said}, not to be told from {comparison.baseline}'s."
    return ""


def relative(difference: Interval) -> str:
    """``38 % lower (30 to 45 %)`` of a relative difference and its interval."""
    word = "lower" if difference.value < 0 else "higher"
    ends = sorted(abs(100 * bound) for bound in (difference.low, difference.high))
    if difference.value > 9:  # 900 % and more: say how many times
        low, high = 1 + difference.low, 1 + difference.high
        return f"{_figures(1 + difference.value)} times as high ({_figures(low)} to {_figures(high)})"
    return f"{_figures(abs(100 * difference.value))} % {word} ({_figures(ends[0])} to {_figures(ends[1])} %)"


def verdict_sentence(comparison: Comparison, metric: Metric) -> str:
    """What one metric says: the winner and by how much, or who cannot be told apart."""
    verdict = comparison.verdicts[metric.key]
    row = comparison.table[metric.key]
    values = {round(estimate.value.value, 12) for estimate in row.values()}
    if len(values) == 1:
        return f"{metric.title}: the same for every router."
    if verdict.winner is None:
        if len(verdict.tied) == len(comparison.routers):
            return f"{metric.title}: no winner; the intervals of all differences include zero."
        others = [name for name in verdict.tied if name != verdict.best]
        return (
            f"{metric.title}: {verdict.best} has the best mean, but {listing(others)} cannot be told from it."
        )
    sign = -1 if metric.higher_is_better else 1
    rest = [name for name in row if name != verdict.winner and math.isfinite(row[name].value.value)]
    second = min(rest, key=lambda name: sign * row[name].value.value)
    gap = row[second].to_best
    how = f"{second} is {relative(gap)}" if row[second].relative else f"next is {second}"
    return f"{metric.title}: {verdict.winner} is best; {how}."


def run_headline(result: Result, summary: dict[str, float]) -> tuple[str, str]:
    """(what happened, what it means) of one run."""
    completed, failed = int(summary["completed"]), int(summary["failed"])
    if not completed:
        return f"None of {failed:,} requests was completed.", ""
    ttft = number(summary["p99_ttft_ms"], "ms")
    tpot = number(summary["p50_tpot_ms"], "ms")
    answer = (
        f"Half of the requests stream at {tpot} per token or faster;"
        f" 99 % have their first token within {ttft}."
    )
    if math.isnan(summary["p50_tpot_ms"]):
        answer = f"99 % of the requests have their first token within {ttft}."
    said = []
    if failed:
        said.append(f"{failed:,} of {completed + failed:,} requests failed; latencies are of the others.")
    if not math.isnan(summary["slo_attainment"]):
        good = number(summary["slo_attainment"], "share")
        said.append(f"{good} of them meet the SLO, {number(summary['request_goodput'], 'requests/s')}.")
    waited = summary["mean_scheduling_delay_ms"] / max(summary["mean_e2el_ms"], 1e-12)
    if waited > 0.2:
        said.append(f"Queueing takes {number(waited, 'share')} of the end-to-end time: capacity is short.")
    if len(result.replicas) > 1:
        uneven = summary["load_outstanding_max_over_mean"]
        word = "even" if uneven < 1.1 else "fairly even" if uneven < 1.35 else "uneven"
        said.append(f"The load is {word}: the busiest replica holds {number(uneven)} times the average.")
    if summary["preemptions"]:
        said.append(f"{int(summary['preemptions']):,} preemptions: the KV cache is short.")
    return answer, " ".join(said)


def notices(comparison: Comparison) -> list[str]:
    """What a reader must know before trusting the figures."""
    said = []
    if not comparison.complete:
        said.append(f"Interrupted: only seeds {listing([str(s) for s in comparison.seeds])} are whole.")
    if len(comparison.seeds) < 3:
        said.append(
            f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}: the intervals cannot"
            " tell luck with the traffic from a better router. Use three or more."
        )
    failed = {
        router: sum(int(digest.summary["failed"]) for digest in comparison.of(router))
        for router in comparison.routers
    }
    worst = max(failed, key=lambda router: failed[router])
    if failed[worst]:
        said.append(
            f"Requests failed (up to {failed[worst]:,}, {worst}); latencies are of completed requests only."
        )
    return said
