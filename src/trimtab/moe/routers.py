"""Finding the routers of a Hugging Face model, and where each keeps its bias.

Models store the bias of the selection in four ways: as a buffer of the router (DeepSeek-V3, GLM), as a
buffer of the block around it, handed to the router as an argument (MiniMax-M2, LFM2), as a parameter of
either (AFMoE, ERNIE with shape (1, experts)), or not at all (Mixtral, OLMoE, Qwen). What is found is
decided by names and shapes of modules, not by a list of models, so that new families of the same build work.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import TrimtabError

ROUTER_CLASS = re.compile(r"(Router|Gating|MoEGate|MoEV\d+Gate)$", re.IGNORECASE)
BIAS_NAMES = ("e_score_correction_bias", "expert_bias")
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
GROUPS, TOP_GROUPS = ("num_group", "n_group"), ("topk_group",)
TOP_K = ("top_k", "num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k")


@dataclass
class Router:
    """One router: its module, its size, and the tensor that holds its bias (None where it has none)."""

    name: str  # path in the model, as in named_modules
    module: nn.Module
    experts: int
    top_k: int
    holder: nn.Module | None  # the module that owns the bias
    field: str  # the bias's name there
    bias_name: str  # path of the bias in the model; empty without one
    groups: int = 1  # of experts, of which a token first keeps `top_groups` by their biased scores
    top_groups: int = 1

    @property
    def placement(self) -> str:
        """ "router", "block", "parameter" or "none": the four ways of storing a bias."""
        if self.holder is None:
            return "none"
        if isinstance(self.stored(), nn.Parameter):
            return "parameter"
        return "block" if self.holder is not self.module else "router"

    def stored(self) -> Tensor:
        """The model's own bias tensor, (experts,) or (1, experts)."""
        assert self.holder is not None
        tensor: Tensor = getattr(self.holder, self.field)
        return tensor

    def replace(self, tensor: Tensor) -> None:
        """Put another tensor in the place of the stored one; a parameter stays a parameter."""
        assert self.holder is not None
        if isinstance(self.stored(), nn.Parameter) and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(self.holder, self.field, tensor)

    def device(self) -> torch.device:
        """Where the router computes."""
        return next(iter(self.module.parameters())).device


def find_routers(model: nn.Module, only: str | None = None) -> list[Router]:
    """Every router of ``model`` that can be balanced, in the order of its modules.

    ``only``: a pattern on module names such as ``"*language_model*"``, for models with several towers.
    Routers that choose by a table of token ids (DeepSeek-V4's first layers) have no choice to bias and are
    left out. Raises `TrimtabError` where nothing is found, or where a router is of a kind not known here.
    """
    if not isinstance(model, nn.Module):
        raise TrimtabError(f"attach needs a torch.nn.Module; given {type(model).__name__}")
    found = [described(model, name, module) for name, module in candidates(model, only)]
    if not found:
        where = f" under {only!r}" if only else ""
        raise TrimtabError(
            f"{type(model).__name__} has no router{where}: no module of a class named ...Router or ...Gate "
            "with experts to choose from; is it a mixture of experts?"
        )
    sizes = {(router.experts, router.top_k) for router in found}
    if len(sizes) > 1:
        listed = ", ".join(f"{experts} experts top-{top_k}" for experts, top_k in sorted(sizes))
        raise TrimtabError(
            f"routers of {type(model).__name__} differ in size ({listed}); "
            f"attach to one kind with only=, for example only={found[0].name.split('.layers')[0] + '.*'!r}"
        )
    return found


def candidates(model: nn.Module, only: str | None) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of what looks like a router by its class."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if not ROUTER_CLASS.search(kind) or "Hash" in kind or hasattr(module, "tid2eid"):
            continue
        if only is None or fnmatch.fnmatch(name, only):
            yield name, module


def described(model: nn.Module, name: str, module: nn.Module) -> Router:
    """The `Router` of a module, or an error that says what is missing."""
    block_name = name.rpartition(".")[0]
    holder, field, path = bias_of(module, name, model.get_submodule(block_name), block_name)
    top_k = number(module, TOP_K)
    experts = getattr(holder, field).numel() if holder is not None else number(module, EXPERTS)
    if experts is None or top_k is None:
        lacks = "experts" if experts is None else "experts per token"
        raise TrimtabError(
            f"{name} is a {type(module).__name__}, which does not say its number of {lacks}; "
            "this kind of router is not supported (leave it out with only=)"
        )
    if not 0 < top_k < experts:
        raise TrimtabError(f"{name} gives each token {top_k} of {experts} experts: nothing to balance")
    groups, top_groups = number(module, GROUPS) or 1, number(module, TOP_GROUPS) or 1
    if holder is None or not 1 <= top_groups < groups:  # without a bias, groups are chosen by scores alone
        groups = top_groups = 1
    return Router(name, module, experts, top_k, holder, field, path, groups, top_groups)


def bias_of(
    router: nn.Module, name: str, block: nn.Module, block_name: str
) -> tuple[nn.Module | None, str, str]:
    """(owner, name there, path in the model) of the bias: in the router, below it, or in its block."""
    places = [(name, router), *((f"{name}.{child}", part) for child, part in router.named_children())]
    for path, owner in [*places, (block_name, block)]:
        for field in BIAS_NAMES:
            if isinstance(getattr(owner, field, None), Tensor):
                return owner, field, f"{path}.{field}".lstrip(".")
    return None, "", ""


def number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of ``names`` that the module or its configuration has as a number."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value: Any = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
