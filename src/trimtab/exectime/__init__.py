"""Batch aggregates to seconds: builds the engine's tables from a roofline, a forest or tables."""

from trimtab.exectime.build import build_tables, tokens_per_second
from trimtab.exectime.experts import moe_layer_seconds
from trimtab.exectime.tables import ExecTables

__all__ = ["ExecTables", "build_tables", "moe_layer_seconds", "tokens_per_second"]
