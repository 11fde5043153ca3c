"""The profile on disk: whole lines only, earlier rows kept, somebody else's file left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import TrimtabError
from trimtab.exectime.profile.journal import Journal
from trimtab.exectime.profile.points import cpu_grid, decode_point, points
from trimtab.exectime.profile.shapes import TINY, shard_of
from trimtab.exectime.profile_schema import COLUMNS, read_profile

SHARD = shard_of(TINY, 1)
LISTED = points(SHARD, cpu_grid(), 10_000, graphs=True)


def write(path: Path, count: int, model: str = "tiny", fresh: bool = False) -> Journal:
    journal = Journal(path, "h200", model, 1, fresh)
    for point in LISTED[:count]:
        if not journal.has(point):
            journal.append(point, 0.25, 0.2, 20)
    return journal


def test_lines_are_what_the_reader_reads(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.csv"
    write(path, len(LISTED))
    profile = read_profile(path)
    assert len(profile) == len(LISTED)
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert set(profile.words["device"]) == {"h200"}
    decode = profile.where(profile.words["operator"] == "attn_decode")
    point = decode_point(SHARD, int(decode.numbers["batch"][0]), int(decode.numbers["kv"][0]))
    assert decode.numbers["flops"][0] == point.flops
    assert decode.numbers["bytes"][0] == point.bytes


def test_a_torn_line_is_dropped_and_measured_again(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.csv", tmp_path / "torn.csv"
    write(whole, 10)
    text = whole.read_text()
    for cut in (1, 5, 30):
        torn.write_text(text[:-cut])
        assert not Journal(torn, "h200", "tiny", 1).has(LISTED[9])
        write(torn, 10)
        assert torn.read_text() == text


def test_a_header_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "profile.csv"
    path.write_text("")
    write(path, 3)
    assert len(read_profile(path)) == 3


def test_one_file_holds_several_models(tmp_path: Path) -> None:
    path = tmp_path / "profile.csv"
    write(path, 5)
    write(path, 4, model="other")
    assert len(read_profile(path)) == 9
    write(path, 2, fresh=True)
    words = read_profile(path).words["model"].tolist()
    assert words == ["other"] * 4 + ["tiny"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is no profile of ours, so it is kept; give another --out"),
        (",".join(COLUMNS) + "\nh200,tiny\n", "line 2: 2 cells where the header has 17"),
        ("no end of line", "is no profile of ours"),
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "profile.csv"
    path.write_text(text)
    with pytest.raises(TrimtabError, match=message):
        Journal(path, "h200", "tiny", 1)
    assert path.read_text() == text


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match="Is a directory"):
        Journal(tmp_path, "h200", "tiny", 1)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(TrimtabError, match="is not UTF-8 text"):
        Journal(tmp_path / "binary.csv", "h200", "tiny", 1)
