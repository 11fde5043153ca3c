"""Look-up tables: composed by hand, and against the times Vidur recorded with them."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.errors import TrimtabError
from trimtab.exectime import ExecTables
from trimtab.exectime.compose import TOKEN_OPERATORS

Build = Callable[..., ExecTables]
Edit = Callable[[str, Callable[[list[str]], list[str]]], Path]


def by_hand(
    ms: Callable[..., float],
    layers: int,
    decode_kv: list[int],
    prefills: list[tuple[int, int]],
    tp: int = 1,
    pp: int = 1,
    grouped: bool = True,
    last_stage: bool = True,
) -> float:
    """Vidur's stage time, one look-up after the other (milliseconds in, seconds out)."""
    total = len(decode_kv) + sum(chunk for _, chunk in prefills)
    rounded = (total + 7) // 8 * 8
    attention = sum(ms(op, rounded) for op in ("attn_pre_proj", "attn_post_proj", "attn_rope"))
    attention += ms("input_layernorm", rounded) + ms("attn_kv_cache_save", total)
    mlp = sum(ms(op, rounded) for op in ("mlp_up_proj", "mlp_down_proj", "mlp_act"))
    mlp += ms("post_attention_layernorm", rounded)
    if decode_kv:
        mean = int(sum(decode_kv) / len(decode_kv))
        overhead = 1.1 if grouped and len(decode_kv) > 1 else 1.0
        attention += ms("attn_decode", len(decode_kv), (mean + 63) // 64 * 64) * overhead
    if prefills:
        past = sum((kv + 63) // 64 * 64 for kv, _ in prefills)
        square = round(math.sqrt(sum(chunk * chunk for _, chunk in prefills))) ** 2
        overhead = 1.1 if grouped and len(prefills) > 1 else 1.0
        attention += ms("attn_prefill", past, square) * overhead
    if tp > 1:
        attention += ms("all_reduce", rounded) + 0.02
        mlp += ms("all_reduce", rounded) + 0.02
    stage = layers / pp * (attention + mlp + ms("add", rounded))
    if not last_stage:
        stage += ms("send_recv", rounded)
    return stage / 1000


BATCHES: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([0], []),
    ([100], []),
    ([1, 128, 64], []),
    ([], [(0, 4)]),
    ([], [(1, 3)]),
    ([], [(64, 2), (3, 2)]),
    ([17, 18], [(60, 2), (0, 1)]),
]


@pytest.mark.parametrize(("decodes", "prefills"), BATCHES)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_toy_stage_times_equal_the_formula(
    build: Build,
    milliseconds: Callable[..., float],
    toy_tables: str,
    decodes: list[int],
    prefills: list[tuple[int, int]],
    tp: int,
    pp: int,
) -> None:
    tables = build("llama-3-8b", tp=tp, pp=pp, kind="tables", path=toy_tables)
    for last in (True, False):
        expected = by_hand(milliseconds, 32, decodes, prefills, tp, pp, last_stage=last or pp == 1)
        assert tables.stage_seconds(decodes, prefills, last) == pytest.approx(expected, rel=1e-14)


def test_no_batching_overhead_without_grouped_queries(
    build: Build, milliseconds: Callable[..., float], toy_tables: str
) -> None:
    tables = build("llama-2-7b", kind="tables", path=toy_tables)
    assert tables.many_prefills_factor == 1.0
    expected = by_hand(milliseconds, 32, [5, 6], [(0, 1), (0, 2)], grouped=False)
    assert tables.stage_seconds([5, 6], [(0, 1), (0, 2)]) == pytest.approx(expected, rel=1e-14)


def test_shape_of_the_tables(build: Build, toy_tables: str) -> None:
    tables = build(kind="tables", path=toy_tables, cpu_overhead_ms=2.0)
    assert tables.vidur
    assert (tables.kv_step, tables.chunk_step, tables.token_round) == (64, 1, 8)
    assert tables.token_s.shape == tables.kv_write_s.shape == tables.send_s.shape == (17,)
    assert tables.decode_s.shape == (4, 3)
    assert tables.prefill_s.shape == (3, 5)
    assert tables.cpu_s.shape == (129,)
    assert tables.cpu_s[0] == 0
    assert tables.cpu_s[1] == tables.cpu_s[128] == 0.002
    for array in (tables.token_s, tables.kv_write_s, tables.decode_s, tables.prefill_s, tables.send_s):
        assert array.dtype == np.float64
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()
    assert not tables.decode_s[0].any()  # zero decodes cost nothing
    assert set(tables.operators) >= {"attn_decode", "attn_prefill", *TOKEN_OPERATORS}


def test_kv_write_may_be_absent(build: Build, toy_tables: str) -> None:
    Path(f"{toy_tables}__attn_kv_cache_save.csv").unlink()
    assert not build(kind="tables", path=toy_tables).kv_write_s.any()


BAD = [
    ("attn_rope", lambda rows: [*rows[:3], "3,oops", *rows[4:]], "line 4, column 'prediction': 'oops'"),
    ("attn_rope", lambda rows: [*rows[:3], "3,nan", *rows[4:]], "line 4, column 'prediction': 'nan'"),
    ("attn_rope", lambda rows: [*rows[:3], "3", *rows[4:]], "line 4: 1 cells where the header has 2"),
    ("attn_rope", lambda rows: [*rows[:3], "2.5,1", *rows[4:]], "line 4, column 'num_tokens': 2.5 is not"),
    (
        "attn_rope",
        lambda rows: [*rows[:3], *rows[4:]],
        "1 grid points are missing, the first at num_tokens=3",
    ),
    ("attn_rope", lambda rows: rows[:-1], "reaches 15 tokens where the other operators reach 16"),
    ("attn_rope", lambda rows: ["tokens,prediction", *rows[1:]], "line 1: no column 'num_tokens'"),
    ("attn_rope", lambda rows: rows[:1], "no rows below the header"),
    ("add", lambda rows: [rows[0], "1,-1", *rows[2:]], "column 'prediction' is negative at num_tokens=1"),
    ("attn_decode", lambda rows: rows[:-2] + rows[-1:], "first at batch_size=3, kv_cache_size=64"),
    ("attn_decode", lambda rows: [*rows, "1,65,1"], "column 'kv_cache_size': 65 is not a multiple of 64"),
    ("attn_prefill", lambda rows: [*rows, "0,5,1"], "line 14, column 'prefill_chunk_size_squared': 5 is not"),
    ("attn_prefill", lambda rows: rows[:1] + rows[2:], "first at kv_cache_size=0, chunk size 1"),
]


@pytest.mark.parametrize(("operator", "change", "message"), BAD)
def test_bad_tables_name_the_place(
    build: Build, toy_tables: str, edit_table: Edit, operator: str, change, message: str
) -> None:
    path = edit_table(operator, change)
    with pytest.raises(TrimtabError) as error:
        build(kind="tables", path=toy_tables)
    assert message in str(error.value)
    assert path.name.removesuffix(".csv.gz") in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_damaged_files(build: Build, toy_tables: str) -> None:
    with pytest.raises(TrimtabError, match=r"no look-up table .*nowhere__attn_pre_proj\.csv\.gz"):
        build(kind="tables", path="nowhere")
    Path(f"{toy_tables}__add.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(TrimtabError, match="not a complete gzip file"):
        build(kind="tables", path=toy_tables)
    with pytest.raises(TrimtabError, match=r"'tables' needs exectime\.path"):
        build(kind="tables")


# --- against Vidur ------------------------------------------------------------------------------


class Csv:
    """Look-ups straight from the files."""

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.tables: dict[str, dict[tuple[int, ...], float]] = {}

    def __call__(self, operator: str, *key: int) -> float:
        if operator not in self.tables:
            with gzip.open(f"{self.prefix}__{operator}.csv.gz", "rt") as file:
                rows = list(csv.reader(file))[1:]
            self.tables[operator] = {tuple(int(cell) for cell in row[:-1]): float(row[-1]) for row in rows}
        return self.tables[operator][key]


CASES = [
    ("a_llama3_8b_sarathi_conv", "a_llama3_8b_16k", "llama-3-8b", 1, 1),
    ("c_llama2_70b_tp4pp2_sarathi", "c_llama2_70b_tp4", "llama-2-70b", 4, 2),
]


@pytest.mark.parametrize(("case", "prefix", "model", "tp", "pp"), CASES)
def test_first_request_of_a_reference_run(
    build: Build, vidur_data: Path, case: str, prefix: str, model: str, tp: int, pp: int
) -> None:
    """It prefills alone: its recorded time is the sum of its stages."""
    path = str(vidur_data / "predictor_tables" / prefix)
    tables = build(model, tp=tp, pp=pp, kind="tables", path=path)
    with (vidur_data / "cases" / case / "requests.csv").open() as file:
        first = next(csv.DictReader(file))
    prompt = int(first["num_prefill_tokens"])
    assert prompt <= 512  # one chunk
    ours = sum(tables.stage_seconds([], [(0, prompt)], last_stage=stage == pp - 1) for stage in range(pp))
    recorded = float(first["prefill_completed_at"]) - float(first["scheduled_at"])
    assert ours == pytest.approx(recorded, abs=1e-12)


@pytest.mark.parametrize(("case", "prefix", "model", "tp", "pp"), CASES)
def test_stage_times_by_hand(
    build: Build, vidur_data: Path, case: str, prefix: str, model: str, tp: int, pp: int
) -> None:
    path = str(vidur_data / "predictor_tables" / prefix)
    tables, lookup = build(model, tp=tp, pp=pp, kind="tables", path=path), Csv(path)
    layers = 32 if model == "llama-3-8b" else 80

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        decodes=st.lists(st.integers(0, 4000), max_size=100),
        prefills=st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 200)), max_size=3),
        last=st.booleans(),
    )
    def check(decodes: list[int], prefills: list[tuple[int, int]], last: bool) -> None:
        if decodes or prefills:
            last_stage = last or pp == 1
            expected = by_hand(lookup, layers, decodes, prefills, tp, pp, last_stage=last_stage)
            assert tables.stage_seconds(decodes, prefills, last_stage) == pytest.approx(expected, rel=1e-13)

    check()
