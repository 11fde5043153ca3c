"""Tiny random-initialised Hugging Face models of many families, through the real transformers code."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
EXPERTS, TOP_K = 8, 2
BASE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Latent attention: as many key heads as heads, and the rotary part is the head.
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
SPARSE: dict[str, Any] = {**LATENT, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}


class Family(NamedTuple):
    """How a family is made tiny, and what is to be found in it."""

    routers: int
    placement: str
    score: str  # the function of the logits that an expert's weight is proportional to
    config: dict[str, Any] = {}  # noqa: RUF012


FAMILIES = {
    "deepseek_v3": Family(3, "router", "sigmoid", LATENT),
    "deepseek_v32": Family(3, "router", "sigmoid", SPARSE),
    "deepseek_v4": Family(2, "router", "sqrtsoftplus", {"mlp_layer_types": ["hash_moe", "moe", "moe"]}),
    "glm4_moe": Family(3, "router", "sigmoid"),
    "glm4_moe_lite": Family(2, "router", "sigmoid", LATENT),
    "glm_moe_dsa": Family(3, "router", "sigmoid", SPARSE),
    "dots1": Family(3, "router", "sigmoid"),
    "solar_open": Family(3, "router", "sigmoid"),
    "exaone_moe": Family(3, "router", "sigmoid"),
    "mimo_v2_flash": Family(2, "router", "sigmoid"),
    "nemotron_h": Family(1, "router", "sigmoid"),
    "bailing_hybrid": Family(3, "router", "sigmoid"),
    "axk1": Family(3, "router", "sigmoid", LATENT),
    "kolibri1": Family(3, "router", "sigmoid"),
    "hy_v4": Family(2, "router", "sigmoid"),
    "minimax_m2": Family(3, "block", "sigmoid"),
    "hy_v3": Family(2, "block", "sigmoid"),
    "lfm2_moe": Family(
        3,
        "block",
        "sigmoid",
        {"use_expert_bias": True, "num_dense_layers": 0, "layer_types": ["full_attention"] * 3},
    ),
    "afmoe": Family(2, "parameter", "sigmoid"),
    "laguna": Family(2, "parameter", "sigmoid"),
    "ernie4_5_moe": Family(2, "parameter", "exp"),
    "mixtral": Family(3, "none", "exp"),
    "olmoe": Family(3, "none", "exp"),
    "qwen2_moe": Family(3, "none", "exp", {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": Family(3, "none", "exp"),
    "gpt_oss": Family(3, "none", "exp"),
    "deepseek_v2": Family(3, "none", "exp", LATENT),
    "phimoe": Family(3, "none", "sparsemixer"),
    "granitemoe": Family(3, "none", "exp"),
    "flex_olmo": Family(3, "none", "exp"),
    "jamba": Family(1, "none", "exp"),
    "hunyuan_v1_moe": Family(3, "none", "exp", {"moe_topk": TOP_K}),
    "cohere2_moe": Family(3, "none", "sigmoid", {"expert_selection_fn": "sigmoid"}),
    "flint": Family(1, "none", "sigmoid"),
}
SCORES = {
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "sqrtsoftplus": lambda logits: torch.nn.functional.softplus(logits).sqrt(),
}


def tiny_model(family: str, seed: int = 0, **config: Any) -> Any:
    """A causal language model of this family with well-spread router logits and a bias of small numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**BASE, **FAMILIES[family].config, **config}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                tensor.copy_(0.02 * torch.randn(tensor.shape) + 0.1)
            elif name.split(".")[-2] in ("gate", "router", "wg") and tensor.shape == (EXPERTS, 64):
                tensor.copy_(0.15 * torch.randn(tensor.shape))  # as initialised, all experts tie
    return model


def token_ids(rows: int = 2, columns: int = 24, seed: int = 1) -> torch.Tensor:
    """Token ids (rows, columns) that are no special tokens."""
    return torch.randint(3, 256, (rows, columns), generator=torch.Generator().manual_seed(seed))


class ExpertArguments:
    """What each layer's experts are handed: (choices, weights) per layer, seen from outside the router."""

    def __init__(self, model: Any) -> None:
        self.layers: list[tuple[np.ndarray, torch.Tensor]] = []
        self.handles = [
            module.register_forward_pre_hook(self.take, with_kwargs=True)
            for _, module in model.named_modules()
            if type(module).__name__.endswith("Experts")
        ]

    def take(self, _module: Any, args: Any, kwargs: Any) -> None:
        given = [each for each in (*args, *kwargs.values()) if torch.is_tensor(each)]
        choices = next(each for each in given if each.dtype == torch.int64)
        weights = next(each for each in given if each.is_floating_point() and each.shape == choices.shape)
        self.layers.append((choices.numpy(), weights.detach()))
