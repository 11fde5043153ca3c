"""Sequences of different lengths in micro-batches under a token cap; docs/how-to/pack-batches.md."""

from trimtab.balance.packing.batches import METHODS, Packing, flops_cost, pack
from trimtab.balance.packing.differencing import karmarkar_karp
from trimtab.balance.packing.sampler import PackedBatchSampler

__all__ = ["METHODS", "PackedBatchSampler", "Packing", "flops_cost", "karmarkar_karp", "pack"]
