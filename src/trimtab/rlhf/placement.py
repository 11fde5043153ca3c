"""One way to run a job: which roles share which GPUs, how they train, how the engines serve."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.rlhf.job import Job

MODES = ("hybrid", "distributed", "async")
SHARING = ("all", "actor-ref+critic-reward", "actor-ref", "critic-reward", "none")
ROLES = ("actor", "critic", "ref", "reward")


@dataclass(frozen=True)
class Placement:
    """GPUs of each group, and who shares them.

    ``sharing`` all: one group of trainers (with the engines too in mode hybrid); actor-ref, critic-reward: a
    pair on the GPUs of its first; none: each its own. A role that the job lacks has 0 GPUs.
    """

    mode: str
    sharing: str
    actor: int
    critic: int
    ref: int
    reward: int
    engines: int
    tp: int

    @property
    def engine_gpus(self) -> int:
        return self.engines * self.tp

    @property
    def pools(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Disjoint groups of GPUs: name -> (GPUs, what lives there; engines are ``vllm``)."""
        sizes = {role: getattr(self, role) for role in ROLES if getattr(self, role)}
        if self.sharing == "all":
            roles = (*sizes, "vllm") if self.mode == "hybrid" else tuple(sizes)
            pools = {"all" if self.mode == "hybrid" else "trainers": (self.actor, roles)}
            return pools if self.mode == "hybrid" else {**pools, "vllm": (self.engine_gpus, ("vllm",))}
        pools = {}
        for first, second in (("actor", "ref"), ("critic", "reward")):
            together = f"{first}-{second}" in self.sharing and first in sizes and second in sizes
            if together:
                pools[f"{first}+{second}"] = (sizes[first], (first, second))
            else:
                pools |= {role: (sizes[role], (role,)) for role in (first, second) if role in sizes}
        return {**pools, "vllm": (self.engine_gpus, ("vllm",))}

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(size for size, _ in self.pools.values())

    def pool_of(self, role: str) -> str:
        return next(name for name, (_, roles) in self.pools.items() if role in roles)


@dataclass(frozen=True)
class Training:
    """How the DeepSpeed models run.

    ``batching`` padded or packed: micro-batches of ``micro`` sequences (``forward_micro`` without gradients);
    dynamic: of at most ``cap`` tokens per GPU.
    """

    zero: int = 2
    adam_offload: bool = False
    eval_offload: bool = False
    checkpointing: bool = False
    batching: str = "padded"
    micro: int = 1
    forward_micro: int = 1
    cap: int = 16384
    ring: int = 1
    ds_tp: int = 1
    overlap: bool = False


@dataclass(frozen=True)
class Serving:
    """How the vLLM engines run, and what sleeps when."""

    utilization: float = 0.9
    vllm_sleep: bool = False
    ds_sleep: bool = False
    eager: bool = False
    prefix_caching: bool = False
    queue: int = 1
    partial: bool = False


@dataclass(frozen=True)
class Plan:
    """A placement with its settings."""

    placement: Placement
    training: Training
    serving: Serving

    def data_parallel(self, role: str) -> int:
        """Ranks of a role that see different samples."""
        return int(getattr(self.placement, role)) // self.training.ring // self.training.ds_tp

    def describe(self) -> str:
        """One line: ``hybrid, 8 GPUs: 4 engines x TP 2, ZeRO-3, ...``."""
        place, training, serving = self.placement, self.training, self.serving
        sizes = ", ".join(f"{name} {size}" for name, (size, _) in place.pools.items())
        words = [f"{place.mode} ({sizes})", f"{place.engines} engines x TP {place.tp}"]
        words.append(f"utilization {serving.utilization:g}")
        words.append(f"ZeRO-{training.zero}")
        if training.batching == "dynamic":
            words.append(f"dynamic batches of {training.cap:,} tokens")
        else:
            words.append(f"{training.batching} micro-batches of {training.micro}")
        switches = {
            "checkpointing": training.checkpointing,
            "Adam on the host": training.adam_offload,
            "reference and reward on the host": training.eval_offload,
            "vLLM sleeps": serving.vllm_sleep,
            "DeepSpeed sleeps": serving.ds_sleep,
            "no CUDA graphs": serving.eager,
            "partial rollout": serving.partial,
            f"ring of {training.ring}": training.ring > 1,
            f"DeepSpeed TP {training.ds_tp}": training.ds_tp > 1,
        }
        return ", ".join([*words, *(name for name, given in switches.items() if given)])


def roles_of(job: Job) -> dict[str, bool]:
    """Which of the four roles the job has on the cluster."""
    models = (job.actor, job.critic_model, job.ref_model, job.reward_model)
    return {role: model is not None for role, model in zip(ROLES, models, strict=True)}
