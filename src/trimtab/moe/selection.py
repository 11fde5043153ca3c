"""What a router's forward does inside, without rewriting it: its scores read, its selection biased.

While a router runs, every torch function that it calls passes through here. Where the router adds its own
bias, the other operand is what the bias is added to: the scores, in the very space in which a bias counts,
whatever the model calls them. Where a router has no bias, its top-k is made on biased scores, and gives the
unbiased ones of those it chose, so that the weights of the experts come from the scores alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ADDITIONS = ("add", "__add__", "__radd__")
SMALLEST = torch.finfo(torch.float32).tiny


class Selection(TorchFunctionMode):
    """Active during the forward of one router.

    ``bias`` (experts,) is the model's own tensor, to be recognised where it is added (``stored``), or ours,
    to be applied to the top-k. A top-k over softmax probabilities p uses log p + b, which ranks as
    logits + b would (a bias on p itself would have to be of the size of 1 / experts); one over logits or
    sigmoid scores uses score + b. Phi-MoE's two `max` instead of a top-k are treated alike.
    """

    def __init__(self, experts: int, top_k: int, bias: Tensor, *, stored: bool) -> None:
        super().__init__()
        self.experts, self.top_k, self.bias, self.stored = experts, top_k, bias, stored
        self.idle = not stored  # a bias of zero: the router's own code runs untouched
        self.forget()

    def forget(self) -> None:
        """Before a forward."""
        self.scores: Tensor | None = None  # (tokens, experts), what the bias is added to
        self.choices: Tensor | None = None  # (tokens, top_k) of the last selection
        self.probabilities: Tensor | None = None
        self.logarithmic = False  # whether this router chooses among probabilities

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.stored:
            if name in ADDITIONS and len(args) == 2:
                self.note_addition(args)
            return func(*args, **kwargs)
        if name == "softmax":
            result = func(*args, **kwargs)
            if result.shape[-1] == self.experts:
                self.probabilities = result.detach()
            return result
        if name in ("topk", "max") and self.selects(name, args, kwargs):
            return self.select(func, args, kwargs)
        return func(*args, **kwargs)

    def note_addition(self, args: Any) -> None:
        """Keep the scores where this is the addition of the bias: a view or a copy of none other counts."""
        for tensor, other in (args, args[::-1]):
            if not (isinstance(tensor, Tensor) and isinstance(other, Tensor)):
                return
            if tensor.data_ptr() == self.bias.data_ptr() and other.shape[-1] == self.experts:
                self.scores = other.detach().reshape(-1, self.experts)

    def selects(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether this call chooses experts: over all of them, as many as the router takes."""
        given = args[0] if args else kwargs.get("input")
        if not isinstance(given, Tensor) or given.ndim == 0 or given.shape[-1] != self.experts:
            return False
        if name == "max":
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return dim in (-1, given.ndim - 1)
        k = args[1] if len(args) > 1 else kwargs.get("k")
        dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
        return k == self.top_k and dim in (-1, given.ndim - 1)

    def select(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The same call on biased scores; the values it gives are the unbiased ones of its choices."""
        given: Tensor = args[0] if args else kwargs.pop("input")
        self.note_scores(given)
        if self.idle:
            result = func(given, *args[1:], **kwargs)
            self.choices = result.indices.detach()
            return result
        biased = (given.log() if self.logarithmic else given) + self.bias
        indices = func(biased, *args[1:], **kwargs).indices
        self.choices = indices.detach()
        keeps = indices.ndim == given.ndim
        values = given.gather(-1, indices if keeps else indices[..., None])
        kind = torch.return_types.topk if func.__name__ == "topk" else torch.return_types.max
        return kind((values if keeps else values[..., 0], indices))

    def note_scores(self, given: Tensor) -> None:
        """What the bias is added to: logarithms of probabilities, where the router chooses among them."""
        if self.scores is not None:  # Phi-MoE asks a second time, with its first choice taken out
            return
        self.logarithmic = self.probabilities is not None
        if self.probabilities is not None:
            self.scores = self.probabilities.float().clamp_min(SMALLEST).log().reshape(-1, self.experts)
        else:
            self.scores = given.detach().reshape(-1, self.experts)
