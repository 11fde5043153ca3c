"""From nothing to a policy file: demonstrations, cloning, PPO, evolution. What ``trimtab train`` runs.

A run folder holds training.json (what is trained), demonstrations.npz, cloned.safetensors,
checkpoints/{latest,previous,best}.safetensors, metrics.csv, tensorboard/, evolution.safetensors and,
at the end, policy.safetensors. Each stage takes up what the one before left there, also if interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import torch

from trimtab.errors import TrimtabError, unknown
from trimtab.learn.checkpoints import BEST, LATEST, Best, Checkpoints
from trimtab.learn.clone import Agreement, beginner, clone
from trimtab.learn.demonstrations import (
    Demonstrations,
    check_teachers,
    demonstrate,
    digest,
    join,
    limits_of,
    load_demonstrations,
    only,
    save_demonstrations,
)
from trimtab.learn.given import source
from trimtab.learn.held_out import YARDSTICK, HeldOut
from trimtab.learn.measures import Watch
from trimtab.learn.monitor import Monitor
from trimtab.learn.policy import Scorer, save_policy
from trimtab.learn.polish import FILE as EVOLUTION
from trimtab.learn.polish import polish
from trimtab.learn.ppo import Learner, new_learner, train_update
from trimtab.learn.presets import TrainConfig
from trimtab.learn.rewards import RewardConfig
from trimtab.learn.rollout import Acting
from trimtab.learn.scenarios import Draw
from trimtab.learn.sealed import write_whole
from trimtab.routers.policy_file import Policy, load_policy
from trimtab.scenario import Scenario

if TYPE_CHECKING:
    from trimtab.plan.executors import Executor

MARKER = "training.json"
Stage = Literal["demonstrations", "cloning", "ppo", "evolution"]
STAGES: tuple[Stage, ...] = ("demonstrations", "cloning", "ppo", "evolution")
Report = Callable[..., None]


@dataclass(frozen=True)
class Screen:
    """Where a training says what it does: ``bar(what, unit)`` gives ``report(done, total, latest)``."""

    bar: Callable[[str, str], AbstractContextManager[Report]]
    note: Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One training: what, on what, where, and how often it is saved and evaluated (updates).

    ``executor`` runs the trials of evolution; None: threads of this process.
    """

    config: TrainConfig
    folder: Path
    scenario: Scenario | None = None
    save_every: int = 10
    wandb: str | None = None
    executor: Executor | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", self.scenario.digest() if self.scenario else "")

    def path(self, name: str) -> Path:
        return self.folder / name


def train(run: Run, screen: Screen, resume: str | None = None, until: Stage = "evolution") -> Path:
    """All stages up to ``until``; returns the file that the last one wrote.

    ``resume`` names the checkpoint to go on from; without one, stages that are done already (same
    parameters) are taken as they are. Ctrl-C leaves what is done. torch computes on one thread meanwhile.

    Raises
    ------
    TrimtabError
        for parameters and checkpoints that will not do.
    """
    check(run.config)
    with one_thread():
        return _train(run, screen, resume, until)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: the order of a sum depends on how many share it, and products as small as these
    gain nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(run: Run, screen: Screen, resume: str | None, until: Stage) -> Path:
    draw = source(run.scenario)
    if resume is not None:
        learner, best = run.checkpoints.load(resume, run.config, draw)
        if resume != LATEST:  # what made the user choose another one must not become the previous one
            run.checkpoints.path(LATEST).unlink(missing_ok=True)
        screen.note(f"going on after update {learner.update} of {run.config.ppo.updates}")
    _mark(run)
    if resume is None and not run.config.clone.teachers:
        screen.note("no teachers: PPO begins where the policy does")
        learner, best = new_learner(run.config, beginner(run.config), draw), Best()
    elif resume is None:
        found = collect(run, screen)
        if until == "demonstrations":
            return run.path("demonstrations.npz")
        cloned = copy_teachers(run, found, screen)
        if until == "cloning":
            return run.path("cloned.safetensors")
        learner, best = new_learner(run.config, cloned, draw), Best()
    reinforce(run, learner, best, screen)
    if until == "evolution" and run.config.evolve.generations:
        return refine(run, draw, screen)
    return publish(run, screen)


def forget(run: Run) -> None:
    """Remove what earlier trainings left in the folder, so that everything begins again."""
    files = ["demonstrations.npz", "cloned.safetensors", "cloned.json", EVOLUTION]
    files += ["policy.safetensors", "policy.json"]
    events = (run.folder / "tensorboard").rglob("events.out.tfevents.*")
    kept = (run.checkpoints.path(name) for name in run.checkpoints.present())
    for path in [*(run.path(name) for name in [*files, "metrics.csv", "evolution.csv"]), *events, *kept]:
        path.unlink(missing_ok=True)


def _mark(run: Run) -> None:
    about = {"config": run.config.as_dict(), "scenario": _scenario_of(run)}
    write_whole(run.path(MARKER), json.dumps(about, indent=1).encode() + b"\n")


def _scenario_of(run: Run) -> dict[str, Any] | None:
    return run.scenario.model_dump(mode="json", exclude_unset=True) if run.scenario else None


# --- the stages ---------------------------------------------------------------------------------


def collect(run: Run, screen: Screen) -> Demonstrations:
    """Stage 1. Saved after every teacher; teachers that are there already are not asked again."""
    config, path = run.config, run.path("demonstrations.npz")
    mark = digest(config, run.scenario)
    there = load_demonstrations(path, mark)
    found = {name: only(there, name) for name in there.teachers} if there else {}
    for line in limits_of(config.clone.teachers):
        screen.note(line)
    for number, teacher in enumerate(config.clone.teachers):
        if teacher in found:
            screen.note(f"demonstrations of {teacher} are there")
            continue
        with screen.bar(f"demonstrations of {teacher}", "decisions") as report:
            found[teacher] = demonstrate(teacher, number, config, source(run.scenario), report)
        save_demonstrations(join(list(found.values())), path, mark)
    return join([found[name] for name in config.clone.teachers])


def copy_teachers(run: Run, found: Demonstrations, screen: Screen) -> Scorer:
    """Stage 2. The clone goes to cloned.safetensors, its agreement with the teachers beside it."""
    path, mark = run.path("cloned.safetensors"), _clone_digest(run)
    if path.is_file() and path.with_suffix(".json").is_file():
        policy = load_policy(path)
        if policy.about.get("digest") == mark:
            screen.note("the clone is there")
            scorer = Scorer(run.config.hidden)
            scorer.load_flat(policy.values)
            return scorer
    with screen.bar(f"cloning {len(found):,} decisions", "epochs") as report:
        scorer, agreements = clone(found, run.config, report)
    for one in agreements:
        screen.note(one.line())
    save_policy(_policy(run, scorer, {"stage": "cloning", "digest": mark, **_agreements(agreements)}), path)
    return scorer


def reinforce(run: Run, learner: Learner, best: Best, screen: Screen) -> None:
    """Stage 3. Saves and evaluates every ``save_every`` updates, the first time before any."""
    checkpoints, held_out = run.checkpoints, HeldOut(learner.draw)
    watch, total = Watch(run.config), run.config.ppo.updates
    with (
        Monitor(run.folder, run.config, learner.history, run.wandb) as monitor,
        screen.bar("PPO", "updates") as report,
    ):
        for line in monitor.notes:
            screen.note(line)
        if learner.update == 0:
            best = _evaluate(run, learner, best, held_out, {})
        whole = checkpoints.pack(learner, best)
        if learner.update == 0:
            checkpoints.write(whole, LATEST)
        while learner.update < total:
            report(learner.update, total, _latest(learner))
            try:
                facts = train_update(learner)
                due = learner.update % run.save_every == 0 or learner.update == total
                best = _evaluate(run, learner, best, held_out, facts) if due else best
            except KeyboardInterrupt:
                checkpoints.write(whole, LATEST)  # as it was before this update
                raise
            whole = checkpoints.pack(learner, best)
            monitor.log(learner.update, facts)
            for line in watch.look(learner.update, facts):
                screen.note(f"warning: {line}")
            if due:
                checkpoints.write(whole, LATEST)


def _evaluate(run: Run, learner: Learner, best: Best, held_out: HeldOut, facts: dict[str, float]) -> Best:
    """Measure on held-out scenarios, into ``facts``; the best so far is kept as ``best``."""
    facts |= held_out.measure(learner.acting())
    value = facts["eval/p99_ttft_ratio"]
    if value >= best.value:
        return best
    found = Best(value, learner.update)
    run.checkpoints.write(run.checkpoints.pack(learner, found), BEST)
    return found


def _latest(learner: Learner) -> str:
    if not learner.history:
        return ""
    facts = learner.history[-1]
    return f"reward {facts['charts/reward']:.3f}, {facts['time/sps']:,.0f} decisions/s"


def publish(run: Run, screen: Screen) -> Path:
    """policy.safetensors: the scorer of PPO's best checkpoint."""
    learner, best = run.checkpoints.load(BEST, run.config, source(run.scenario))
    path = run.path("policy.safetensors")
    about = {"stage": "ppo", "update": best.update, "eval/p99_ttft_ratio": best.value}
    save_policy(_policy(run, learner.scorer, about), path)
    screen.note(
        f"best after update {best.update}: p99 time to first token {best.value:.3f} of {YARDSTICK}'s "
        "on held-out scenarios (geometric mean)"
    )
    return path


def refine(run: Run, draw: Draw, screen: Screen) -> Path:
    """Stage 4: evolution from PPO's best; goes on from what is saved bit for bit.

    The policy that is published is the better of the two on held-out scenarios.
    """
    learner, best = run.checkpoints.load(BEST, run.config, draw)
    with screen.bar("evolution", "generations") as report:
        evolution = polish(run.folder, run.config, learner.scorer.flat(), report, draw, run.executor)
    found = HeldOut(draw).measure(Acting(evolution.values, evolution.hidden))
    value = found["eval/p99_ttft_ratio"]
    screen.note(f"evolution: {value:.3f} of {YARDSTICK}'s p99 time to first token on held-out scenarios")
    if value >= best.value:
        return publish(run, screen)
    about = {"stage": "evolution", "generation": evolution.generation, **found}
    common = _policy(run, learner.scorer, about).about
    path = run.path("policy.safetensors")
    save_policy(Policy(evolution.values, evolution.hidden, common), path)
    return path


def _policy(run: Run, scorer: Scorer, about: dict[str, Any]) -> Policy:
    from trimtab import __version__

    common = {"trimtab": __version__, "config": run.config.as_dict(), "scenario": _scenario_of(run)}
    return Policy(scorer.flat(), scorer.hidden, {**common, **about})


def _agreements(found: list[Agreement]) -> dict[str, Any]:
    return {"agreement": [vars(one) for one in found]}


def _clone_digest(run: Run) -> str:
    """Of all that the clone depends on."""
    config = run.config
    content = [digest(config, run.scenario), vars(config.clone), config.hidden, config.ppo.temperature]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def check(config: TrainConfig) -> None:
    """Raises TrimtabError for a parameter out of its range."""
    check_teachers(config.clone.teachers)
    counts = {
        "hidden": config.hidden,
        "clone.steps_per_policy": config.clone.steps_per_policy,
        "clone.every": config.clone.every,
        "clone.epochs": config.clone.epochs,
        "clone.batch_size": config.clone.batch_size,
        "ppo.updates": config.ppo.updates,
        "ppo.groups": config.ppo.groups,
        "ppo.plays": config.ppo.plays,
        "ppo.epochs": config.ppo.epochs,
        "ppo.minibatch": config.ppo.minibatch,
        "evolve.pool": config.evolve.pool,
        "evolve.courses": config.evolve.courses,
        "evolve.pairs": config.evolve.pairs,
    }
    for name, value in counts.items():
        if value < 1:
            raise TrimtabError(f"{name} must be 1 or more, got {value}")
    if config.evolve.generations < 0:
        raise TrimtabError(f"evolve.generations must be 0 or more, got {config.evolve.generations}")
    if config.evolve.courses > config.evolve.pool:
        raise TrimtabError(
            f"evolve.courses must be at most evolve.pool = {config.evolve.pool}, got {config.evolve.courses}"
        )
    if config.seed < 0:
        raise TrimtabError(f"seed must be 0 or more, got {config.seed}")
    if not 0.0 < config.ppo.min_temperature <= config.ppo.max_temperature:
        raise TrimtabError(
            "ppo.min_temperature must be above 0 and at most ppo.max_temperature = "
            f"{config.ppo.max_temperature:g}, got {config.ppo.min_temperature:g}"
        )
    if config.reward.form not in get_args(get_type_hints(RewardConfig)["form"]):
        raise unknown("reward.form", config.reward.form, get_args(get_type_hints(RewardConfig)["form"]))
