"""Trace readers: every format, and what they say of bad rows."""

from __future__ import annotations

import gzip
import json
import time
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.errors import TrimtabError
from trimtab.workload import read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,ChatGPT,472,18,490,Conversation log
19440112.5,ChatGPT,1087,0,1087,Conversation log
19440113.0,GPT-4,417,276,693,API log
"""
BURSTGPT_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
10.0,1722ac82,43,GPT-4,906,446,1352,Conversation log
11.0,,2,ChatGPT,36,29,65,API log
12.0,1722ac82,2,ChatGPT,40,30,70,Conversation log
"""
MOONCAKE = """{"timestamp": 27000, "input_length": 700, "output_length": 52, "hash_ids": [0, 1]}
{"timestamp": 30000, "input_length": 300, "output_length": 5, "hash_ids": [0]}

{"timestamp": 30500, "input_length": 1, "output_length": 2, "hash_ids": []}
"""


@pytest.fixture
def write(tmp_path):
    def _write(text, name="t.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def test_azure_2023(write):
    trace = read_trace(write(AZURE), needs_times=True)
    assert np.allclose(trace.arrival, [0, 4.314579, 4.541877], rtol=0, atol=1e-9)
    assert trace.prefill.tolist() == [374, 396, 879]
    assert trace.decode.tolist() == [44, 109, 55]
    assert trace.prefill.dtype == np.int32
    assert trace.session is None


def test_azure_2024_has_time_zones(write):
    trace = read_trace(write(AZURE_2024), "azure", needs_times=True)
    assert np.allclose(trace.arrival, [0, 0.99007], rtol=0, atol=1e-9)


def test_vidur_keeps_its_seconds_and_may_lack_them(write):
    trace = read_trace(write("arrived_at,num_prefill_tokens,num_decode_tokens\n3.5,10,2\n4,0,0\n"))
    assert trace.arrival.tolist() == [3.5, 4.0]
    assert trace.prefill.tolist() == [10, 0]
    path = write("num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.85\n")
    assert read_trace(path).arrival is None
    with pytest.raises(TrimtabError, match="no column 'arrived_at'"):
        read_trace(path, needs_times=True)


def test_burstgpt_drops_failed_requests_and_says_so(write):
    with pytest.warns(UserWarning, match="1 failed requests"):
        trace = read_trace(write(BURSTGPT), needs_times=True)
    assert trace.dropped == 1
    assert trace.arrival.tolist() == [0.0, 3.0]
    assert trace.decode.tolist() == [18, 276]


def test_burstgpt_sessions(write):
    trace = read_trace(write(BURSTGPT_3))
    assert trace.session.tolist() == [0, -1, 0]
    assert trace.arrival.tolist() == [0, 1, 2]


def test_mooncake_keeps_prefix_hashes(write):
    trace = read_trace(write(MOONCAKE, "t.jsonl"), needs_times=True)
    assert trace.arrival.tolist() == [0.0, 3.0, 3.5]
    assert trace.prefill.tolist() == [700, 300, 1]
    assert trace.hash_offsets.tolist() == [0, 2, 3, 3]
    assert trace.hash_values.tolist() == [0, 1, 0]


def test_plain_table_with_a_mapping(write, tmp_path):
    columns = {"arrived_at": "t", "prefill": "in", "decode": "out", "session": "who"}
    path = write("t,in,out,who,more\n1,5,6,x,9\n2,7,8,y,9\n")
    for source in (path, tmp_path / "t.parquet"):
        if source.suffix == ".parquet":
            table = pa.table({"t": [1.0, 2.0], "in": [5, 7], "out": [6, 8], "who": ["x", "y"]})
            pq.write_table(table, source)
        trace = read_trace(source, "table", columns, needs_times=True)
        assert trace.arrival.tolist() == [1, 2]
        assert trace.prefill.tolist() == [5, 7]
        assert trace.decode.tolist() == [6, 8]
        assert trace.session.tolist() == [0, 1]


def test_parquet_date_times_and_whole_floats(tmp_path):
    stamps = pa.array(["2024-01-01T00:00:00", "2024-01-01T00:00:02.5"]).cast(pa.timestamp("us"))
    pq.write_table(
        pa.table({"arrived_at": stamps, "prefill": [5.0, 7.0], "decode": [1, 2]}), tmp_path / "t.parquet"
    )
    assert read_trace(tmp_path / "t.parquet").arrival.tolist() == [0.0, 2.5]
    pq.write_table(pa.table({"prefill": [5.0, None], "decode": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(TrimtabError, match="row 2, column 'prefill': nothing is not a number"):
        read_trace(tmp_path / "t.parquet")


def test_gzip_byte_order_mark_crlf_and_spaces(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfprefill,decode\r\n 5 ,6\r\n7,8\r\n"))
    assert read_trace(path).prefill.tolist() == [5, 7]


BAD_ROWS = [
    ("4,x,3", "line 5, column 'prefill': 'x' is not a number"),
    ("4,nan,3", "line 5, column 'prefill': 'nan' is not a number"),
    ("4,,3", "line 5, column 'prefill': nothing is not a number"),
    ("4,-2,3", "line 5, column 'prefill': '-2' is negative"),
    ("4,2,3.5", "line 5, column 'decode': '3.5' is not a whole number"),
    ("4,2,1e12", "line 5, column 'decode': '1e12' is more than"),
    ("1,2,3", "line 5, column 'arrived_at': '1' is earlier than the row before"),
    ("-1,2,3", "line 5, column 'arrived_at': '-1' is negative"),
    ("inf,2,3", "line 5, column 'arrived_at': 'inf' is not a number"),
    ("4,2", "line 5: 2 fields where the header has 3: '4,2'"),
    ("4,2,3,4", "line 5: 4 fields where the header has 3"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_named(write, row, message):
    # the empty line is no row, but it is a line
    path = write(f"arrived_at,prefill,decode\n0,1,1\n\n2,1,1\n{row}\n9,1,1\n")
    with pytest.raises(TrimtabError) as caught:
        read_trace(path, needs_times=True)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_order_matters_only_for_replay(write):
    path = write("arrived_at,prefill,decode\n5,1,1\n2,1,1\n")
    assert read_trace(path).arrival.tolist() == [5, 2]


def test_a_bad_row_far_into_the_file(write):
    """Beyond the first block the row is still numbered from the start of the file."""
    good = "0.5,100,200\n" * 600_000
    path = write(f"arrived_at,prefill,decode\n{good}0.5,100,oops\n{good}")
    with pytest.raises(TrimtabError, match="line 600002, column 'decode': 'oops'"):
        read_trace(path)
    path = write(f"arrived_at,prefill,decode\n{good}0.25,100,5\n")
    with pytest.raises(TrimtabError, match=r"line 600002, column 'arrived_at': '0\.25' is earlier"):
        read_trace(path, needs_times=True)
    path = write(f"arrived_at,prefill,decode\n{good}0.25,100\n")
    with pytest.raises(TrimtabError, match="line 600002: 2 fields"):
        read_trace(path)


def test_a_date_that_is_none(write):
    with pytest.raises(TrimtabError, match="line 5, column 'TIMESTAMP': 'yesterday' is not a date-time"):
        read_trace(write(AZURE + "yesterday,1,2\n"))


BAD_JSON = [
    ("{", "line 2, column 2: not valid JSON"),
    ("[1]", "line 2: wanted a JSON object"),
    ('{"timestamp": 1, "input_length": 5}', "line 2, column 'output_length': nothing is not a number"),
    ('{"timestamp": 1, "input_length": "5"}', "line 2, column 'input_length': '5' is not a number"),
    ('{"timestamp": NaN, "input_length": 5}', "line 2, column 'timestamp': nan is not a number"),
    ('{"timestamp": 1, "input_length": -5}', "line 2, column 'input_length': -5 is negative"),
    ('{"timestamp": 1, "input_length": 5.5}', "line 2, column 'input_length': 5.5 is not a whole number"),
    ('{"timestamp": 0, "input_length": 5}', "line 2, column 'timestamp': 0 is earlier"),
    (
        '{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [1.5]}',
        "line 2, column 'hash_ids': [1.5] is not a list",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_JSON)
def test_a_bad_mooncake_row_is_named(write, row, message):
    first = json.dumps({"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": []})
    with pytest.raises(TrimtabError) as caught:
        read_trace(write(f"{first}\n{row}\n", "t.jsonl"), needs_times=True)
    assert message in str(caught.value)


def test_what_is_no_trace(write, tmp_path):
    with pytest.raises(TrimtabError, match="No such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(TrimtabError, match="cannot read trace"):
        read_trace(tmp_path)
    with pytest.raises(TrimtabError, match="is empty"):
        read_trace(write(""))
    with pytest.raises(TrimtabError, match="holds no requests"):
        read_trace(write("prefill,decode\n"))
    with pytest.raises(TrimtabError, match="holds no requests"):
        read_trace(write("", "t.jsonl"))
    with pytest.raises(TrimtabError, match="no known trace has the columns a, b"):
        read_trace(write("a,b\n1,2\n"))
    with pytest.raises(TrimtabError, match="Did you mean 'azure'"):
        read_trace(write(AZURE), "azur")
    with pytest.raises(TrimtabError, match=r"unknown column for 'decode'"):
        read_trace(write("a,b\n1,2\n"), columns={"prefill": "a", "decode": "bb"})
    with pytest.raises(TrimtabError, match="unknown trace column 'prompt'"):
        read_trace(write("a,b\n1,2\n"), columns={"prompt": "a"})
    with pytest.raises(TrimtabError, match="names of its own"):
        read_trace(write(AZURE), "azure", columns={"prefill": "ContextTokens"})
    (tmp_path / "t.parquet").write_bytes(b"nonsense")
    with pytest.raises(TrimtabError, match="not a Parquet file"):
        read_trace(tmp_path / "t.parquet")
    (tmp_path / "u.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(TrimtabError, match="not text"):
        read_trace(tmp_path / "u.csv")


def test_reads_a_million_rows_quickly(write):
    path = write("arrived_at,prefill,decode\n" + "".join(f"{i},{i % 1000},7\n" for i in range(1_000_000)))
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = read_trace(path, needs_times=True)
    assert trace.prefill.sum() == 499_500_000
    assert time.process_time() - start < 3


def test_the_real_traces(trace_file):
    trace = read_trace(trace_file("azure_conv_2023"), needs_times=True)
    assert len(trace.prefill) == 19_366
    assert trace.prefill.mean() == pytest.approx(1154.7, abs=0.05)
    trace = read_trace(trace_file("arxiv_summarization"))
    assert len(trace.prefill) == 28_257
    assert trace.arrival is None
