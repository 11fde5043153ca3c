"""The first sketch's rule as it was written, so that the difference can be measured. Not for use.

    biased_logits = raw_logits + modality_bias.detach()
    weights = softmax(biased_logits)
    modality_bias -= update_rate * sign(weights.mean(dim=0) - target_load)

The bias is outside the gradient and inside the softmax whose weights multiply the features: the gate learns
to cancel it, and it grows without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import TrimtabError
from trimtab.fusion.gate import ModalityGate


class LiteralGate(ModalityGate):
    """`ModalityGate` with free logits and the rule above: no centring, no bound, the batch's own load.

    ``dominant`` must be named, as the sketch's target does.
    """

    def __init__(self, modalities: Sequence[str], network: nn.Module, **settings: Any) -> None:
        super().__init__(modalities, network, **{**settings, "logits": "free"})
        if self.dominant is None:
            raise TrimtabError("the literal rule needs the dominant modality's name")
        self.update_rate = float(settings.get("load_balance_update_rate", 0.01))
        self.modality_bias: Tensor
        self.register_buffer("modality_bias", torch.zeros(len(self.modalities)))
        self.enable_load_balancing = False  # of the law; the rule here stands in its place

    def forward(self, *inputs: Any, present: Tensor | None = None) -> Tensor:
        """Weights (batch, modalities), and the step of the bias in training."""
        self.settle()
        biased = self.network(*inputs) + self.modality_bias.detach()
        if present is not None:
            biased = biased.masked_fill(~present, torch.finfo(biased.dtype).min)
        weights = torch.softmax(biased, -1)
        if self.training and torch.is_grad_enabled():
            error = weights.detach().mean(0) - torch.from_numpy(self.target()).to(weights)
            self.modality_bias = self.modality_bias - self.update_rate * torch.sign(error)
            self._pending = self._load_of(weights.detach(), present)
        return weights

    @property
    def bias(self) -> Any:
        """(modalities,) what is added to the logits."""
        return self.modality_bias.double().numpy()
