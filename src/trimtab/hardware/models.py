"""Language models as data: their shape, and what follows from it (parameters, KV bytes)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError, unknown
from trimtab.hardware.catalogue import index_names, read_catalogue


@dataclass(frozen=True)
class Model:
    """The shape of a decoder-only transformer. Sizes are elements, counts or bytes as named.

    Mixture of experts: ``experts`` > 0; the first ``dense_layers`` layers keep a plain MLP of width
    ``ffn``, the others have experts of width ``expert_ffn`` of which a token uses
    ``experts_per_token``, plus ``shared_experts`` that every token uses.

    Multi-head latent attention: ``kv_lora_rank`` > 0; ``head_dim`` is then the non-rotary part of a
    query head, and a token caches ``kv_lora_rank + qk_rope_head_dim`` values per layer.
    """

    name: str
    id: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_context: int  # tokens
    aliases: tuple[str, ...] = ()
    gated_mlp: bool = True
    post_attention_norm: bool = True
    tensor_parallel: bool = True
    tied_embeddings: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_experts: int = 0
    dense_layers: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    sliding_window: int | None = None  # tokens
    sliding_layers: int = 0  # layers that look back only that far
    dtype_bytes: float = 2.0  # per weight
    kv_dtype_bytes: float = 2.0  # per cached value
    source: str = ""

    @property
    def grouped_query(self) -> bool:
        return self.heads > self.kv_heads

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention projections."""
        if self.kv_lora_rank:
            return sum(rows * columns for rows, columns in self.latent_projections)
        query_and_output = 2 * self.hidden * self.heads * self.head_dim
        return query_and_output + 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def latent_projections(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of MLA's matrices: query down and up, KV down and up, output."""
        query = self.heads * (self.head_dim + self.qk_rope_head_dim)
        down = [(self.hidden, self.q_lora_rank), (self.q_lora_rank, query)]
        return [
            *(down if self.q_lora_rank else [(self.hidden, query)]),
            (self.hidden, self.kv_lora_rank + self.qk_rope_head_dim),
            (self.kv_lora_rank, self.heads * (self.head_dim + self.v_head_dim)),
            (self.heads * self.v_head_dim, self.hidden),
        ]

    @property
    def mlp_matrices(self) -> int:
        return 3 if self.gated_mlp else 2

    @property
    def embedding_parameters(self) -> int:
        """Input embedding and LM head together (once if tied)."""
        return self.vocab * self.hidden * (1 if self.tied_embeddings else 2)

    @cached_property
    def parameters(self) -> int:
        """All weights, embeddings included; norms and biases (under 0.1 %) are not counted."""
        return self._count(self.experts)

    @cached_property
    def active_parameters(self) -> int:
        """Weights that one token uses, embeddings included, as model cards count them."""
        return self._count(self.experts_per_token)

    def _count(self, experts: int) -> int:
        dense = (self.layers - self.moe_layers) * self.mlp_matrices * self.hidden * self.ffn
        per_expert = self.mlp_matrices * self.hidden * self.expert_ffn
        routed = self.moe_layers * ((experts + self.shared_experts) * per_expert + self.hidden * self.experts)
        return self.layers * self.attention_parameters + dense + routed + self.embedding_parameters

    def kv_bytes_per_token(self, tp: int = 1, pp: int = 1) -> float:
        """KV cache bytes of one token on one device.

        KV heads that do not divide by ``tp`` are replicated (ceil); the latent of MLA is on every
        tensor-parallel device. Sliding windows are not subtracted.
        """
        if self.kv_lora_rank:
            values = self.kv_lora_rank + self.qk_rope_head_dim
        else:
            values = 2 * -(-self.kv_heads // tp) * self.head_dim
        return self.layers / pp * values * self.kv_dtype_bytes


def list_models() -> list[str]:
    """Short names of the models that ship with the package."""
    return sorted(_models())


def get_model(name: str | Path) -> Model:
    """A model by short name, by Hugging Face id (case-insensitive), or from a ``config.json``.

    Raises
    ------
    TrimtabError
        for a name that is neither known nor a file, and for a config with missing keys.
    """
    found = _names().get(str(name).lower())
    if found is not None:
        return _models()[found]
    path = Path(name)
    if str(name) and (path.is_dir() or path.is_file() or path.suffix == ".json"):
        from trimtab.hardware.hf_config import read_config

        return read_config(path)
    raise unknown("model or config.json path", str(name), list_models())


@lru_cache(maxsize=1)
def _models() -> dict[str, Model]:
    return {name: _from_entry(name, entry) for name, entry in read_catalogue("models").items()}


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    return index_names({name: (model.id, *model.aliases) for name, model in _models().items()})


def _from_entry(name: str, entry: dict[str, Any]) -> Model:
    fields = {**entry, **entry.get("moe", {}), **entry.get("mla", {})}
    fields = {key: value for key, value in fields.items() if key not in ("moe", "mla")}
    fields.setdefault("head_dim", entry["hidden"] // entry["heads"])
    fields["aliases"] = tuple(entry.get("aliases", ()))
    return checked(Model(name=name, **fields))


def checked(model: Model) -> Model:
    """The model itself, or a TrimtabError that names the size that cannot be."""
    for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "max_context"):
        if getattr(model, field) < 1:
            raise TrimtabError(f"model {model.name}: {field} must be at least 1, got {getattr(model, field)}")
    if model.heads % model.kv_heads and not model.kv_lora_rank:
        raise TrimtabError(
            f"model {model.name}: {model.kv_heads} KV heads do not divide {model.heads} attention heads"
        )
    if model.experts and not 1 <= model.experts_per_token <= model.experts:
        raise TrimtabError(
            f"model {model.name}: experts per token must be 1..{model.experts}, got {model.experts_per_token}"
        )
    return model
