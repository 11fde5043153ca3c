"""One router under observation: its hooks, its counts, and the tensor that its bias is written to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trimtab.errors import TrimtabError
from trimtab.moe.routers import Router
from trimtab.moe.selection import Selection

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


class Watch(Protocol):
    """What a recorder asks its attachment: whether a forward of the model is under way, to be recorded."""

    inside: bool
    resting: bool


class Recorder:
    """Counts and scores of one router during one forward of the model.

    A bias in half precision cannot hold steps of a law (DeepSeek-V3's lie near 5, where bfloat16 has steps
    of 0.03): while attached, a float32 copy takes its place. One in float32 keeps its storage.
    """

    def __init__(self, router: Router, want_scores: bool) -> None:
        self.router, self.want_scores = router, want_scores
        self.original: Tensor | None = None  # the model's tensor
        if router.holder is None:
            self.bias = torch.zeros(router.experts, device=router.device())
        else:
            self.original = router.stored()
            if self.original.dtype not in (torch.float32, torch.float64):
                router.replace(self.original.detach().float())
            self.bias = router.stored()
        self.learns = self.bias.requires_grad
        self.bias.requires_grad_(False)  # an optimiser and a law would pull at it in turn
        self.kept = self.bias.detach().clone()
        self.selection = Selection(router.experts, router.top_k, self.bias, stored=router.holder is not None)
        self.begin(None)

    def begin(self, mask: Tensor | None) -> None:
        """Before a forward of the model, with its ``attention_mask`` (batch, tokens) or None."""
        self.mask = mask
        self.counts: Tensor | None = None  # (experts,) int64
        self.scores: list[Tensor] = []

    # --- hooks ------------------------------------------------------------------------------------

    def hooks(self, watch: Watch) -> Iterator[Any]:
        """Register on the router; yields the handles."""
        watched = self.want_scores or self.router.holder is None

        def enter(_module: nn.Module, _args: Any) -> None:
            self.selection.forget()
            self.selection.__enter__()

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            if watched:
                self.selection.__exit__(None, None, None)
            if output is not None and watch.inside and not watch.resting:
                self.record(output)

        if watched:
            yield self.router.module.register_forward_pre_hook(enter)
        yield self.router.module.register_forward_hook(leave, always_call=watched)

    def record(self, output: Any) -> None:
        """Count the choices in a router's output."""
        choices = choices_in(output, self.router.top_k)
        choices = self.selection.choices if choices is None else choices
        if choices is None:
            raise TrimtabError(
                f"{self.router.name} ({type(self.router.module).__name__}) returned no choices: no tensor of "
                f"integers (tokens, {self.router.top_k}); this kind of router is not supported"
            )
        choices = choices.detach().reshape(-1, self.router.top_k).long()
        valid = self.valid_tokens(len(choices))
        weights = torch.ones_like(choices) if valid is None else valid[:, None].expand_as(choices).long()
        counts = torch.zeros(self.router.experts, dtype=torch.int64, device=choices.device)
        counts.scatter_add_(0, choices.reshape(-1), weights.reshape(-1))
        self.counts = counts if self.counts is None else self.counts + counts
        if self.want_scores:
            self.keep_scores(valid)

    def keep_scores(self, valid: Tensor | None) -> None:
        """Keep what the bias was added to, less padding."""
        scores = self.selection.scores
        if scores is None:
            raise TrimtabError(
                f"{self.router.name} ({type(self.router.module).__name__}) does not show its scores; "
                "use a law that reads loads, such as 'ewma'"
            )
        self.scores.append(scores if valid is None else scores[valid])

    def all_scores(self) -> Tensor:
        """(tokens, experts) of the forward."""
        return torch.cat(self.scores)

    def valid_tokens(self, tokens: int) -> Tensor | None:
        """Which of the router's tokens are no padding; None: all. With a cache the mask is longer."""
        if self.mask is None:
            return None
        batch, width = self.mask.shape
        if tokens % batch or tokens // batch > width:
            raise TrimtabError(
                f"{self.router.name} saw {tokens} tokens: no fit for an attention_mask of {batch} x {width}"
            )
        return self.mask[:, width - tokens // batch :].reshape(-1).bool().to(self.bias.device)

    # --- the bias ---------------------------------------------------------------------------------

    @torch.no_grad()
    def write(self, row: Tensor) -> None:
        """Copy (experts,) into the bias, in place and in its own dtype."""
        self.bias.copy_(row.reshape(self.bias.shape))
        if self.original is None:
            self.selection.idle = not bool(row.any())

    def restore(self) -> None:
        """The model's own tensor with its own bits."""
        if self.original is None:
            return
        if self.original is self.bias:
            self.write(self.kept)
        else:
            self.router.replace(self.original)
        self.original.requires_grad_(self.learns)


def choices_in(output: Any, top_k: int) -> Tensor | None:
    """The tensor of integers (tokens, top_k) among what a router returned, wherever it stands."""
    for item in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(item, Tensor) and item.dtype in INTEGERS and item.ndim >= 2 and item.shape[-1] == top_k:
            return item
    return None
