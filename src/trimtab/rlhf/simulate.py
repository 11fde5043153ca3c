"""One step of a command: its rollout on the cluster engine, its schedule, and what else there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.hardware import Model, get_model
from trimtab.rlhf.check import Checked, plan_of
from trimtab.rlhf.generation import DISTRIBUTIONS, Rollout, rollout
from trimtab.rlhf.job import Cluster, Job
from trimtab.rlhf.placement import Plan
from trimtab.rlhf.planner import PARTIAL_SHARE
from trimtab.rlhf.rules import Command
from trimtab.rlhf.search import search
from trimtab.rlhf.timeline import Step, schedule

OVERSAMPLE = 1.25  # prompts started over prompts wanted


@dataclass(frozen=True)
class Alternative:
    """Another way to run the same job: seconds of its generation and of its step."""

    name: str
    generation: float
    seconds: float


@dataclass(frozen=True)
class Simulated:
    """A step: its plan, schedule and rollout; alternatives to it."""

    job: Job
    plan: Plan
    step: Step
    rollout: Rollout
    alternatives: tuple[Alternative, ...]

    def figures(self) -> dict[str, Any]:
        """For machines."""
        pools = self.plan.placement.pools
        return {
            "plan": self.plan.describe(),
            "gpus": self.plan.placement.gpus,
            "step_s": round(self.step.seconds, 3),
            "phases_s": {name: round(value, 3) for name, value in self.step.phases.items()},
            "idle_share": {name: round(self.step.idle_share(name), 4) for name in pools},
            "staleness": self.step.staleness,
            "tail_share": round(self.rollout.tail_share, 4),
            "engines_idle_share": round(self.rollout.idle_share, 4),
            "preemptions": self.rollout.preemptions,
            "alternatives": [
                {
                    "name": each.name,
                    "generation_s": round(each.generation, 3),
                    "step_s": round(each.seconds, 3),
                }
                for each in self.alternatives
            ],
        }


def simulate_command(
    checked: Checked, cluster: Cluster, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Simulated:
    """Simulate the step of a checked command, whose models must be known.

    Raises
    ------
    TrimtabError
        where the model is not known or a sequence does not fit into an engine's KV cache.
    """
    if checked.job_model is None:
        name = checked.settings.get("pretrain")
        raise TrimtabError(f"the model {name!r} is not bundled; give --actor NAME or a config.json")
    command = Command(checked.settings, checked.version, cluster.gpus, checked.job_model)
    critic = _model(checked.settings.get("critic_pretrain"))
    job, plan = plan_of(command, cluster, checked.job_model, critic, checked.response_mean)
    ways = _ways(plan)
    runs = []
    for done, (name, other, options) in enumerate(ways):
        if progress is not None:
            progress(done, len(ways))
        generated = _generate(job, other, seed, **options)
        runs.append((name, generated, schedule(job, other, generated)))
    (_, first, step), *others = runs
    alternatives = [Alternative(name, each.phases["generation"], each.seconds) for name, _, each in others]
    return Simulated(job, plan, step, first, (*alternatives, *_placements(job, plan, seed)))


def _model(name: object) -> Model | None:
    try:
        return get_model(str(name)) if name else None
    except TrimtabError:
        return None


def _ways(plan: Plan) -> list[tuple[str, Plan, dict[str, Any]]]:
    """(name, plan, options of the rollout): the command itself first."""
    partial = PARTIAL_SHARE if plan.serving.partial else 0.0
    ways: list[tuple[str, Plan, dict[str, Any]]] = [("as it is", plan, {"partial": partial})]
    told = {
        "chunks": "contiguous chunks, as up to 0.9.0",
        "scattered": "a prompt's samples on different engines",
        "longest-first": "longest first, dealt out (lengths known)",
        "least-work": "longest first to the least loaded (lengths known)",
    }
    ways += [(told[way], plan, {"distribute": way}) for way in DISTRIBUTIONS if way in told]
    ways.append((f"over-sampling x {OVERSAMPLE:g}", plan, {"oversample": OVERSAMPLE}))
    if plan.placement.mode != "hybrid":
        apart = replace(plan, placement=replace(plan.placement, mode="async"))
        if plan.placement.mode != "async":
            ways.append(("asynchronous on the same groups", apart, {}))
        partly = replace(apart, serving=replace(apart.serving, partial=True))
        ways.append(("asynchronous, partial rollout", partly, {"partial": PARTIAL_SHARE}))
    return ways


def _generate(job: Job, plan: Plan, seed: int, **options: Any) -> Rollout:
    place, serving = plan.placement, plan.serving
    return rollout(
        job,
        place.engines,
        place.tp,
        serving.utilization,
        eager=serving.eager,
        prefix_caching=serving.prefix_caching,
        seed=seed,
        **options,
    )


def _placements(job: Job, plan: Plan, seed: int) -> list[Alternative]:
    """The best plan of each mode on the same cluster, simulated."""
    try:
        found = search(job).plans
    except TrimtabError:
        return []
    best: dict[str, Plan] = {}
    for each in found:
        best.setdefault(each.plan.placement.mode, each.plan)
    alternatives = []
    for mode, other in best.items():
        if other == plan:
            continue
        partial = PARTIAL_SHARE if other.serving.partial else 0.0
        step = schedule(job, other, _generate(job, other, seed, partial=partial))
        sizes = ", ".join(f"{name} {size}" for name, (size, _) in other.placement.pools.items())
        name = f"best {mode} plan ({sizes})"
        alternatives.append(Alternative(name, step.phases["generation"], step.seconds))
    return alternatives
