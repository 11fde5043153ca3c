"""A step as a picture (PNG) and as a trace for Perfetto: one row per GPU, bubbles left white."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from trimtab.report.canvas import INK, MUTED, Box, Canvas, Chart
from trimtab.rlhf.simulate import Simulated

WIDTH, LEFT, RIGHT, TOP = 1240, 150, 1200, 130
MOST_ROWS = 64  # GPUs that are drawn one by one; of larger groups every k-th
PHASE_COLOURS = {
    "generation": "#2f6fdb",
    "rewards": "#7d55c7",
    "actor log-probabilities": "#0f8f7a",
    "values": "#1793bd",
    "reference": "#8c6a34",
    "train critic": "#c2376a",
    "train actor": "#d9730d",
    "weights": "#5d7d12",
}


def rows_of(simulated: Simulated) -> list[tuple[str, int, list[tuple[str, float, float]]]]:
    """(pool, GPU, [(phase, begin s, end s)]) for every GPU: an engine is busy until its own last sample."""
    plan, step, generated = simulated.plan, simulated.step, simulated.rollout
    scale = step.phases["generation"] / generated.seconds
    rows = []
    for pool, (size, roles) in plan.placement.pools.items():
        for gpu in range(size):
            spans = []
            for span in step.spans:
                if span.pool != pool:
                    continue
                end = span.end
                if span.phase == "generation" and "vllm" in roles:
                    engine = min(gpu // plan.placement.tp, len(generated.engine_s) - 1)
                    end = span.start + scale * float(generated.engine_s[engine])
                spans.append((span.phase, span.start, end))
            rows.append((pool, gpu, spans))
    return rows


def write_trace(simulated: Simulated, path: Path) -> None:
    """Chrome's trace format, microseconds: a process per group, a thread per GPU. Two steps are drawn."""
    events: list[dict[str, object]] = []
    pools = list(simulated.plan.placement.pools)
    for index, pool in enumerate(pools):
        events.append({"ph": "M", "pid": index, "name": "process_name", "args": {"name": pool}})
    for pool, gpu, spans in rows_of(simulated):
        index = pools.index(pool)
        events.append(
            {"ph": "M", "pid": index, "tid": gpu, "name": "thread_name", "args": {"name": f"GPU {gpu}"}}
        )
        for repeat in range(2):
            shift = repeat * simulated.step.seconds
            for phase, begin, end in spans:
                events.append(
                    {
                        "ph": "X",
                        "name": phase,
                        "pid": index,
                        "tid": gpu,
                        "ts": round(1e6 * (begin + shift), 1),
                        "dur": round(1e6 * (end - begin), 1),
                        "args": {"step": repeat},
                    }
                )
    with path.open("w", encoding="ascii") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        file.write(",\n".join(json.dumps(event) for event in events))
        file.write("\n]}\n")


def write_picture(simulated: Simulated, path: Path) -> None:
    """timeline.png: white is a GPU that waits."""
    rows = rows_of(simulated)
    stride = -(-len(rows) // MOST_ROWS)
    shown = rows[::stride]
    height = max(6.0, min(26.0, 620 / len(shown)))
    bottom = TOP + height * len(shown)
    canvas = Canvas(WIDTH, round(bottom + 100))
    step = simulated.step
    idle = {pool: step.idle_share(pool) for pool in simulated.plan.placement.pools}
    worst = max(idle, key=lambda pool: idle[pool])
    see = (
        f"White is waiting: {worst} waits {idle[worst]:.0%} of the step, generation's right edge is its tail."
    )
    each = "every GPU" if stride == 1 else f"every {stride}th GPU"
    chart = Chart(
        canvas,
        Box(LEFT, TOP, RIGHT, bottom),
        (f"One step of {step.seconds:.0f} s, {each}", see, "seconds"),
        (0.0, step.seconds),
        (0.0, float(len(shown))),
        rows=True,
    )
    canvas.text(30, 44, f"{simulated.job.actor.name}, {simulated.job.algorithm}, "
                        f"{simulated.plan.placement.mode}",
                20, INK)  # fmt: skip
    used = _draw_rows(canvas, chart, shown, height)
    _name_pools(canvas, shown, height)
    left = float(LEFT)
    for phase in used:
        canvas.rectangle(Box(left, bottom + 58, left + 12, bottom + 70), PHASE_COLOURS[phase])
        canvas.text(left + 17, bottom + 69, phase, 13, INK)
        left += 38 + 7.2 * len(phase)
    canvas.save(path)


def _draw_rows(
    canvas: Canvas, chart: Chart, shown: list[tuple[str, int, list[tuple[str, float, float]]]], height: float
) -> list[str]:
    """Draw the bars; the phases that there are, in their order."""
    used = []
    for place, (_, _, spans) in enumerate(shown):
        top = TOP + place * height
        for phase, begin, end in spans:
            left, right = chart.across(begin), chart.across(end)
            if right - left > 0.2:
                canvas.rectangle(
                    Box(left, top + 1, max(right, left + 1), top + height - 1), PHASE_COLOURS[phase]
                )
                used.append(phase)
    return [phase for phase in PHASE_COLOURS if phase in used]


def _name_pools(
    canvas: Canvas, shown: list[tuple[str, int, list[tuple[str, float, float]]]], height: float
) -> None:
    pools = np.array([pool for pool, _, _ in shown])
    for pool in dict.fromkeys(pools.tolist()):
        mine = np.flatnonzero(pools == pool)
        middle = TOP + (mine[0] + mine[-1] + 1) / 2 * height
        canvas.text(LEFT - 12, middle, pool, 13, INK, anchor="rm")
        if mine[0]:
            canvas.line([(LEFT - 8, TOP + mine[0] * height), (RIGHT, TOP + mine[0] * height)], MUTED, 1)
