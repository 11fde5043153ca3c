"""A mixture of experts that a CPU can run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TINY_MIXTURE = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """Its config.json."""
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps(TINY_MIXTURE))
    return path
