"""From a job to the best few plans: searched, their rollouts simulated, explained, as commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from trimtab.rlhf.commands import arguments, plan_settings
from trimtab.rlhf.generation import Rollout, rollout
from trimtab.rlhf.job import GIB, Job
from trimtab.rlhf.memory import Forecast, forecast
from trimtab.rlhf.placement import Plan, Serving, Training
from trimtab.rlhf.rules import FATAL, Command, findings
from trimtab.rlhf.search import Found, Searched, equal_split, search
from trimtab.rlhf.timeline import Step, schedule

SHORT = 0.9  # of the usable memory, above which memory is called short
AMPLE = 0.7  # below which it is called ample


@dataclass(frozen=True)
class Change:
    """One thing to change: what it does to the fullest GPU (bytes) and to the step (seconds)."""

    text: str
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Planned:
    """One plan with everything known of it."""

    plan: Plan
    step: Step
    forecast: Forecast
    rollout: Rollout
    words: list[str]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The best plans, best first; changes to the first; the search's counts; the rule of thumb's seconds."""

    plans: tuple[Planned, ...]
    changes: tuple[Change, ...]
    memory: str  # short, ample or enough
    searched: Searched
    rule_of_thumb: Planned | None


def plan(
    job: Job, top: int = 3, seed: int = 0, progress: Callable[[int, int, str], None] | None = None
) -> Answer:
    """Search the whole space, simulate the rollouts of the best of each kind of placement, explain.

    Raises
    ------
    TrimtabError
        where nothing is legal or fits.
    """
    found = search(job)
    kinds = {(each.plan.placement.mode, each.plan.placement.sharing) for each in found.plans}
    tried = found.plans[: max(top, min(len(kinds), 6))]
    results = []
    for done, each in enumerate(tried):
        if progress is not None:
            progress(done, len(tried) + 1, each.plan.placement.mode)
        results.append(simulated(job, each.plan, seed))
    results.sort(key=lambda each: _key(job, each))
    guide = equal_split(job)
    thumb = simulated(job, guide.plan, seed) if guide is not None else None
    chosen = [
        replace(each, reasons=tuple(_reasons(job, each, [*results, *([thumb] if thumb else [])], thumb)))
        for each in results[:top]
    ]
    best = chosen[0]
    return Answer(tuple(chosen), tuple(changes(job, best.plan)), memory_state(best.forecast), found, thumb)


def _key(job: Job, planned: Planned) -> tuple[float, ...]:
    if job.goal == "fewest":
        return (planned.plan.placement.gpus, planned.step.seconds)
    return (planned.step.seconds,)


def simulated(job: Job, chosen: Plan, seed: int = 0) -> Planned:
    """A plan with its rollout simulated by the cluster engine."""
    place, serving = chosen.placement, chosen.serving
    generated = rollout(
        job,
        place.engines,
        place.tp,
        serving.utilization,
        eager=serving.eager,
        prefix_caching=serving.prefix_caching,
        seed=seed,
        partial=PARTIAL_SHARE if serving.partial else 0.0,
    )
    words = arguments(plan_settings(job, chosen), job.version)
    return Planned(chosen, schedule(job, chosen, generated), forecast(job, chosen), generated, words, ())


PARTIAL_SHARE = 0.1  # of the samples that a partial rollout leaves for the next step


def memory_state(expected: Forecast) -> str:
    """short, ample or enough, by the fullest GPU."""
    share = expected.fullest[2] / expected.usable_bytes
    return "short" if share > SHORT else "ample" if share < AMPLE else "enough"


def _reasons(job: Job, mine: Planned, others: list[Planned], thumb: Planned | None) -> Iterator[str]:
    """What binds a plan, and why it stands where it does."""
    pool, phase, peak = mine.forecast.fullest
    parts = mine.forecast.pools[pool][phase]
    largest = sorted(parts, key=lambda part: -parts[part])[:2]
    usable = mine.forecast.usable_bytes
    yield (
        f"memory: fullest in {phase} on {pool}, {peak / GIB:.1f} of {usable / GIB:.1f} GiB usable; "
        "most of it " + " and ".join(f"{part} {parts[part] / GIB:.1f}" for part in largest)
    )
    phases = mine.step.phases
    longest = max(phases, key=lambda name: phases[name])
    text = f"time: {longest} takes {phases[longest]:.0f} of {mine.step.seconds:.0f} s"
    if longest == "generation" and mine.rollout.tail_share > 0.3:
        text += (
            f", {mine.rollout.tail_share:.0%} of it after 90 % of the samples are done: the longest "
            "responses "
            "bind, more GPUs will not help"
        )
    elif longest == "generation" and mine.rollout.preemptions:
        text += f"; the KV cache binds ({mine.rollout.preemptions:,} preemptions)"
    yield text
    waits = {name: mine.step.idle_share(name) for name in mine.plan.placement.pools}
    idlest = max(waits, key=lambda name: waits[name])
    if len(waits) > 1 and waits[idlest] > 0.1:
        yield f"waiting: the GPUs of {idlest} are idle for {waits[idlest]:.0%} of the step"
    if mine.step.staleness:
        yield f"samples may be {mine.step.staleness} steps old: watch vllm_kl, consider importance correction"
    kinds = [each for each in others if each.plan.placement.mode != mine.plan.placement.mode]
    if kinds and job.goal != "fewest":
        best = min(kinds, key=lambda each: each.step.seconds)
        ratio = best.step.seconds / mine.step.seconds
        word = "faster" if ratio >= 1 else "slower"
        yield f"{max(ratio, 1 / ratio):.2f} x {word} than the best {best.plan.placement.mode} plan"
    if thumb is not None:
        wait = {name: thumb.step.idle_share(name) for name in thumb.plan.placement.pools}
        worst = max(wait, key=lambda name: wait[name])
        yield (
            f"the rule of thumb 1 : 1 : 1 takes {thumb.step.seconds:.0f} s on "
            f"{thumb.plan.placement.gpus} GPUs and "
            f"leaves {worst} idle for {wait[worst]:.0%}"
        )


def changes(job: Job, chosen: Plan) -> list[Change]:
    """What to change first: moves that lower the peak where memory is short, else moves that gain time."""
    base, step = forecast(job, chosen), schedule(job, chosen)
    short = memory_state(base) == "short"
    found = []
    for text, other in _moves(job, chosen, short):
        command = Command(plan_settings(job, other), job.version, job.cluster.gpus, job.actor)
        if any(finding.kind in FATAL for finding in findings(command)):
            continue
        after, then = forecast(job, other), schedule(job, other)
        lower = after.fullest[2] - base.fullest[2]
        seconds = then.seconds - step.seconds
        helps = lower < -0.1 * GIB if short else seconds < -0.005 * step.seconds
        if helps and (short or after.fits) and (after.host_total <= 0.95 * after.host_bytes):
            found.append(Change(text, lower, seconds))
    return found if short else sorted(found, key=lambda change: change.seconds)


def _moves(job: Job, chosen: Plan, short: bool) -> Iterator[tuple[str, Plan]]:
    """The guide's two lists, corrected: in the order in which they should be tried."""
    place, training, serving = chosen.placement, chosen.training, chosen.serving

    def trained(**change: Any) -> Plan:
        return replace(chosen, training=replace(training, **change))

    def served(**change: Any) -> Plan:
        return replace(chosen, serving=replace(serving, **change))

    hybrid = place.mode == "hybrid"
    if short:
        if hybrid and serving.utilization > 0.35:
            yield _less_utilization(serving), served(utilization=round(serving.utilization - 0.1, 2))
        if hybrid and not serving.vllm_sleep:
            yield "let vLLM sleep while training", served(vllm_sleep=True)
        if place.sharing == "all" and not serving.ds_sleep and not training.adam_offload:
            yield "let DeepSpeed sleep while generating", served(ds_sleep=True)
        if training.batching != "dynamic":
            cap = max(4096, job.max_tokens)
            yield f"dynamic batches of {cap:,} tokens", trained(batching="dynamic", cap=cap)
        elif training.cap > 4096:
            yield f"token cap {training.cap:,} -> {training.cap // 2:,}", trained(cap=training.cap // 2)
        if not training.checkpointing:
            yield "gradient checkpointing", trained(checkpointing=True)
        if training.zero < 3:
            yield "ZeRO-3", trained(zero=3, ds_tp=1)
        if training.batching != "padded":
            yield f"ring attention over {2 * training.ring}", trained(ring=2 * training.ring)
        if not training.adam_offload:
            yield "Adam on the host (slow)", trained(adam_offload=True)
        if training.zero == 3 and not training.eval_offload:
            yield "reference and reward on the host", trained(eval_offload=True)
        if not serving.eager:
            yield "no CUDA graphs in the engines", served(eager=True)
        return
    if training.adam_offload:
        yield "Adam back on the GPU", trained(adam_offload=False)
    if training.eval_offload:
        yield "reference and reward back on the GPU", trained(eval_offload=False)
    if training.checkpointing:
        yield "no gradient checkpointing", trained(checkpointing=False)
    if training.batching == "dynamic":
        yield f"token cap {training.cap:,} -> {2 * training.cap:,}", trained(cap=2 * training.cap)
    if training.zero == 3:
        yield "ZeRO-2", trained(zero=2, eval_offload=False)
    if not training.overlap:
        yield "overlap communication", trained(overlap=True)
    if serving.eager:
        yield "CUDA graphs in the engines", served(eager=False)
    if hybrid and serving.utilization < 0.85:
        more = round(serving.utilization + 0.1, 2)
        yield f"utilization {serving.utilization:g} -> {more:g}", served(utilization=more)
    if serving.ds_sleep:
        yield "DeepSpeed stays awake", served(ds_sleep=False)


def _less_utilization(serving: Serving) -> str:
    return f"utilization {serving.utilization:g} -> {serving.utilization - 0.1:g}"


def as_dict(job: Job, planned: Planned) -> dict[str, Any]:
    """A plan for machines: command, GPUs, memory in GiB, times in seconds."""
    pool, phase, peak = planned.forecast.fullest
    training: Training = planned.plan.training
    return {
        "plan": planned.plan.describe(),
        "mode": planned.plan.placement.mode,
        "gpus": planned.plan.placement.gpus,
        "pools": {name: size for name, (size, _) in planned.plan.placement.pools.items()},
        "step_s": round(planned.step.seconds, 2),
        "phases_s": {name: round(value, 2) for name, value in planned.step.phases.items()},
        "staleness": planned.step.staleness,
        "peak_gib": round(peak / GIB, 2),
        "peak_at": [pool, phase],
        "memory_gib": {
            name: {
                stage: {part: round(value / GIB, 2) for part, value in parts.items()}
                for stage, parts in stages.items()
            }
            for name, stages in planned.forecast.pools.items()
        },
        "host_gib_per_node": round(planned.forecast.host_total / GIB, 1),
        "fits": planned.forecast.fits,
        "zero_stage": training.zero,
        "openrlhf": job.version,
        "command": ["python3", "-m", "openrlhf.cli.train_ppo_ray", *planned.words],
        "reasons": list(planned.reasons),
    }


__all__ = ["Answer", "Change", "Found", "Planned", "as_dict", "changes", "memory_state", "plan", "simulated"]
