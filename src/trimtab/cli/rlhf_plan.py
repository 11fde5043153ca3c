"""``trimtab rlhf plan``: the best placement of a job, its memory and time, and the command that runs it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options, rlhf_options
from trimtab.cli.progress import progress_bar
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.rlhf.job import Job, Lengths
    from trimtab.rlhf.planner import Answer, Planned

GIB = 2**30


def plan(
    actor: Annotated[
        str | None, typer.Option("--actor", help="Name (see `trimtab models`) or config.json.")
    ] = None,
    critic: Annotated[
        str | None, typer.Option("--critic", help="PPO's critic; as the reward model if none.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="Reward model; as the actor if none.")
    ] = None,
    remote_reward: Annotated[
        str | None,
        typer.Option("--remote-reward", metavar="URL", help="Reward server: no model on the GPUs."),
    ] = None,
    device: rlhf_options.DeviceOption = "a100-80",
    nodes: rlhf_options.NodesOption = 1,
    gpus_per_node: rlhf_options.PerNodeOption = 8,
    host_gib: rlhf_options.HostOption = 1024.0,
    network: rlhf_options.NetworkOption = None,
    algorithm: Annotated[
        str, typer.Option("--algorithm", help="ppo (with a critic), grpo, rloo or reinforce++.")
    ] = "ppo",
    goal: Annotated[str, typer.Option("--goal", help="fastest, fewest (GPUs) or safest.")] = "fastest",
    prompts: Annotated[int, typer.Option("--prompts", help="Prompts of a rollout.")] = 1024,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Responses per prompt; 1, or 8 for grpo and rloo.")
    ] = None,
    train_batch: Annotated[int, typer.Option("--train-batch", help="Samples of an optimiser step.")] = 128,
    max_prompt: Annotated[int, typer.Option("--max-prompt", help="Longest prompt, tokens.")] = 1024,
    max_response: Annotated[int, typer.Option("--max-response", help="Longest response, tokens.")] = 1024,
    prompt_tokens: Annotated[
        float | None, typer.Option("--prompt-tokens", help="Mean prompt; a quarter of the longest if none.")
    ] = None,
    response_tokens: rlhf_options.ResponseOption = None,
    spread: Annotated[
        float, typer.Option("--spread", help="Standard deviation over mean of the responses.")
    ] = 0.7,
    lengths: Annotated[
        Path | None,
        typer.Option("--lengths", metavar="FILE", help="Responses of an earlier step, one per line."),
    ] = None,
    kl: Annotated[float, typer.Option("--kl", help="KL coefficient; 0: no reference model.")] = 0.01,
    lora: Annotated[int, typer.Option("--lora", help="Rank of adapters; 0: all weights are trained.")] = 0,
    version: rlhf_options.VersionOption = None,
    top: Annotated[int, typer.Option("--top", help="Plans to show.")] = 3,
    script: Annotated[
        Path | None, typer.Option("--script", metavar="FILE", help="Shell script of the best plan.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="FLAG", help="What a flag of OpenRLHF does; no plan.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the simulated lengths.")] = 0,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Find the best placement of an RLHF job among all legal ones; print it, and its command."""
    from trimtab.rlhf.flags import LATEST, checked_version

    target = checked_version(version) if version else LATEST
    if explain is not None:
        _explain(explain, target, as_json)
        return
    if actor is None:
        raise TrimtabError("give the model to train: --actor NAME, see `trimtab models`")
    if top < 1:
        raise TrimtabError(f"--top {top} must be at least 1")
    if script is not None and not script.parent.is_dir():
        raise TrimtabError(f"--script {str(script)!r}: there is no folder {str(script.parent)!r}")
    job = _job(
        (actor, critic, reward, remote_reward),
        rlhf_options.make_cluster(device, nodes, gpus_per_node, host_gib, network),
        _prompt(max_prompt, prompt_tokens),
        _response(max_response, response_tokens, spread, lengths),
        algorithm=algorithm,
        goal=goal,
        prompts=prompts,
        samples=samples,
        train_batch=train_batch,
        kl=kl,
        lora_rank=lora,
        version=target,
    )
    from trimtab.rlhf.planner import as_dict
    from trimtab.rlhf.planner import plan as find

    with progress_bar("simulating rollouts", "plans", quiet or as_json, before="searching") as report:
        answer = find(job, top, seed, report)
    if script is not None:
        _write_script(script, job, answer.plans[0])
    if as_json:
        shown: dict[str, Any] = {
            "plans": [as_dict(job, each) for each in answer.plans],
            "memory": answer.memory,
        }
        shown |= {"considered": answer.searched.considered, "legal": answer.searched.legal}
        shown |= {"fitting": answer.searched.fitting, "change_first": [vars(each) for each in answer.changes]}
        print(json.dumps(shown, indent=1, default=float))
    elif not quiet:
        _print(job, answer, script)


def _prompt(limit: int, mean: float | None) -> Lengths:
    from trimtab.rlhf.job import Lengths

    return Lengths(mean if mean is not None else max(1.0, limit / 4), limit)


def _response(limit: int, mean: float | None, spread: float, file: Path | None) -> Lengths:
    from trimtab.rlhf.job import Lengths, read_lengths

    if file is not None:
        if mean is not None:
            raise TrimtabError("--lengths gives the responses; leave out --response-tokens")
        return read_lengths(file, limit)
    return Lengths(mean if mean is not None else max(1.0, limit / 2), limit, spread)


def _job(
    models: tuple[str | None, ...], cluster: Any, prompt: Lengths, response: Lengths, **rest: Any
) -> Job:
    from trimtab.hardware import get_model
    from trimtab.rlhf.job import ALGORITHMS, GROUPED, Job

    actor, critic, reward, remote = models
    if rest["samples"] is None:
        rest["samples"] = 8 if ALGORITHMS.get(rest["algorithm"]) in GROUPED else 1
    if critic and ALGORITHMS.get(rest["algorithm"], "gae") != "gae":
        raise TrimtabError(f"--critic {critic}: {rest['algorithm']} has no critic")
    if reward and remote:
        raise TrimtabError("give --reward or --remote-reward, not both")
    return Job(
        actor=get_model(str(actor)),
        cluster=cluster,
        prompt=prompt,
        response=response,
        critic=get_model(critic) if critic else None,
        reward=get_model(reward) if reward else None,
        remote_reward=remote,
        **rest,
    )


def _write_script(path: Path, job: Job, best: Planned) -> None:
    from trimtab.rlhf.commands import script

    draft = path.with_name(path.name + ".part")
    draft.write_text(script(job, best.plan, best.words), encoding="utf-8")
    draft.chmod(0o755)
    os.replace(draft, path)


def _explain(name: str, version: str, as_json: bool) -> None:
    from trimtab.rlhf.explain import explain

    found = explain(name, version)
    names = {versions: f"--{spelling}" for versions, spelling in found.names.items()}
    if as_json:
        shown = {"names": names, "default": found.default, "does": found.does, "when": found.when}
        print(json.dumps({**shown, "conflicts": found.conflicts}, indent=1))
        return
    for versions, spelling in names.items():
        print(f"{spelling}  (OpenRLHF {versions})")
    print(f"does       {found.does}")
    if found.when:
        print(f"when       {found.when}")
    if found.conflicts:
        print(f"conflicts  {found.conflicts}")
    print(f"default    {found.default} in {version}")


def _print(job: Job, answer: Answer, script: Path | None) -> None:
    from rich.console import Console

    from trimtab.rlhf.commands import command_lines

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    counts = answer.searched
    console.print(
        f"{counts.considered:,} combinations covered, {counts.legal:,} legal, {counts.fitting:,} fit; "
        f"goal {job.goal}, OpenRLHF {job.version}"
    )
    console.print(_plans_table(answer))
    best = answer.plans[0]
    for number, each in enumerate(answer.plans, 1):
        console.print(f"\n[bold]{number}[/bold]  {each.plan.describe()}")
        for reason in each.reasons:
            console.print(f"   {reason}")
    console.print("\nMemory of one GPU of plan 1, GiB", style="bold")
    console.print(_memory_table(best))
    host = best.forecast
    console.print(
        f"host memory per node: {host.host_total / GIB:,.0f} of {host.host_bytes / GIB:,.0f} GiB ("
        + ", ".join(f"{part} {value / GIB:,.0f}" for part, value in host.host.items() if value > GIB)
        + ")"
    )
    console.print(f"\nMemory is {answer.memory}. {_change_title(answer)}", style="bold")
    for change in answer.changes[:6]:
        console.print(
            f"   {change.text}: {change.bytes / GIB:+.1f} GiB at the peak, {change.seconds:+.1f} s a step"
        )
    if job.reward is None and job.reward_model is not None:
        console.print("\nThe reward model is taken to be as large as the actor: give --reward.", style="dim")
    console.print("\nCommand of plan 1 (add your prompts)\n", style="bold")
    console.print(command_lines(best.words), soft_wrap=True)
    if script is not None:
        console.print(f"\nwritten to {script}")


def _change_title(answer: Answer) -> str:
    if not answer.changes:
        return "No single change gains."
    return "To lower the peak, first:" if answer.memory == "short" else "To gain time, first:"


def _plans_table(answer: Answer) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("mode")
    for name in (
        "GPUs",
        "step s",
        "generation",
        "experience",
        "training",
        "weights",
        "peak GiB",
        "host GiB",
        "old",
    ):
        table.add_column(name, justify="right")
    rows = [*enumerate(answer.plans, 1)]
    labelled = [(str(number), each) for number, each in rows]
    if answer.rule_of_thumb is not None:
        labelled.append(("1:1:1", answer.rule_of_thumb))
    for label, each in labelled:
        phases = each.step.phases
        training = sum(value for name, value in phases.items() if name.startswith("train "))
        rest = phases["generation"] + phases["weights"] + phases["fixed"] + training
        table.add_row(
            label,
            each.plan.placement.mode,
            str(each.plan.placement.gpus),
            f"{each.step.seconds:.0f}",
            f"{phases['generation']:.0f}",
            f"{sum(phases.values()) - rest:.0f}",
            f"{training:.0f}",
            f"{phases['weights']:.1f}",
            f"{each.forecast.fullest[2] / GIB:.1f}",
            f"{each.forecast.host_total / GIB:,.0f}",
            str(each.step.staleness),
        )
    return table


def _memory_table(planned: Planned) -> Any:
    from rich.table import Table

    stages = {
        (pool, phase): parts
        for pool, phases in planned.forecast.pools.items()
        for phase, parts in phases.items()
    }
    names = list(dict.fromkeys(part for parts in stages.values() for part in parts))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for pool, phase in stages:
        table.add_column(f"{phase}\n{pool}", justify="right")
    for name in names:
        shown = [f"{parts[name] / GIB:.1f}" if name in parts else "" for parts in stages.values()]
        table.add_row(name, *shown)
    table.add_row("sum", *(f"{sum(parts.values()) / GIB:.1f}" for parts in stages.values()), style="bold")
    return table
