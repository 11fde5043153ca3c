"""attach() in two real processes: one all-reduce per forward, and the same bias on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks

pytest.importorskip("torch", reason="torch is not installed")
RANKS, BATCHES = 2, 4
LAYERS, EXPERTS, TOP_K = 3, 8, 2


def small_model() -> Any:
    """Two routers and nothing else: real families are tested elsewhere, and take seconds to import."""
    import torch
    from torch import nn

    class SmallRouter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts, self.top_k = EXPERTS, TOP_K
            self.weight = nn.Parameter(torch.randn(EXPERTS, 16))

        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
            logits = hidden @ self.weight.T
            weights, choices = torch.topk(torch.softmax(logits, -1), self.top_k, dim=-1)
            return logits, weights, choices

    class SmallModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([SmallRouter() for _ in range(LAYERS)])

        def forward(self, hidden: torch.Tensor) -> None:
            for layer in self.layers:
                layer(hidden)

    torch.manual_seed(0)
    return SmallModel()


def serve(rank: int | None, all_reduce: Any) -> tuple[np.ndarray, np.ndarray]:
    """(bias, load) after some batches: the rank's own, or for None those of all ranks as one batch."""
    import torch

    from trimtab.balance import law
    from trimtab.moe import attach

    model = small_model()
    with attach(model, law("ewma", 0.05), reduce=all_reduce) as attached, torch.no_grad():
        for batch in range(BATCHES):
            generator = torch.Generator().manual_seed(batch)
            hidden = torch.randn((RANKS, 64, 16), generator=generator)
            model(hidden.reshape(-1, 16) if rank is None else hidden[rank])
        assert attached.load is not None
        return attached.bias, attached.load


def work(rank: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    calls = []

    def all_reduce(counts: torch.Tensor) -> None:
        calls.append(counts.shape)
        dist.all_reduce(counts)

    bias, load = serve(rank, all_reduce)
    assert calls == [(LAYERS * EXPERTS,)] * BATCHES  # one per forward, whatever the number of layers
    np.savez(folder / f"{rank}.npz", bias=bias, load=load)


def test_two_processes_serve_with_the_bias_of_all_their_traffic(tmp_path: Path) -> None:
    run_ranks(work, tmp_path, RANKS)
    saved = [np.load(tmp_path / f"{rank}.npz") for rank in range(RANKS)]
    bias, load = serve(None, None)
    for one in saved:
        np.testing.assert_array_equal(one["load"], load)
        np.testing.assert_array_equal(one["bias"], bias)
