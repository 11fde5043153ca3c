"""Published RLHF runs (published_rlhf.yaml) as jobs and plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from trimtab.hardware import Device, Model, get_device, get_model
from trimtab.rlhf.job import Cluster, Job, Lengths
from trimtab.rlhf.placement import Placement, Plan, Serving, Training

Case = dict[str, Any]
PUBLISHED: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published_rlhf.yaml").read_text("utf-8"))
HOST_GIB = 2048.0  # of a node, where nobody said how much there was


def device_of(name: str) -> Device:
    entry = PUBLISHED["devices"].get(name)
    if entry is None:
        return get_device(name)
    changes = {key: value for key, value in entry.items() if key not in ("base", "source")}
    return replace(get_device(entry["base"]), name=name, aliases=(), **changes)


def model_of(name: str) -> Model:
    entry = PUBLISHED["models"].get(name)
    return Model(name=name, id=name, max_context=32768, **entry) if entry else get_model(name)


def fit_case(case: Case) -> tuple[Job, Plan]:
    """The job and plan of an entry of ``fit``."""
    gpus, model = case["gpus"], model_of(case["model"])
    algorithm, groups = case.get("algorithm", "grpo"), case.get("groups", "hybrid")
    per_node = 8 if gpus % 8 == 0 else gpus
    cluster = Cluster(device_of(case["device"]), gpus // per_node, per_node, case.get("host_gib", HOST_GIB))
    lengths = {side: Lengths(case[side] / 2, case[side]) for side in ("prompt", "response")}
    critic = algorithm == "ppo"
    remote = "remote" if case.get("remote") or not critic else None
    lora = case.get("lora", 0)
    job = Job(
        model,
        cluster,
        lengths["prompt"],
        lengths["response"],
        algorithm,
        remote_reward=remote,
        samples=1 if critic else 8,
        lora_rank=lora,
        # Adapters are switched off for the reference: it takes no memory of its own.
        kl=0.0 if case.get("ref_is_actor") else 0.01,
    )
    tp = case.get("tp", 1)
    sleeps = case.get("sleeps", False)
    training = Training(
        zero=case.get("zero", 3),
        adam_offload=case.get("adam", False),
        eval_offload=case.get("offload", False) or (case.get("adam", False) and case.get("zero", 3) == 3),
        checkpointing=case.get("ckpt", False),
        batching="dynamic" if "cap" in case else "padded" if case.get("padded") else "packed",
        micro=case.get("micro", 1),
        forward_micro=case.get("forward_micro", case.get("micro", 1)),
        cap=case.get("cap", 0) or 1,
    )
    if groups == "hybrid":
        place = Placement("hybrid", "all", gpus, gpus * critic, gpus * (job.kl > 0), gpus * (remote is None),
                          max(1, gpus // tp), tp)  # fmt: skip
        serving = Serving(case.get("util", 0.5), sleeps or case.get("vllm_sleep", False), sleeps)
    elif groups == "v0.2":
        # No engines then: the actor generated. One stands for none.
        place = Placement("distributed", "none", 4, 2, 1, 1, 1, 1)
        serving = Serving(0.9)
    elif groups == "single":
        place = Placement("async", "all", gpus, gpus, gpus, gpus, 1, 1)
        serving = Serving(0.9)
    elif isinstance(groups, list):
        actor, ref, engines = groups
        place = Placement("distributed", "none", actor, 0, ref, 0, engines // tp, tp)
        serving = Serving(0.95)
    else:
        raise ValueError(groups)
    return job, Plan(place, training, serving)
