"""Where the reference data lies, and tiny operator tables to compose by hand."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.exectime import ExecTables, build_tables
from trimtab.hardware import default_node, get_device, get_model
from trimtab.scenario import ReplicaGroup

SHARED = Path(os.environ.get("TRIMTAB_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "vidur"


@pytest.fixture
def vidur_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("reference data is not there; set TRIMTAB_SHARED to its folder")
    return SHARED


def _build(
    model: str = "llama-3-8b",
    device: str = "a100",
    tp: int = 1,
    pp: int = 1,
    batch: int = 128,
    chunk: int = 512,
    context: int = 4096,
    **exectime: object,
) -> ExecTables:
    group = ReplicaGroup(model=model, device=device, tp=tp, pp=pp, exectime=exectime)  # type: ignore[arg-type]
    found = get_device(device)
    return build_tables(group, get_model(model), found, default_node(found), batch, chunk, context)


@pytest.fixture(scope="session")
def build() -> Callable[..., ExecTables]:
    """``build(model, device, tp, pp, batch, chunk, context, **exectime)``: tables on the default node."""
    return _build


TOKENS, BATCH, KV, CHUNK = 16, 3, 128, 4
BY_TOKENS = (
    "attn_pre_proj",
    "attn_post_proj",
    "attn_rope",
    "input_layernorm",
    "mlp_up_proj",
    "mlp_down_proj",
)
BY_TOKENS += ("mlp_act", "post_attention_layernorm", "add", "attn_kv_cache_save", "all_reduce", "send_recv")


def _milliseconds(operator: str, *key: int) -> float:
    """A made-up time that is different for every operator and key."""
    number = sum(ord(letter) * (i + 1) for i, letter in enumerate(operator)) % 97
    return (number + 1) * 1e-3 + sum(part * (i + 2) for i, part in enumerate(key)) * 1e-5


@pytest.fixture(scope="session")
def milliseconds() -> Callable[..., float]:
    return _milliseconds


@pytest.fixture
def toy_tables(tmp_path: Path) -> str:
    """A prefix with a complete set of small tables; the KV write is plain CSV, the rest gzipped."""
    prefix = str(tmp_path / "toy")

    def write(name: str, keys: str, rows: list[tuple[int, ...]]) -> None:
        lines = [f"{keys},prediction"]
        lines += [f"{','.join(map(str, row))},{_milliseconds(name, *row)!r}" for row in rows]
        text = "\n".join(lines) + "\n"
        if name == "attn_kv_cache_save":
            Path(f"{prefix}__{name}.csv").write_text(text)
        else:
            Path(f"{prefix}__{name}.csv.gz").write_bytes(gzip.compress(text.encode()))

    for name in BY_TOKENS:
        write(name, "num_tokens", [(n,) for n in range(1, TOKENS + 1)])
    kvs = range(0, KV + 1, 64)
    write("attn_decode", "batch_size,kv_cache_size", [(n, k) for n in range(1, BATCH + 1) for k in kvs])
    squares = [(k, c * c) for k in kvs for c in range(1, CHUNK + 1)]
    write("attn_prefill", "kv_cache_size,prefill_chunk_size_squared", squares)
    return prefix


Edit = Callable[[str, Callable[[list[str]], list[str]]], Path]


@pytest.fixture
def edit_table(toy_tables: str) -> Edit:
    """Changes the lines of one table; returns its path."""

    def edit(operator: str, change: Callable[[list[str]], list[str]]) -> Path:
        path = Path(f"{toy_tables}__{operator}.csv.gz")
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        path.write_bytes(gzip.compress(("\n".join(change(lines)) + "\n").encode()))
        return path

    return edit
