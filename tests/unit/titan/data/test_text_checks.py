"""What is refused of local text before anything is built."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lighthouse.titan.data.rows import BadRow, Block, read_rows
from lighthouse.titan.data.text_checks import check_texts
from tests.support.text import config_for, loader, write_jsonl
from tests.unit.titan.data.test_rows import COMPRESS, lines, texts_of

Make = Callable[[Path], object]


def _twice(folder: Path) -> None:
    column = pa.array(["a"])
    pq.write_table(pa.Table.from_arrays([column, column], ["text", "text"]), folder / "b.parquet")


REFUSED: dict[str, tuple[Make, str]] = {
    "utf-16": (
        lambda f: (f / "b.jsonl").write_text('{"text": "b"}\n', "utf-16"),
        r"b\.jsonl is not UTF-8.*iconv -f UTF-16",
    ),
    "utf-16 without a mark": (
        lambda f: (f / "b.txt").write_text("b", "utf-16-le"),
        r"b\.txt is not UTF-8.*iconv",
    ),
    "utf-16, compressed": (
        lambda f: (f / "b.txt.gz").write_bytes(COMPRESS[".gz"]("b".encode("utf-16"))),
        r"b\.txt\.gz is not UTF-8.*iconv -f UTF-16",
    ),
    "no bytes": (lambda f: (f / "b.txt.gz").touch(), r"b\.txt\.gz is damaged, or not \.gz"),
    "gzip": (
        lambda f: (f / "b.txt").write_bytes(COMPRESS[".gz"](b"b")),
        r"b\.txt begins as a \.gz file does",
    ),
    "parquet": (
        lambda f: pq.write_table(pa.table({"text": ["b"]}), f / "b.jsonl"),
        r"b\.jsonl begins as a \.parquet file does",
    ),
    "another key in one of the files": (
        lambda f: (f / "b.jsonl").write_bytes(lines(["b"], "body")),
        r"""b\.jsonl, line 1 has no string under "text", only \['body'\]; mend it, name the one """
        r"that holds the text by training\.dataset_text, or pass over",
    ),
    "another column": (
        lambda f: pq.write_table(pa.table({"body": ["b"]}), f / "b.parquet"),
        r"only \['body'\]; name the one that holds the text by training\.dataset_text",
    ),
    "a column twice": (_twice, r'b\.parquet has 2 columns "text"'),
    "a column of lists": (
        lambda f: pq.write_table(pa.table({"text": [["b"]]}), f / "b.parquet"),
        r'column "text" holds list<element: string>, not strings; name the one',
    ),
    "no parquet": (lambda f: (f / "b.parquet").touch(), r"b\.parquet is damaged, or not parquet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_file_is_looked_at(tmp_path: Path, case: str) -> None:
    """Though the first is text; so by plan and sweeps, which ask the same."""
    write_jsonl(tmp_path / "a.jsonl", ["first"])
    config = config_for("local", tmp_path)
    check_texts(config)
    make, message = REFUSED[case]
    folder = tmp_path / "more"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", ["first"])
    make(folder)
    with pytest.raises(ValueError, match=rf"^training\.dataset_path = '{folder}': .*{message}"):
        check_texts(config_for("local", folder))


def test_the_key_of_a_sources_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["a"], "body"))
    source = {"path": str(tmp_path), "text": "content"}
    with pytest.raises(ValueError, match=r"by training\.sources\.1\.text, or pass over such rows"):
        check_texts(config_for("local", None, sources=[source]))


def test_a_first_row_that_is_skipped_is_no_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}\n" + lines(["text"]))
    with pytest.raises(ValueError, match="line 1 has no string"):
        check_texts(config_for("local", tmp_path))
    check_texts(config_for("local", tmp_path, dataset_bad_rows="skip"))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["one", None]).dictionary_encode(),
        pa.array(["one", None], pa.large_string()).dictionary_encode(),
        pa.array(["one", None], pa.string_view()),
        pa.array([b"one", None]),
    ],
    ids=lambda column: str(column.type),
)
def test_ways_to_store_strings_in_parquet(tmp_path: Path, column: pa.Array) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), file)
    loader(config_for("local", tmp_path))
    text, bad = [row for row, _ in read_rows(Block(file), "text", lambda: None)]
    assert text == "one" and isinstance(bad, BadRow)


def test_a_number_that_is_too_long_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one", "n": %s}\n{"text": "two"}\n' % ("9" * 5000))
    bad, two = [row for row, _ in read_rows(Block(file), "text", lambda: None)]
    assert isinstance(bad, BadRow) and "line 1 has a number of more digits" in str(bad)
    assert two == "two"


def test_what_a_line_has_instead_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": NaN}\n5\n' + json.dumps({"b": 1, "a": 2}) + "\n")
    found = [str(row) for row, _ in read_rows(Block(file), "text", lambda: None)]
    assert found[0].endswith('under "text", but NaN')
    assert found[1].endswith('under "text": it is no object')
    assert found[2].endswith("""under "text", only ['b', 'a']""")


def test_zstandard_that_begins_with_a_frame_to_skip(tmp_path: Path) -> None:
    """As pzstd writes."""
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0size" + COMPRESS[".zst"](lines(["one"])))
    loader(config_for("local", tmp_path))
    assert texts_of(Block(file)) == ["one"]


@pytest.mark.parametrize("behind", [b"garbage!", lzma.compress(b"x")[:20] + b"\xff" * 20])
def test_what_is_behind_an_xz_stream_is_not_passed_over(tmp_path: Path, behind: bytes) -> None:
    file = tmp_path / "a.jsonl.xz"
    file.write_bytes(lzma.compress(lines(["one"])) + bytes(8) + lzma.compress(lines(["two"])))
    assert texts_of(Block(file)) == ["one", "two"]
    file.write_bytes(lzma.compress(lines(["one"])) + behind)
    one, bad = [row for row, _ in read_rows(Block(file), "text", lambda: None)]
    assert one == "one" and isinstance(bad, BadRow) and "line 2 can't be read" in str(bad)
