"""What OpenRLHF does with a set of flags: what it asks of Ray, what it refuses, where it hangs, crashes later
or silently ignores something. One small function per rule; facts from the wheels 0.8.6 to 0.11.2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trimtab.hardware import Model
from trimtab.rlhf.flags import Settings, all_flags, sleeps_below_zero_3, stack_of, version_key
from trimtab.rlhf.job import GROUPED

KINDS = ("refused", "hangs", "crashes", "memory", "ignored", "trap")  # worst first
FATAL = ("refused", "hangs", "crashes", "memory")


@dataclass(frozen=True)
class Finding:
    """``rule`` is its short name, ``change`` the settings that would put it right (None: leave it out)."""

    rule: str
    kind: str
    text: str
    change: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """Settings with the defaults of their version filled in; ``model`` is the actor's where it is known."""

    given: Settings
    version: str
    owned: int | None = None
    model: Model | None = None

    def __getitem__(self, name: str) -> object:
        return self.given.get(name, all_flags()[name].default_in(self.version))

    def number(self, name: str) -> int:
        """A whole number; None reads as 0."""
        value = self[name]
        return int(value) if isinstance(value, (int, float)) else 0

    def on(self, name: str) -> bool:
        return bool(self[name])

    def flag(self, name: str) -> str:
        """The flag as this version spells it."""
        return f"--{all_flags()[name].spelling(self.version) or name}"

    def world(self, role: str) -> int:
        """GPUs of a role's group as the flags say, whether or not it exists."""
        return self.number(f"{role}_num_nodes") * self.number(f"{role}_num_gpus_per_node")

    @property
    def remote(self) -> bool:
        return bool(self["remote_rm_url"] or self["agent_func_path"])

    @property
    def has(self) -> dict[str, bool]:
        """Which roles are created."""
        return {
            "actor": True,
            "critic": self["advantage_estimator"] == "gae",
            "ref": float(str(self["init_kl_coef"])) > 0,
            "reward": not self.remote,
        }

    @property
    def engine_gpus(self) -> int:
        return self.number("vllm_num_engines") * self.number("vllm_tensor_parallel_size")

    @property
    def hybrid(self) -> bool:
        return self.on("colocate_all_models") and not self.on("async_train")

    @property
    def shards(self) -> int:
        return max(1, self.number("ring_attn_size") * self.number("ds_tensor_parallel_size"))

    @property
    def samples(self) -> int:
        return self.number("rollout_batch_size") * self.number("n_samples_per_prompt")


def demand(command: Command) -> dict[str, int]:
    """GPUs that Ray is asked for, by group that shares them: the sum must not exceed what there is."""
    has = command.has
    asked: dict[str, int] = {}
    everything = command.on("colocate_all_models")
    shared = everything or command.on("colocate_actor_ref")
    if command.engine_gpus and not command.hybrid:
        asked["vllm"] = command.engine_gpus
    asked["all" if everything else "actor+ref" if shared and has["ref"] else "actor"] = command.world("actor")
    if has["ref"] and not shared:
        asked["ref"] = command.world("ref")
    # A pair of critic and reward gets GPUs of its own even where everything else is together.
    if has["critic"] and command.on("colocate_critic_reward"):
        asked["critic+reward" if has["reward"] else "critic"] = command.world("critic")
    elif not everything:
        asked |= {role: command.world(role) for role in ("critic", "reward") if has[role]}
    return asked


Rule = Callable[[Command], Iterator[Finding]]


def findings(command: Command) -> list[Finding]:
    """All findings, the worst first."""
    found = [finding for rule in RULES for finding in rule(command)]
    return sorted(found, key=lambda finding: KINDS.index(finding.kind))


def _groups(command: Command) -> Iterator[Finding]:
    has = command.has
    pairs = []
    if has["ref"] and (command.on("colocate_actor_ref") or command.on("colocate_all_models")):
        pairs.append(("actor", "ref"))
    if has["critic"] and command.on("colocate_critic_reward"):
        pairs.append(("critic", "reward"))
    for first, second in pairs:
        names = [f"{first}_num_nodes", f"{first}_num_gpus_per_node"]
        others = [f"{second}_num_nodes", f"{second}_num_gpus_per_node"]
        here, there = [command.number(name) for name in names], [command.number(name) for name in others]
        if here != there:
            yield Finding(
                "colocated-sizes",
                "refused",
                f"{first} ({here[0]} x {here[1]}) and {second} ({there[0]} x {there[1]}) share "
                "GPUs, so their "
                "groups must be alike",
                dict(zip(others, here, strict=True)),
            )
    if command.on("colocate_all_models"):
        for role in ("critic", "reward"):
            if has[role] and command.world(role) > command.world("actor"):
                yield Finding(
                    "colocated-sizes",
                    "crashes",
                    f"{role} has {command.world(role)} ranks, the shared group of the actor only "
                    f"{command.world('actor')} places",
                    {
                        f"{role}_{size}": command[f"actor_{size}"]
                        for size in ("num_nodes", "num_gpus_per_node")
                    },
                )


def _hybrid_engines(command: Command) -> Iterator[Finding]:
    if not (command.hybrid and command.number("vllm_num_engines")):
        return
    world, gpus = command.world("actor"), command.engine_gpus
    if world != gpus:
        tp = max(1, command.number("vllm_tensor_parallel_size"))
        yield Finding(
            "engines-fill-actor",
            "refused",
            f"with {command.flag('colocate_all_models')} engines x tensor parallelism must be the "
            "actor's GPUs: "
            f"{command.number('vllm_num_engines')} x {tp} = {gpus}, not {world}",
            {"vllm_num_engines": world // tp} if world % tp == 0 else {},
        )


def _second_group(command: Command) -> Iterator[Finding]:
    if command.on("colocate_all_models") and command.on("colocate_critic_reward") and command.has["critic"]:
        yield Finding(
            "second-group",
            "hangs"
            if command.owned is not None and sum(demand(command).values()) > command.owned
            else "trap",
            f"{command.flag('colocate_critic_reward')} beside {command.flag('colocate_all_models')} "
            "makes a second "
            f"group of {command.world('critic')} GPUs for critic and reward; leave it out",
            {"colocate_critic_reward": None, "colocate_actor_ref": None},
        )


def _owned(command: Command) -> Iterator[Finding]:
    asked = demand(command)
    total = sum(asked.values())
    if command.owned is None or total <= command.owned:
        return
    parts = ", ".join(f"{name} {count}" for name, count in asked.items())
    yield Finding(
        "gpus-owned",
        "hangs",
        f"asks Ray for {total} GPUs ({parts}) and there are {command.owned}: it waits for ever for the last "
        "placement group, without an error",
        _merged(command),
    )


def _merged(command: Command) -> Settings:
    """Pairs on the same GPUs, if that brings the demand down to what there is."""
    has, change = command.has, Settings()
    if command.on("colocate_all_models"):
        return change
    for first, second in (("actor", "ref"), ("critic", "reward")):
        if has[first] and has[second]:
            change[f"colocate_{first}_{second}"] = True
            for size in ("num_nodes", "num_gpus_per_node"):
                change[f"{second}_{size}"] = command[f"{first}_{size}"]
    trial = Command({**command.given, **change}, command.version)
    return change if sum(demand(trial).values()) <= (command.owned or 0) else Settings()


def _parallelism(command: Command) -> Iterator[Finding]:
    uneven = [role for role, there in command.has.items() if there and command.world(role) % command.shards]
    if uneven:
        yield Finding(
            "ring-divides",
            "crashes",
            f"{command.flag('ring_attn_size')} {command.number('ring_attn_size')} x "
            f"{command.flag('ds_tensor_parallel_size')} {command.number('ds_tensor_parallel_size')} does not "
            f"divide the {command.world(uneven[0])} GPUs of {', '.join(uneven)}: OpenRLHF's checks "
            "pass, then "
            "init_device_mesh fails",
        )
    if command.number("ds_tensor_parallel_size") > 1 and command.number("zero_stage") == 3:
        yield Finding(
            "tp-zero",
            "crashes",
            f"DeepSpeed's tensor parallelism works up to ZeRO-2, not with {command.flag('zero_stage')} 3",
            {"ds_tensor_parallel_size": None},
        )
    if command.model is None:
        return
    heads, kv = command.model.heads, command.model.kv_heads
    for name in ("vllm_tensor_parallel_size", "ds_tensor_parallel_size", "ring_head_stride"):
        degree = command.number(name)
        if degree > 1 and heads % degree:
            yield Finding(
                "heads-divide",
                "crashes",
                f"{command.flag(name)} {degree} does not divide the {heads} heads of {command.model.name}",
            )
        elif name == "ds_tensor_parallel_size" and degree > 1 and kv % degree:
            yield Finding(
                "heads-divide",
                "crashes",
                f"{command.flag(name)} {degree} does not divide the {kv} KV heads of {command.model.name}",
            )


def _batches(command: Command) -> Iterator[Finding]:
    batch, dynamic = command.number("train_batch_size"), command.on("use_dynamic_batch")
    micro = 1 if dynamic else command.number("micro_train_batch_size")
    for role in ("actor", "critic"):
        ranks = command.world(role) // command.shards
        whole = command.world(role) % command.shards == 0
        if command.has[role] and whole and ranks and batch % (micro * ranks):
            nearest = max(1, round(batch / (micro * ranks))) * micro * ranks
            yield Finding(
                "batch-divides",
                "crashes",
                f"{command.flag('train_batch_size')} {batch} does not divide by micro-batch {micro} "
                f"x {ranks} ranks "
                f"of {role}: DeepSpeed's batch check fails",
                {"train_batch_size": nearest},
            )
    ranks = (
        command.world("actor")
        // command.number("ring_attn_size")
        // command.number("ds_tensor_parallel_size")
    )
    forward = max(1, command.number("micro_rollout_batch_size"))
    if command.samples // forward < ranks:
        yield Finding(
            "enough-batches",
            "refused",
            f"{command.samples} samples in micro-batches of {forward} are fewer than the actor's "
            f"{ranks} ranks",
            {"micro_rollout_batch_size": max(1, command.samples // max(1, ranks))},
        )
    if batch > command.samples:
        yield Finding(
            "batch-divides",
            "crashes",
            f"{command.flag('train_batch_size')} {batch} is "
            "more than the "
            f"{command.samples} samples of a rollout: no step is ever made",
        )
    elif command.samples % batch:
        yield Finding(
            "dropped-samples",
            "trap",
            f"{command.samples % batch} of {command.samples} "
            "samples are dropped "
            f"in every rollout: they do not fill a batch of {batch}",
        )
    if dynamic and command.given.keys() & {"micro_train_batch_size"}:
        yield Finding(
            "micro-ignored",
            "ignored",
            f"{command.flag('micro_train_batch_size')} has no "
            "effect with "
            f"{command.flag('use_dynamic_batch')}",
        )


def _engines(command: Command) -> Iterator[Finding]:
    packs = (
        command.on("packing_samples")
        or command.on("use_dynamic_batch")
        or command.number("ring_attn_size") > 1
    )
    if packs and not command.number("vllm_num_engines"):
        why = "a TypeError" if command["vllm_num_engines"] is None else "an assertion"
        yield Finding(
            "packing-engines",
            "refused",
            f"packing needs {command.flag('vllm_num_engines')} > 0; without it {why} ends the run",
        )
    if command.on("async_train") and not command.number("vllm_num_engines"):
        yield Finding("async-engines", "crashes", f"{command.flag('async_train')} needs engines of its own")
    if command.on("vllm_enable_sleep"):
        if not command.on("colocate_all_models"):
            yield Finding(
                "sleep-alone",
                "ignored",
                f"{command.flag('vllm_enable_sleep')} is "
                "switched off without "
                f"{command.flag('colocate_all_models')}",
                {"vllm_enable_sleep": None},
            )
        elif command.on("async_train"):
            yield Finding(
                "async-sleep",
                "refused",
                f"asynchronous training is not supported with {command.flag('vllm_enable_sleep')}",
                {"vllm_enable_sleep": None},
            )
    if command.on("partial_rollout") and not command.on("async_train"):
        yield Finding(
            "partial-async",
            "refused",
            f"{command.flag('partial_rollout')} needs {command.flag('async_train')}",
            {"async_train": True},
        )
    utilization = float(str(command["vllm_gpu_memory_utilization"]))
    if not 0 < utilization <= 1:
        yield Finding(
            "utilization",
            "crashes",
            f"{command.flag('vllm_gpu_memory_utilization')} {utilization:g} must be above 0 and at most 1",
        )
    elif command.hybrid and "vllm_gpu_memory_utilization" not in command.given:
        yield Finding(
            "utilization",
            "trap",
            f"{command.flag('vllm_gpu_memory_utilization')} is "
            "0.95 by default, which "
            "leaves nothing for the other models on these "
            "GPUs",
            {"vllm_gpu_memory_utilization": 0.5},
        )


def _deepspeed(command: Command) -> Iterator[Finding]:
    stage, version = command.number("zero_stage"), command.version
    if command.on("deepspeed_enable_sleep"):
        if command.on("adam_offload"):
            yield Finding(
                "sleep-offload",
                "ignored",
                f"{command.flag('deepspeed_enable_sleep')} does nothing with {command.flag('adam_offload')}",
            )
        elif stage != 3 and not sleeps_below_zero_3(version):
            yield Finding(
                "sleep-zero",
                "crashes",
                f"{command.flag('deepspeed_enable_sleep')} needs {command.flag('zero_stage')} 3 "
                "with DeepSpeed "
                f"{stack_of(version)['deepspeed']} (0.17.5 or older): NotImplementedError",
                {"zero_stage": 3},
            )
    offloads = [
        name for name in ("ref_reward_offload", "ref.offload", "reward.offload") if command.given.get(name)
    ]
    if offloads and stage < 3:
        yield Finding(
            "offload-zero",
            "ignored",
            f"{command.flag(offloads[0])} has an effect with {command.flag('zero_stage')} 3 only",
            {"zero_stage": 3},
        )
    bf16 = all_flags()["bf16"].spelling(version)
    if bf16 and not command.on("bf16"):
        yield Finding(
            "bf16",
            "trap",
            f"--bf16 is off by default in OpenRLHF {version}: DeepSpeed would train in fp32",
            {"bf16": True},
        )


def _algorithm(command: Command) -> Iterator[Finding]:
    estimator = str(command["advantage_estimator"])
    grouped = [name for name in GROUPED if name != "dr_grpo" or version_key(command.version) >= (0, 10, 2)]
    if estimator in grouped and command.number("n_samples_per_prompt") < 2:
        yield Finding(
            "grouped-samples", "refused", f"{estimator} needs {command.flag('n_samples_per_prompt')} > 1"
        )
    if not command.has["critic"]:
        given = [name for name in command.given if name.startswith("critic_") and "learning" not in name]
        if given:
            yield Finding("no-critic", "ignored", f"{command.flag(given[0])}: {estimator} has no critic")
    elif command["reward_pretrain"] is None and not command.remote and command["critic_pretrain"] is None:
        yield Finding(
            "reward-missing",
            "refused",
            f"give {command.flag('reward_pretrain')} or "
            f"{command.flag('remote_rm_url')}: the critic starts from it",
        )
    if command["eval_dataset"] and not command.remote:
        yield Finding(
            "eval-remote", "refused", f"{command.flag('eval_dataset')} needs {command.flag('remote_rm_url')}"
        )
    if command.on("dynamic_filtering") and (not command.remote or command.number("n_samples_per_prompt") < 2):
        yield Finding(
            "filtering",
            "refused",
            f"{command.flag('dynamic_filtering')} needs "
            f"{command.flag('remote_rm_url')} and several samples of a prompt",
        )
    generate = command.number("vllm_generate_batch_size")
    beyond = generate > command.number("rollout_batch_size") and not command.on("async_train")
    if beyond and version_key(command.version) >= version_key("0.9.8"):
        yield Finding(
            "oversampling",
            "refused",
            f"{command.flag('vllm_generate_batch_size')} above the rollout batch needs "
            f"{command.flag('async_train')}",
        )


def _stability(command: Command) -> Iterator[Finding]:
    dual, target = command["dual_clip"], command["kl_target"]
    if dual is not None and float(str(dual)) <= 1:
        yield Finding("dual-clip", "crashes", f"{command.flag('dual_clip')} must be above 1, got {dual}")
    if target:
        per_step = 0.2 * command.samples / max(1, command.number("kl_horizon"))
        what = "and below zero at once" if per_step >= 1 else f"by {100 * per_step:.2g} % in every step"
        if float(str(target)) > 1:
            yield Finding(
                "kl-target",
                "trap",
                f"{command.flag('kl_target')} {target:g} is a scale "
                "of whole sequences; "
                "OpenRLHF's kl is a mean per token, far below it, so the coefficient "
                f"falls {what}: "
                "0.01 to 0.1 is the right scale",
            )
    for name in ("top_p",):
        if float(str(command[name])) < 1:
            yield Finding(
                "sampling",
                "trap",
                f"{command.flag(name)} {command[name]} cuts the "
                "sampling distribution but "
                "not the training one: log-probabilities no longer match, KL may go below zero",
                {name: 1.0},
            )
    bounds = command["eps_clip_low_high"]
    if isinstance(bounds, list) and bounds[1] > float(str(command["eps_clip"])):
        yield Finding(
            "clip-higher",
            "trap",
            f"{command.flag('eps_clip_low_high')} {bounds[0]:g} "
            f"{bounds[1]:g} is looser "
            f"than {command.flag('eps_clip')} {command['eps_clip']:g}, not more "
            "conservative",
        )


RULES: tuple[Rule, ...] = (
    _groups,
    _hybrid_engines,
    _second_group,
    _owned,
    _parallelism,
    _batches,
    _engines,
    _deepspeed,
    _algorithm,
    _stability,
)
