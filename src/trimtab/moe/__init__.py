"""Mixtures of experts: where their experts are placed, and what the placement costs."""

from trimtab.moe.placement import Placement, even_placement, place, published_placement, rebalance

__all__ = ["Placement", "even_placement", "place", "published_placement", "rebalance"]
