"""Every kind of file is read or named, and every row of it read, refused or counted."""

import gzip
import json
import logging
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lighthouse.refusal import Refusal
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.data.rows import Block, read_rows
from lighthouse.titan.data.text_checks import check_texts
from lighthouse.titan.data.text_files import kind_of
from tests.support.text import (
    BOS,
    EOS,
    config_for,
    loader,
    rows,
    stream,
    write_jsonl,
)

DOCUMENTS = [f"{i}: naïve " + "x" * i for i in range(60)]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".xz": lzma.compress,
}


def lines(documents: list[Any], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text}) + "\n" for text in documents).encode()


def write_parquet(path: Path, documents: list[Any], **options: Any) -> None:
    pq.write_table(pa.table({"text": documents}), path, **options)


def texts_of(block: Block, place: int = 0) -> list[str]:
    found = [row for row, _ in read_rows(block, "text", lambda: None, place)]
    assert all(type(row) is str for row in found), found
    return found


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", [".jsonl", ".JSON", ".txt"])
def test_each_kind_in_each_compression(tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / f"a{kind}{suffix.upper()}"
    data = "naïve\n".encode() if kind == ".txt" else lines(DOCUMENTS)
    file.write_bytes(COMPRESS[suffix](data))
    expected = ["naïve\n"] if kind == ".txt" else DOCUMENTS
    assert texts_of(Block(file)) == expected
    assert not kind_of(tmp_path / f"a.parquet{suffix or '.zip'}")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_reading_goes_on_from_every_place(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "a.parquet":
        write_parquet(file, DOCUMENTS, row_group_size=7)
    else:
        file.write_bytes(COMPRESS[name.removeprefix("a.jsonl")](lines(DOCUMENTS)))
    places = [place for _, place in read_rows(Block(file), "text", lambda: None)]
    for done, place in enumerate(places, start=1):
        assert texts_of(Block(file), place) == DOCUMENTS[done:]


def test_blocks_of_a_file_are_the_file(tmp_path: Path) -> None:
    parquet, plain = tmp_path / "a.parquet", tmp_path / "a.jsonl"
    write_parquet(parquet, DOCUMENTS, row_group_size=7)
    assert [t for i in range(9) for t in texts_of(Block(parquet, i, i + 1))] == DOCUMENTS
    write_jsonl(plain, DOCUMENTS)
    size = plain.stat().st_size
    for step in (1, 37, 38, 500, size):
        blocks = [Block(plain, at, min(at + step, size)) for at in range(0, size, step)]
        assert [text for block in blocks for text in texts_of(block)] == DOCUMENTS


def test_files_that_are_not_read_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jsonl", "b.csv", "c.parquet.gz", "sub.md", ".hidden"):
        (tmp_path / name).write_bytes(lines(["text"]))
    config = config_for("local", tmp_path)
    with caplog.at_level(logging.INFO):
        loader(config)
        loader(config)
    said = [record.message for record in caplog.records if "Not read:" in record.message]
    assert len(said) == 1
    assert "Not read: 3 files in" in said[0] and "b.csv, c.parquet.gz, sub.md" in said[0]


def test_another_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["one" * 30], "content"))
    pq.write_table(pa.table({"content": ["two" * 30], "text": [1]}), tmp_path / "b.parquet")
    config = config_for("local", tmp_path, dataset_text="content")
    tokens = [t for row in rows(loader(config, infinite=False)) for t in row[:-1]]
    assert tokens == stream(["one" * 30, "two" * 30])[: len(tokens)] and len(tokens) == 150
    assert RunRecord.of(config, 1).data["training.dataset_text"] == "content"
    config.training.dataset_text = ""
    with pytest.raises(ValueError, match='dataset_text = "": name the column'):
        check_texts(config)
    with pytest.raises(ValueError, match="dataset_bad_rows = 'skip': is for dataset \"local\""):
        check_texts(config_for("python", None, dataset_bad_rows="skip"))


BAD = {
    "jsonl": (lines(DOCUMENTS[:50]) + b'{"text": null}\n' + lines(DOCUMENTS), "line 51 has no"),
    "no object": (lines(DOCUMENTS[:50]) + b"[1]\n" + lines(DOCUMENTS), "line 51 holds an array"),
    "cut": (lines(DOCUMENTS[:50]) + b'{"text\n' + lines(DOCUMENTS), "line 51 is not JSON"),
    "deep": (lines(DOCUMENTS[:50]) + b"[" * 99999 + b"\n" + lines(DOCUMENTS), "line 51 is nested"),
}


@pytest.mark.parametrize(
    ("case", "suffix", "workers"),
    [*((case, "", 0) for case in BAD), ("jsonl", ".gz", 0), ("jsonl", "", 1)],
)
def test_a_bad_line_ends_the_run_or_is_skipped_and_counted(
    tmp_path: Path, case: str, suffix: str, workers: int
) -> None:
    data, message = BAD[case]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESS[suffix](data))
    config = config_for("local", tmp_path)
    config.training.dataloader.num_workers = workers
    with pytest.raises(Refusal, match=rf"a\.jsonl{suffix}, {message}.*dataset_bad_rows = \"skip\""):
        rows(loader(config, infinite=False))
    config.training.dataset_bad_rows = "skip"
    skipping = loader(config, infinite=False)
    tokens = [t for row in rows(skipping) for t in row[:-1]]
    expected = stream(DOCUMENTS[:50] + DOCUMENTS)
    assert tokens == expected[: len(tokens)] and len(expected) - len(tokens) <= 50
    assert skipping.tally.totals() == {"skipped_rows": 1, "broken_utf8_rows": 0}


@pytest.mark.parametrize(
    ("spread", "jq"),
    [
        ('[\n {"text": "one"},\n {"text": "two"}\n]\n', r"\.\[\]"),
        ('[{"text": "one"},\n {"text": "two"}]\n', r"\.\[\]"),
        ('[{"text": "one"}, {"text": "two"}]\n', r"\.\[\]"),
        ('{\n "text": "one"\n}\n', r"\."),
    ],
)
def test_json_that_is_not_in_lines_is_told_how_it_gets_there(
    tmp_path: Path, spread: str, jq: str
) -> None:
    (tmp_path / "a.json").write_text(spread)
    with pytest.raises(ValueError, match=rf"a\.json, line 1 .*on one line, as jq -c '{jq}' does"):
        check_texts(config_for("local", tmp_path))


def test_a_bad_row_of_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [*DOCUMENTS, None, "end"], row_group_size=9)
    config = config_for("local", tmp_path)
    with pytest.raises(Refusal, match=r"a\.parquet, row 60 has a null"):
        rows(loader(config, infinite=False))


def test_a_run_that_ended_at_a_bad_row_goes_on_with_skip(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(DOCUMENTS[:30]) + b"{}\n" + lines(DOCUMENTS[30:]))
    config = config_for("local", tmp_path)
    strict = loader(config)
    batches = iter(strict)
    begun, state = [], None
    with pytest.raises(Refusal, match="line 31"):
        for batch in batches:
            begun += rows([batch])
            state = strict.state_dict()
    config.training.dataset_bad_rows = "skip"
    skipping = loader(config, infinite=False)
    skipping.load_state_dict(state)
    tokens = [t for row in begun + rows(skipping) for t in row[:-1]]
    assert tokens == stream(DOCUMENTS)[: len(tokens)]
    assert len(stream(DOCUMENTS)) - len(tokens) <= 50


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str) -> None:
    for name, data in (("a.jsonl", lines(["text"])), ("a.txt", b"text")):
        file = tmp_path / f"{name}{suffix}"
        file.write_bytes(COMPRESS[suffix](b"\xef\xbb\xbf" + data))
        assert texts_of(Block(file)) == ["text"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_broken_utf8_is_counted(tmp_path: Path, kind: str) -> None:
    broken = b"na\xefve " * 20
    file = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        file.write_bytes(b'\xef\xbb\xbf{"text": "%s"}\n' % broken)
    elif kind == "txt":
        file.write_bytes(broken)
    else:
        strings = pa.array([broken], pa.binary()).view(pa.string())
        pq.write_table(pa.table({"text": strings}), file)
    read = loader(config_for("local", tmp_path), infinite=False)
    tokens = [t for row in rows(read) for t in row[:-1]]
    assert tokens == stream(["na\ufffdve " * 20])[: len(tokens)] and tokens
    assert read.tally.totals() == {"skipped_rows": 0, "broken_utf8_rows": 1}


def test_a_lone_surrogate_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "é\\ud800' + "." * 60 + '"}\n')
    read = loader(config_for("local", tmp_path), infinite=False)
    assert rows(read)[0][:5] == [BOS, *"é?.".encode()]
    assert read.tally.totals()["broken_utf8_rows"] == 1


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_a_folder_without_any_text_is_refused(tmp_path: Path, texts: list[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts)
    write_parquet(tmp_path / "b.parquet", pa.array(texts, pa.string()))
    with pytest.raises(Refusal, match="there is no text in any of its files"):
        loader(config_for("local", tmp_path))


def test_less_than_a_sequence_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["tiny"])
    with caplog.at_level(logging.INFO):
        batches = iter(loader(config_for("local", tmp_path)))
        first, *_ = [rows([next(batches)])[0] for _ in range(40)]
    assert first[:7] == [BOS, *b"tiny", EOS, BOS]
    said = [record.message for record in caplog.records]
    assert sum("less than a sequence of 50" in message for message in said) == 1
    assert 5 < sum("starts over" in message for message in said) < 12
