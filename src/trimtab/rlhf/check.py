"""A command that someone has: what it asks for, what goes wrong, what it needs, and the mended one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.hardware import Model, get_model
from trimtab.rlhf import memory
from trimtab.rlhf.commands import arguments
from trimtab.rlhf.flags import Settings, guess_version, parse, words_of
from trimtab.rlhf.generation import kv_capacity
from trimtab.rlhf.job import ALGORITHMS, GIB, GROUPED, Cluster, Job, Lengths
from trimtab.rlhf.memory import Forecast
from trimtab.rlhf.placement import ROLES, Placement, Plan, Serving, Training
from trimtab.rlhf.rules import FATAL, Command, Finding, demand, findings
from trimtab.rlhf.timeline import Step, schedule

MENDING_ROUNDS = 4


@dataclass(frozen=True)
class Checked:
    """``forecast`` and ``step`` need a known model and cluster; ``mended`` is None where nothing changes."""

    version: str
    settings: Settings
    demand: dict[str, int]
    owned: int | None
    findings: tuple[Finding, ...]
    forecast: Forecast | None
    step: Step | None
    mended: list[str] | None
    mended_gpus: int | None
    job_model: Model | None = None
    response_mean: float | None = None

    @property
    def gpus(self) -> int:
        """GPUs that Ray is asked for."""
        return sum(self.demand.values())

    @property
    def runs(self) -> bool:
        return not any(finding.kind in FATAL for finding in self.findings)


def check(
    command: str,
    *,
    cluster: Cluster | None = None,
    version: str | None = None,
    actor: Model | None = None,
    critic: Model | None = None,
    response_mean: float | None = None,
) -> Checked:
    """Check a shell command or its flags. ``version`` is guessed from the flags where it is not given;
    models are looked up by the names in the command where they are not.

    Raises
    ------
    TrimtabError
        for flags that the version does not have, and for values that are no values of theirs.
    """
    words = words_of(command)
    version = version or guess_version(words)
    settings = parse(words, version)
    owned = cluster.gpus if cluster else None
    model = actor or _known(settings.get("pretrain"))
    parsed = Command(settings, version, owned, model)
    found = findings(parsed)
    forecast, step = None, None
    # A shape that cannot be would only give figures that mean nothing.
    shaped = not any(each.rule in ("ring-divides", "heads-divide", "colocated-sizes") for each in found)
    if cluster and model and parsed.engine_gpus and shaped:
        job, plan = plan_of(
            parsed, cluster, model, critic or _known(settings.get("critic_pretrain")), response_mean
        )
        forecast = memory.forecast(job, plan)
        extra = _memory_findings(job, plan, forecast)
        found += extra
        if not any(each.rule == "kv-cache" for each in extra):
            step = schedule(job, plan)
    mended, gpus = _mend(parsed, found)
    ordered = sorted(found, key=lambda each: FATAL.index(each.kind) if each.kind in FATAL else len(FATAL))
    return Checked(
        version,
        settings,
        demand(parsed),
        owned,
        tuple(ordered),
        forecast,
        step,
        mended,
        gpus,
        model,
        response_mean,
    )


def _known(name: object) -> Model | None:
    if not isinstance(name, str):
        return None
    try:
        return get_model(name)
    except TrimtabError:
        return None


def _mend(command: Command, found: list[Finding]) -> tuple[list[str] | None, int | None]:
    """The command with all changes that the findings propose, and what it then asks for."""
    settings = dict(command.given)
    current, pending = command, found
    for _ in range(MENDING_ROUNDS):
        changes: Settings = {}
        for finding in pending:
            changes |= {name: value for name, value in finding.change.items() if name not in changes}
        if not changes:
            break
        for name, value in changes.items():
            settings.pop(name, None)
            if value is not None:
                settings[name] = value
        current = replace(command, given=dict(settings))
        pending = findings(current)
    if settings == command.given:
        return None, None
    return arguments(settings, command.version), sum(demand(current).values())


def plan_of(
    command: Command, cluster: Cluster, actor: Model, critic: Model | None, response_mean: float | None
) -> tuple[Job, Plan]:
    """The job and the plan that a command stands for.

    Prompts are a quarter and responses half of their limits where not given.
    """
    prompt, response = _limits(command)
    estimators = {estimator: name for name, estimator in ALGORITHMS.items()}
    name = estimators.get(str(command["advantage_estimator"]), "reinforce++")
    if ALGORITHMS[name] in GROUPED and command.number("n_samples_per_prompt") < 2:
        name = "reinforce++"  # refused anyway; its memory is the same
    has = command.has
    job = Job(
        actor=actor,
        cluster=cluster,
        prompt=Lengths(max(1.0, prompt / 4), prompt),
        response=Lengths(min(response_mean or response / 2, response), response),
        algorithm=name,
        critic=critic,
        reward=_known(command["reward_pretrain"]) or actor,
        remote_reward=None if has["reward"] else "remote",
        prompts=command.number("rollout_batch_size"),
        samples=max(command.number("n_samples_per_prompt"), 1),
        train_batch=min(command.number("train_batch_size"), command.samples),
        kl=float(str(command["init_kl_coef"])),
        version=command.version,
        lora_rank=command.number("lora_rank"),
    )
    return job, Plan(_placement(command), _training(command), _serving(command))


def _limits(command: Command) -> tuple[int, int]:
    """(prompt, response) limits in tokens."""
    if command.given.keys() & {"prompt_max_len", "generate_max_len"} or command["max_len"] is None:
        return command.number("prompt_max_len"), command.number("generate_max_len")
    total = command.number("max_len")
    new = command.number("max_new_tokens") or total // 2
    return max(1, total - new), min(new, total - 1)


def _placement(command: Command) -> Placement:
    has = command.has
    sizes = {role: command.world(role) if has[role] else 0 for role in ROLES}
    pairs = [
        pair for pair in ("actor-ref", "critic-reward") if command.on(f"colocate_{pair.replace('-', '_')}")
    ]
    sharing = "all" if command.on("colocate_all_models") else "+".join(pairs) or "none"
    mode = "async" if command.on("async_train") else "hybrid" if command.hybrid else "distributed"
    engines, tp = command.number("vllm_num_engines"), command.number("vllm_tensor_parallel_size")
    return Placement(mode, sharing, **sizes, engines=engines, tp=tp)


def _training(command: Command) -> Training:
    dynamic = command.on("use_dynamic_batch")
    packs = command.on("packing_samples") or command.number("ring_attn_size") > 1
    offload = any(command.given.get(name) for name in ("ref_reward_offload", "ref.offload", "reward.offload"))
    return Training(
        zero=command.number("zero_stage"),
        adam_offload=command.on("adam_offload"),
        eval_offload=offload,
        checkpointing=command.on("gradient_checkpointing"),
        batching="dynamic" if dynamic else "packed" if packs else "padded",
        micro=max(1, command.number("micro_train_batch_size")),
        forward_micro=max(1, command.number("micro_rollout_batch_size")),
        cap=max(1, command.number("train_max_tokens_per_gpu")),
        ring=command.number("ring_attn_size"),
        ds_tp=command.number("ds_tensor_parallel_size"),
        overlap=command.on("overlap_comm"),
    )


def _serving(command: Command) -> Serving:
    return Serving(
        utilization=float(str(command["vllm_gpu_memory_utilization"])),
        vllm_sleep=command.on("vllm_enable_sleep") and command.hybrid,
        ds_sleep=command.on("deepspeed_enable_sleep"),
        eager=command.on("enforce_eager"),
        prefix_caching=command.on("enable_prefix_caching"),
        queue=max(1, command.number("async_queue_size")),
        partial=command.on("partial_rollout"),
    )


def _memory_findings(job: Job, plan: Plan, forecast: Forecast) -> list[Finding]:
    found = []
    for pool in forecast.overfull:
        phase, peak = forecast.peak(pool)
        parts = forecast.pools[pool][phase]
        largest = max(parts, key=lambda part: parts[part])
        found.append(
            Finding(
                "gpu-memory",
                "memory",
                f"{phase} on the GPUs of {pool} needs {peak / GIB:.1f} GiB of the "
                f"{forecast.usable(pool) / GIB:.1f} "
                f"usable; the most is {largest}, {parts[largest] / GIB:.1f} GiB",
            )
        )
    if forecast.host_total > memory.HOST_LIMIT * forecast.host_bytes:
        found.append(
            Finding(
                "host-memory",
                "memory",
                f"a node needs {forecast.host_total / GIB:.0f} GiB of host memory of "
                f"{forecast.host_bytes / GIB:.0f}: Ray kills tasks above {memory.HOST_LIMIT:.0%}",
            )
        )
    tokens = kv_capacity(job, plan.placement.tp, plan.serving.utilization)
    if tokens < job.max_tokens:
        found.append(
            Finding(
                "kv-cache",
                "memory",
                f"the KV cache of an engine holds {int(np.maximum(0, tokens)):,} tokens, a sequence up to "
                f"{job.max_tokens:,}: vLLM refuses to start",
            )
        )
    return found
