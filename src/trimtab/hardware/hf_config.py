"""Reads a Hugging Face ``config.json`` into a Model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.hardware.models import Model, checked

# Our field -> the keys that families use for it, first found wins.
KEYS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head"),
    "vocab": ("vocab_size",),
    "max_context": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
}
WITHOUT_GATE = {"phi", "gpt_neox", "gptj", "gpt2", "gpt_bigcode", "opt", "falcon", "bloom", "starcoder2"}
# These run attention and MLP on the same normalised input: one norm per layer.
ONE_NORM = {"phi", "gptj", "falcon"}
TIED_BY_DEFAULT = {"gemma", "gemma2", "gemma3_text", "gemma3", "gpt2", "starcoder2"}


def read_config(path: Path) -> Model:
    """The model of a ``config.json`` (a file, or a directory that holds one).

    Accepts decoder-only transformers that use the usual keys: Llama, Mistral, Mixtral, Qwen (1, 2, 3
    and their mixtures of experts), DeepSeek V2/V3, Phi, Gemma, GPT-NeoX and relatives.

    Raises
    ------
    TrimtabError
        if the file cannot be read, is not JSON, or lacks keys (all of them named).
    """
    file = path / "config.json" if path.is_dir() else path
    config = _load(file)
    # Multimodal configs keep the language model one level down.
    text = config.get("text_config", config)
    family = str(text.get("model_type", config.get("model_type", ""))).lower()
    sizes = {field: _first(text, keys) for field, keys in KEYS.items()}
    # GPT-2 leaves the inner width out: it is then four times the hidden size.
    inner = _first(text, ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim"))
    if inner is None and family in ("gpt2", "gptj", "gpt_bigcode") and sizes["hidden"]:
        inner = 4 * sizes["hidden"]
    missing = [" or ".join(KEYS[field]) for field, value in sizes.items() if value is None]
    missing += ["intermediate_size"] if inner is None else []
    if missing:
        raise TrimtabError(f"{file} is not a usable model config: missing {', '.join(missing)}")
    name = _name(config, file)
    try:
        return _build(name, str(file), family, {**text, "_inner": inner}, sizes)
    except (TypeError, ValueError) as error:
        if isinstance(error, TrimtabError):
            raise
        raise TrimtabError(f"{file}: a size is not a number ({error})") from None


def _build(name: str, file: str, family: str, config: dict[str, Any], sizes: dict[str, Any]) -> Model:
    layers, hidden, heads = int(sizes["layers"]), int(sizes["hidden"]), int(sizes["heads"])
    kv_heads = int(_first(config, ("num_key_value_heads", "num_kv_heads")) or heads)
    if config.get("multi_query"):
        kv_heads = 1
    head_dim = int(_first(config, ("head_dim", "kv_channels")) or hidden // max(heads, 1))
    # The first Qwen counts both halves of the gated MLP.
    ffn = int(config["_inner"]) // (2 if family == "qwen" else 1)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    latent = _latent_fields(config)
    if latent:
        head_dim = int(config.get("qk_nope_head_dim") or head_dim)
    return checked(
        Model(
            name=name,
            id=name,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            vocab=int(sizes["vocab"]),
            max_context=int(sizes["max_context"]),
            gated_mlp=family not in WITHOUT_GATE,
            post_attention_norm=family not in ONE_NORM,
            tied_embeddings=bool(config.get("tie_word_embeddings", family in TIED_BY_DEFAULT)),
            sliding_window=int(window) if window else None,
            sliding_layers=_sliding_layers(config, family, layers) if window else 0,
            dtype_bytes=_weight_bytes(config),
            source=file,
            **_expert_fields(config, layers),
            **latent,
        )
    )


def _expert_fields(config: dict[str, Any], layers: int) -> dict[str, Any]:
    experts = int(_first(config, ("num_local_experts", "num_experts", "n_routed_experts")) or 0)
    if experts < 2:
        return {}
    width = int(config.get("moe_intermediate_size") or config["_inner"])
    shared = int(config.get("n_shared_experts") or 0)
    if config.get("shared_expert_intermediate_size"):
        # Qwen2-MoE has one shared expert of its own width; count it in expert widths.
        shared = max(1, round(int(config["shared_expert_intermediate_size"]) / width))
    step = int(config.get("decoder_sparse_step") or 1)
    dense = int(config.get("first_k_dense_replace") or len(config.get("mlp_only_layers") or []))
    return {
        "experts": experts,
        "experts_per_token": int(_first(config, ("num_experts_per_tok", "moe_top_k", "top_k_experts")) or 1),
        "expert_ffn": width,
        "shared_experts": shared,
        "dense_layers": max(dense, layers - layers // step),
    }


def _latent_fields(config: dict[str, Any]) -> dict[str, Any]:
    if not config.get("kv_lora_rank"):
        return {}
    names = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim")
    return {name: int(config.get(name) or 0) for name in names}


def _sliding_layers(config: dict[str, Any], family: str, layers: int) -> int:
    kinds = config.get("layer_types")
    if kinds:
        return sum(1 for kind in kinds if "sliding" in kind)
    if config.get("sliding_window_pattern"):
        return layers - layers // int(config["sliding_window_pattern"])
    return layers // 2 if family == "gemma2" else layers


def _weight_bytes(config: dict[str, Any]) -> float:
    """2 unless the checkpoint is quantised: served engines cast float32 checkpoints to bf16."""
    quantisation = config.get("quantization_config") or {}
    method = str(quantisation.get("quant_method", "")).lower()
    bits = quantisation.get("bits")
    for group in (quantisation.get("config_groups") or {}).values():
        bits = bits or (group.get("weights") or {}).get("num_bits")
    if bits:
        return float(bits) / 8
    if quantisation.get("load_in_4bit") or method == "mxfp4":
        return 0.5
    return 1.0 if method in ("fp8", "fbgemm_fp8", "bitsandbytes") else 2.0


def _load(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrimtabError(f"cannot read model config {str(file)!r}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise TrimtabError(
            f"{file} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except UnicodeDecodeError:
        raise TrimtabError(f"{file} is not JSON: it is not UTF-8 text") from None
    if not isinstance(config, dict):
        raise TrimtabError(f"{file} must hold a JSON object, got {type(config).__name__}")
    return config


def _name(config: dict[str, Any], file: Path) -> str:
    stated = config.get("_name_or_path")
    folder = file.resolve().parent.name
    return str(stated) if stated else (folder if file.name == "config.json" else file.stem)


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
