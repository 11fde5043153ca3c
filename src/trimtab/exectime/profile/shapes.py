"""What one device of a tensor-parallel group holds of a model: the sizes that operators are measured at."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.errors import TrimtabError
from trimtab.hardware.models import Model
from trimtab.hardware.parallelism import TENSOR_PARALLEL


@dataclass(frozen=True)
class Shard:
    """Sizes of one device's share; values are bf16 whatever the checkpoint's type.

    ``mlp_widths`` are the inner widths of the plain MLPs there are: of dense layers, of shared experts.
    ``experts`` is 0 without a mixture; ``expert_width`` is a slice of every expert.
    """

    model: str
    tp: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_widths: tuple[int, ...]
    halves: int  # matrices that go up: 2 with a gate, else 1
    vocab: int  # rows of the LM head on this device
    all_vocab: int  # what sampling sees
    post_attention_norm: bool
    experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0

    @property
    def fused_heads(self) -> int:
        """Query, key and value heads side by side in the fused projection."""
        return self.heads + 2 * self.kv_heads

    @property
    def kernels_per_step(self) -> int:
        """Kernels of a decode step with the operators as they are here, about: for the host's cost."""
        mixture = 18 if self.experts else 0
        return self.layers * (19 + mixture) + 10


def shard_of(model: Model, tp: int) -> Shard:
    """The share of one of ``tp`` devices. KV heads that do not divide are replicated.

    Raises
    ------
    TrimtabError
        for a degree that the model's heads or widths do not divide by, and for latent attention,
        whose kernels are not in torch.
    """
    if model.kv_lora_rank:
        raise TrimtabError(
            f"{model.name} has multi-head latent attention, for which torch has no kernel; "
            f"profile a model with plain or grouped attention"
        )
    fitting = [degree for degree in TENSOR_PARALLEL if not _reason(model, degree)]
    if tp not in fitting:
        allowed = ", ".join(str(degree) for degree in fitting)
        reason = _reason(model, tp) or "tensor parallelism must be 1, 2, 4 or 8"
        raise TrimtabError(f"tp={tp} is not possible for {model.name}: {reason}; allowed: {allowed}")
    widths = []
    if model.moe_layers < model.layers:
        widths.append(model.ffn // tp)
    if model.experts and model.shared_experts:
        widths.append(model.shared_experts * model.expert_ffn // tp)
    return Shard(
        model=model.name,
        tp=tp,
        layers=model.layers,
        hidden=model.hidden,
        heads=model.heads // tp,
        kv_heads=-(-model.kv_heads // tp),
        head_dim=model.head_dim,
        mlp_widths=tuple(dict.fromkeys(widths)),
        halves=model.mlp_matrices - 1,
        vocab=-(-model.vocab // tp),
        all_vocab=model.vocab,
        post_attention_norm=model.post_attention_norm,
        experts=model.experts,
        experts_per_token=model.experts_per_token,
        expert_width=model.expert_ffn // tp if model.experts else 0,
    )


def _reason(model: Model, tp: int) -> str:
    """Why the model cannot be split so; empty if it can."""
    if tp < 1 or tp not in TENSOR_PARALLEL:
        return ""
    if tp > 1 and not model.tensor_parallel:
        return "the model does not support tensor parallelism"
    for what, size in (("attention heads", model.heads), ("MLP width", model.ffn)):
        if size % tp:
            return f"it does not divide the {what}, {size}"
    if model.experts and model.expert_ffn % tp:
        return f"it does not divide the width of an expert, {model.expert_ffn}"
    return ""


TINY = Model(
    name="tiny",
    id="tiny",
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=128,
    vocab=256,
    max_context=4096,
    source="for trying the commands on a machine without a GPU",
)
