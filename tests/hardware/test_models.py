"""Models against published parameter counts, and configs of the families that are accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import TrimtabError
from trimtab.hardware import get_model, list_models

# Billions of parameters as the model cards state them (total, active per token).
PUBLISHED = {
    "llama-2-7b": (6.74, 6.74),
    "llama-2-70b": (68.98, 68.98),
    "codellama-34b": (33.74, 33.74),
    "llama-3-8b": (8.03, 8.03),
    "llama-3-70b": (70.55, 70.55),
    "internlm-20b": (20.1, 20.1),
    "internlm2-20b": (19.86, 19.86),
    "qwen-72b": (72.3, 72.3),
    "phi-2": (2.78, 2.78),
    "llama-3.1-8b": (8.03, 8.03),
    "llama-3.1-70b": (70.55, 70.55),
    "llama-3.1-405b": (405.85, 405.85),
    "llama-3.3-70b": (70.55, 70.55),
    "qwen2.5-7b": (7.62, 7.62),
    "qwen2.5-14b": (14.77, 14.77),
    "qwen2.5-32b": (32.76, 32.76),
    "qwen2.5-72b": (72.71, 72.71),
    "qwen3-8b": (8.19, 8.19),
    "qwen3-14b": (14.77, 14.77),
    "qwen3-32b": (32.76, 32.76),
    "qwen3-30b-a3b": (30.53, 3.35),
    "qwen3-235b-a22b": (235.1, 22.2),
    "mixtral-8x7b": (46.7, 12.9),
    "mixtral-8x22b": (140.6, 39.1),
    "deepseek-v3": (671.0, 37.0),
}


def test_every_model_has_a_published_count_and_a_source() -> None:
    assert set(list_models()) == set(PUBLISHED)
    assert all(get_model(name).source for name in list_models())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_within_two_percent(name: str) -> None:
    model, (total, active) = get_model(name), PUBLISHED[name]
    assert model.parameters / 1e9 == pytest.approx(total, rel=0.02)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.02)


def test_the_seven_models_have_vidurs_numbers() -> None:
    # layers, heads, kv heads, hidden, ffn, vocabulary: vidur/config/model_config.py
    table = {
        "codellama/CodeLlama-34b-Instruct-hf": (48, 64, 8, 8192, 22016, 32768),
        "meta-llama/Llama-2-7b-hf": (32, 32, 32, 4096, 11008, 32768),
        "meta-llama/Llama-2-70b-hf": (80, 64, 8, 8192, 28672, 32768),
        "meta-llama/Meta-Llama-3-8B": (32, 32, 8, 4096, 14336, 128256),
        "meta-llama/Meta-Llama-3-70B": (80, 64, 8, 8192, 28672, 128256),
        "internlm/internlm-20b": (60, 40, 40, 5120, 13824, 103168),
        "Qwen/Qwen-72B": (80, 64, 64, 8192, 24576, 152064),
    }
    for name, numbers in table.items():
        m = get_model(name)
        assert (m.layers, m.heads, m.kv_heads, m.hidden, m.ffn, m.vocab) == numbers


def test_kv_bytes_per_token() -> None:
    llama = get_model("llama-3-8b")
    assert llama.kv_bytes_per_token() == 32 * 2 * 8 * 128 * 2  # 128 KiB, the figure everybody quotes
    assert llama.kv_bytes_per_token(tp=8) == 32 * 2 * 1 * 128 * 2
    # 4 KV heads on 8 devices: each device keeps a whole head.
    assert get_model("qwen3-30b-a3b").kv_bytes_per_token(tp=8) == 48 * 2 * 1 * 128 * 2
    # The DeepSeek-V3 paper's 70 KB; the latent is not split by tensor parallelism.
    deepseek = get_model("deepseek-v3")
    assert deepseek.kv_bytes_per_token(tp=8) == deepseek.kv_bytes_per_token() == 61 * 576 * 2


def test_names_and_aliases_are_case_insensitive() -> None:
    same = ["llama-3-8b", "LLAMA-3-8B", "meta-llama/Meta-Llama-3-8B", "META-LLAMA/meta-llama-3-8b-instruct"]
    assert len({get_model(name).name for name in same}) == 1


def test_unknown_model_says_what_was_perhaps_meant() -> None:
    with pytest.raises(TrimtabError, match="Did you mean 'llama-3-8b'") as error:
        get_model("lama-3-8b")
    assert "\n" not in str(error.value)
    with pytest.raises(TrimtabError, match=r"unknown model or config\.json path ''"):
        get_model("")


# --- config.json --------------------------------------------------------------------------------

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def base(**changes: Any) -> dict[str, Any]:
    return {**LLAMA, **changes}


FAMILIES: dict[str, tuple[dict[str, Any], float, float]] = {
    "llama-3-8b": (base(), 8.03, 8.03),
    # No num_key_value_heads: plain multi-head attention.
    "llama-2-7b": (
        {
            "model_type": "llama",
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "intermediate_size": 11008,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
        },
        6.74,
        6.74,
    ),
    "qwen2.5-0.5b-tied": (
        base(
            model_type="qwen2",
            num_hidden_layers=24,
            hidden_size=896,
            num_attention_heads=14,
            num_key_value_heads=2,
            intermediate_size=4864,
            vocab_size=151936,
            tie_word_embeddings=True,
            sliding_window=32768,
            use_sliding_window=False,
        ),
        0.494,
        0.494,
    ),
    "qwen-72b": (
        {
            "model_type": "qwen",
            "num_hidden_layers": 80,
            "hidden_size": 8192,
            "num_attention_heads": 64,
            "kv_channels": 128,
            "intermediate_size": 49152,
            "vocab_size": 152064,
            "seq_length": 32768,
        },
        72.3,
        72.3,
    ),
    "qwen3-30b-a3b": (
        base(
            model_type="qwen3_moe",
            num_hidden_layers=48,
            hidden_size=2048,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            intermediate_size=6144,
            vocab_size=151936,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            decoder_sparse_step=1,
            mlp_only_layers=[],
        ),
        30.53,
        3.35,
    ),
    "mixtral-8x7b": (
        base(model_type="mixtral", vocab_size=32000, num_local_experts=8, num_experts_per_tok=2),
        46.7,
        12.9,
    ),
    "deepseek-v3": (
        base(
            model_type="deepseek_v3",
            num_hidden_layers=61,
            hidden_size=7168,
            num_attention_heads=128,
            num_key_value_heads=128,
            intermediate_size=18432,
            vocab_size=129280,
            n_routed_experts=256,
            n_shared_experts=1,
            num_experts_per_tok=8,
            moe_intermediate_size=2048,
            first_k_dense_replace=3,
            kv_lora_rank=512,
            q_lora_rank=1536,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            quantization_config={"quant_method": "fp8"},
        ),
        671.0,
        37.0,
    ),
    "phi-2": (
        base(
            model_type="phi",
            hidden_size=2560,
            num_key_value_heads=32,
            intermediate_size=10240,
            vocab_size=51200,
        ),
        2.78,
        2.78,
    ),
    "gemma-7b": (
        {
            "model_type": "gemma",
            "num_hidden_layers": 28,
            "hidden_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "intermediate_size": 24576,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
        },
        8.54,
        8.54,
    ),
    "gpt-neox-20b": (
        {
            "model_type": "gpt_neox",
            "num_hidden_layers": 44,
            "hidden_size": 6144,
            "num_attention_heads": 64,
            "intermediate_size": 24576,
            "vocab_size": 50432,
            "max_position_embeddings": 2048,
        },
        20.55,
        20.55,
    ),
    "gpt2-xl": (
        {
            "model_type": "gpt2",
            "n_layer": 48,
            "n_embd": 1600,
            "n_head": 25,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
        1.56,
        1.56,
    ),
}


def write(folder: Path, config: Any) -> Path:
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_config_families(family: str, tmp_path: Path) -> None:
    config, total, active = FAMILIES[family]
    path = write(tmp_path, config)
    model = get_model(str(path))
    assert model.parameters / 1e9 == pytest.approx(total, rel=0.02)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.02)
    assert get_model(tmp_path) == model  # the folder will do


def test_config_agrees_with_the_catalogue(tmp_path: Path) -> None:
    for name in ("llama-3-8b", "qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v3", "phi-2"):
        ours, read = get_model(name), get_model(write(tmp_path, FAMILIES[name][0]))
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "experts", "gated_mlp"):
            assert getattr(ours, field) == getattr(read, field), (name, field)
        assert ours.kv_bytes_per_token(2, 1) == read.kv_bytes_per_token(2, 1)
        assert ours.dtype_bytes == read.dtype_bytes
        assert ours.post_attention_norm == read.post_attention_norm


def test_sliding_windows_and_quantisation(tmp_path: Path) -> None:
    gemma = base(model_type="gemma2", sliding_window=4096, num_hidden_layers=42)
    assert get_model(write(tmp_path, gemma)).sliding_layers == 21
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    listed = base(layer_types=kinds, num_hidden_layers=6, sliding_window=1024)
    assert get_model(write(tmp_path, listed)).sliding_layers == 5
    unused = base(sliding_window=4096, use_sliding_window=False)
    assert get_model(write(tmp_path, unused)).sliding_window is None
    gptq = base(quantization_config={"quant_method": "gptq", "bits": 4})
    assert get_model(write(tmp_path, gptq)).dtype_bytes == 0.5
    packed = base(quantization_config={"config_groups": {"group_0": {"weights": {"num_bits": 8}}}})
    assert get_model(write(tmp_path, packed)).dtype_bytes == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "llama", "hidden_size": 4096},
            "missing num_hidden_layers or n_layer.*intermediate_size",
        ),
        ("{not json", "is not JSON.*line 1"),
        ("[1, 2]", "must hold a JSON object"),
        (base(num_hidden_layers="many"), "is not a number"),
        (base(num_key_value_heads=5), "5 KV heads do not divide 32"),
        (base(num_hidden_layers=0), "layers must be at least 1"),
        (base(num_local_experts=8, num_experts_per_tok=9), "experts per token must be 1..8"),
    ],
)
def test_bad_configs_take_one_line(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match=message) as error:
        get_model(write(tmp_path, config))
    assert "\n" not in str(error.value)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match="No such file"):
        get_model(tmp_path / "config.json")
    with pytest.raises(TrimtabError, match="No such file"):
        get_model(tmp_path)  # a folder without config.json
