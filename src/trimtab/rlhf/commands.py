"""A plan as OpenRLHF's flags, in the syntax of a version, and the shell script around them."""

from __future__ import annotations

import shlex
from typing import Any

from trimtab.rlhf.flags import (
    TOTAL_LENGTH_SINCE,
    Settings,
    all_flags,
    stack_of,
    version_key,
)
from trimtab.rlhf.job import ALGORITHMS, Job
from trimtab.rlhf.placement import ROLES, Plan

CUMEM_BROKEN = "0.16"  # vLLM, from which NCCL_CUMEM_ENABLE=0 breaks ncclCommInitRank


def plan_settings(job: Job, plan: Plan) -> Settings:
    """The flags of a plan by canonical name, for the job's version. Paths of data are left to the script."""
    place, training, serving, version = plan.placement, plan.training, plan.serving, job.version
    settings: Settings = {"pretrain": job.actor.id}
    if job.remote_reward:
        settings["remote_rm_url"] = job.remote_reward
    elif job.reward_model is not None:
        settings["reward_pretrain"] = job.reward_model.id
    if job.critic_model is not None and job.critic is not None:
        settings["critic_pretrain"] = job.critic.id
    for role in ROLES:
        size = getattr(place, role)
        if size:
            nodes, each = _nodes(size, job.cluster.gpus_per_node)
            settings |= {f"{role}_num_nodes": nodes, f"{role}_num_gpus_per_node": each}
    if place.sharing == "all":
        settings["colocate_all_models"] = True
    settings["colocate_actor_ref"] = "actor-ref" in place.sharing
    settings["colocate_critic_reward"] = "critic-reward" in place.sharing
    settings |= {
        "async_train": place.mode == "async",
        "vllm_num_engines": place.engines,
        "vllm_tensor_parallel_size": place.tp,
        "vllm_gpu_memory_utilization": serving.utilization,
        "vllm_sync_backend": "nccl",
        "vllm_enable_sleep": serving.vllm_sleep,
        "deepspeed_enable_sleep": serving.ds_sleep,
        "enforce_eager": serving.eager,
        "enable_prefix_caching": serving.prefix_caching,
        "partial_rollout": serving.partial,
        "zero_stage": training.zero,
        "adam_offload": training.adam_offload,
        "gradient_checkpointing": training.checkpointing,
        "overlap_comm": training.overlap,
        "ring_attn_size": training.ring,
        "ds_tensor_parallel_size": training.ds_tp,
        "packing_samples": training.batching != "padded",
        "use_dynamic_batch": training.batching == "dynamic",
        "lora_rank": job.lora_rank,
    }
    if place.mode == "async":
        settings["async_queue_size"] = serving.queue
    if training.eval_offload:
        settings["ref_reward_offload"] = True
    return settings | _batches(job, plan) | _algorithm(job) | _precision(version)


def _nodes(size: int, per_node: int) -> tuple[int, int]:
    """(nodes, GPUs of each) of a group."""
    return (1, size) if size <= per_node else (size // per_node, per_node)


def _batches(job: Job, plan: Plan) -> Settings:
    training = plan.training
    settings: Settings = {
        "rollout_batch_size": job.prompts,
        "n_samples_per_prompt": job.samples,
        "train_batch_size": job.train_batch,
        "micro_train_batch_size": training.micro,
        "micro_rollout_batch_size": training.forward_micro,
    }
    if training.batching == "dynamic":
        # Counted micro-batches are ignored for training, but the number of forward ones is still checked.
        settings |= {
            "micro_train_batch_size": 1,
            "micro_rollout_batch_size": 1,
            "train_max_tokens_per_gpu": training.cap,
            "rollout_max_tokens_per_gpu": training.cap,
        }
    if version_key(job.version) < version_key(TOTAL_LENGTH_SINCE):
        return settings | {"prompt_max_len": job.prompt.limit, "generate_max_len": job.response.limit}
    return settings | {"max_len": job.max_tokens, "max_new_tokens": job.response.limit}


def _algorithm(job: Job) -> Settings:
    settings: Settings = {"advantage_estimator": ALGORITHMS[job.algorithm], "init_kl_coef": job.kl}
    if job.algorithm == "grpo" and job.kl > 0:
        settings |= {"use_kl_loss": True, "kl_estimator": "k3"}
    return settings


def _precision(version: str) -> Settings:
    """bf16 and flash attention, where they are not the default."""
    settings: Settings = {"bf16": True, "param_dtype": "bf16"}
    settings |= {"flash_attn": True, "attn_implementation": "flash_attention_2"}
    flags = all_flags()
    return {name: value for name, value in settings.items() if flags[name].spelling(version)}


ALWAYS = ("zero_stage", "advantage_estimator", "init_kl_coef", "train_batch_size", "rollout_batch_size")


def arguments(settings: Settings, version: str) -> list[str]:
    """The words after ``train_ppo_ray``, in the syntax of ``version``; what is the default is left out,
    except sizes and what a reader looks for."""
    words: list[str] = []
    flags = all_flags()
    for name, value in _translated(settings, version).items():
        flag = flags[name]
        spelling = flag.spelling(version)
        wanted = name in ALWAYS or "num_" in name or "max_" in name or "micro_" in name
        if value is None or (value == flag.default_in(version) and not wanted):
            continue
        if spelling is None:
            # A switch that is off, or a size of 1, needs no flag; anything else would be lost.
            assert value in (False, 0, 1), f"{name} cannot be said in OpenRLHF {version}"
            continue
        words.append(f"--{spelling}")
        if flag.kind != "switch":
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [_text(each) for each in values]
    return words


def _translated(settings: Settings, version: str) -> Settings:
    """``ref_reward_offload`` became two flags."""
    offload = all_flags()["ref_reward_offload"]
    if not settings.get("ref_reward_offload") or offload.spelling(version):
        return settings
    rest = {name: value for name, value in settings.items() if name != "ref_reward_offload"}
    rest |= {f"{role}.offload": True for role in ("ref", "reward") if f"{role}_num_nodes" in settings}
    return rest


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def command_lines(words: list[str]) -> str:
    """The command with one flag on each line."""
    lines = ["python3 -m openrlhf.cli.train_ppo_ray"]
    for word in words:
        if word.startswith("--"):
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines)


def script(job: Job, plan: Plan, words: list[str]) -> str:
    """A shell script: the environment that the version needs, Ray, and the command."""
    version, stack = job.version, stack_of(job.version)
    place = plan.placement
    lines = [
        "#!/usr/bin/env bash",
        f"# {plan.describe()}",
        f"# OpenRLHF {version} (DeepSpeed {stack['deepspeed']}, vLLM {stack['vllm']}, Ray {stack['ray']}): "
        f"{place.gpus} GPUs on {job.cluster.nodes} node{'s' * (job.cluster.nodes > 1)}",
        "set -euo pipefail",
        "",
    ]
    lines += environment(job, plan)
    lines += [
        ': "${PROMPTS:?set PROMPTS to the prompt data set}"',
        'OUT="${OUT:-./ckpt}"',
        "",
        "# On the head node; on the others: ray start --address HEAD:6379 --num-gpus "
        f"{job.cluster.gpus_per_node}",
        f"ray status >/dev/null 2>&1 || ray start --head --num-gpus {job.cluster.gpus_per_node}",
        "",
    ]
    flags = all_flags()
    data, save = flags["prompt_data"].spelling(version), flags["save_path"].spelling(version)
    body = command_lines(words)
    body += f' \\\n  --{data} "$PROMPTS" \\\n  --{save} "$OUT"'
    return "\n".join([*lines, body, ""])


def environment(job: Job, plan: Plan) -> list[str]:
    """Variables to export, each with its reason."""
    lines = []
    engine = stack_of(job.version)["vllm"]
    if plan.placement.mode != "hybrid":
        if version_key(engine) < version_key(CUMEM_BROKEN):
            lines += [
                f"# Weights are broadcast by NCCL to vLLM {engine} (< {CUMEM_BROKEN}): both sides "
                "must agree.",
                "export NCCL_CUMEM_ENABLE=0",
            ]
        else:
            lines += [
                f"# Not with vLLM {engine}: NCCL_CUMEM_ENABLE=0 makes ncclCommInitRank fail (NCCL 2.27+).",
                "unset NCCL_CUMEM_ENABLE",
            ]
    lines += [
        "# Ray must not renumber the devices where only some of them are visible.",
        'if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then',
        "  export RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES=1",
        "fi",
    ]
    if plan.training.batching == "dynamic" or plan.training.batching == "packed":
        lines += [
            "# Lengths vary from batch to batch: let the allocator grow its blocks.",
            *(_expandable(plan)),
        ]
    if plan.placement.mode == "async" and not all_flags()["async_queue_size"].spelling(job.version):
        lines += [
            "# The queue between sampler and trainer has no flag before 0.9.1.",
            f"export OPENRLHF_ASYNC_QUEUE_SIZE={plan.serving.queue}",
        ]
    return [*lines, ""]


def _expandable(plan: Plan) -> list[str]:
    """vLLM's sleep mode owns the device's virtual memory and refuses expandable segments."""
    if plan.serving.vllm_sleep:
        return ["# (not PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: vLLM's sleep mode refuses it)"]
    return ["export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"]
