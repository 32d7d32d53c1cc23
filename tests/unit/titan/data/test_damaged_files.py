"""A file that is cut off or damaged: all that can be read of it is, and the row behind is named."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lighthouse.refusal import Refusal
from lighthouse.titan.data import sources
from lighthouse.titan.data.file_checks import check_file
from lighthouse.titan.data.rows import BadRow, Block, read_rows
from tests.support.text import BOS, assert_resumes_exactly, config_for, loader, rows, write_jsonl
from tests.support.tiers import tiers
from tests.unit.titan.data.test_rows import COMPRESS, DOCUMENTS, lines, write_parquet


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.jsonl.zst", "b.jsonl.xz", "b.parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    """At the start where it can be seen there, else where it is cut, and skipped from there."""
    write_jsonl(tmp_path / "a.jsonl", ["first" * 20])
    write_jsonl(tmp_path / "c.jsonl", ["last" * 20])
    file = tmp_path / name
    file.write_bytes(b"<html>no such file</html>")
    config = config_for("local", tmp_path)
    with pytest.raises(Refusal, match=rf"{name} is damaged, or not "):
        loader(config)
    if name == "b.parquet":
        return
    texts = [f"<{i * 7919 % 100003}>" for i in range(9999)]
    whole = COMPRESS[name.removeprefix("b.jsonl")](lines(texts))
    file.write_bytes(whole[: len(whole) * 2 // 3])
    check_file.cache_clear()
    with pytest.raises(Refusal, match=rf"{name}, line \d+ can't be read, nor what follows"):
        rows(loader(config, infinite=False))
    config.training.dataset_bad_rows = "skip"
    skipping = loader(config, infinite=False)
    text = bytes(t for row in rows(skipping) for t in row[:-1] if t < BOS)
    assert text.count(b">") < 9999 and b"lastlast" in text[-50:]
    assert name == "b.jsonl.zst" or text.count(b">") > 3000  # a block of zstd can be 128 KB
    assert skipping.tally.totals()["skipped_rows"] == 1


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_cut_off_is_read_up_to_there(tmp_path: Path, suffix: str) -> None:
    """All that is in whole pieces of it, and the row behind is named."""
    compress, count, each = COMPRESS[suffix], 400, 20
    documents = [f"{i * 7919 % 100003}" * 20 for i in range(count)]
    pieces = [compress(lines(documents[i : i + each])) for i in range(0, count, each)]
    file, whole = tmp_path / f"a.jsonl{suffix}", b"".join(pieces)
    # Into each piece, and between the last ones.
    ends = [sum(map(len, pieces[:i])) for i in range(1, len(pieces))]
    for cut in (*(end + 17 for end in ends), ends[-1] + len(pieces[-1]) - 1 - (not suffix)):
        file.write_bytes(whole[:cut])
        *read, (bad, _) = read_rows(Block(file), "text", lambda: None)
        assert [row for row, _ in read] == documents[: len(read)]
        assert len(read) >= each * sum(end <= cut for end in ends)
        assert isinstance(bad, BadRow) and f"a.jsonl{suffix}, line {len(read) + 1} " in str(bad)


@pytest.mark.parametrize("order", tiers(["files", "shuffled"], "files"))
def test_of_a_damaged_row_group_all_else_is_read(tmp_path: Path, order: str) -> None:
    file = tmp_path / "a.parquet"
    documents = [f"<{i * 7919 % 100003}>" for i in range(900)]
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "data_page_size": 256}
    write_parquet(file, documents, row_group_size=300, **plain)
    data = bytearray(file.read_bytes())
    at = data.index(documents[450].encode())
    data[at - 4 : at] = b"\xff" * 4  # the length of this row's string
    file.write_bytes(data)
    found = list(read_rows(Block(file), "text", lambda: None))
    texts = [row for row, _ in found if type(row) is str]
    assert texts == [*documents[: len(texts) - 300], *documents[600:]] and len(texts) > 700
    (bad,) = [row for row, _ in found if isinstance(row, BadRow)]
    assert f"row {len(texts) - 300} can't be read, nor what follows in its row group" in str(bad)
    for done, (_, place) in enumerate(found, start=1):
        assert (
            done % 50 or list(read_rows(Block(file), "text", lambda: None, place)) == found[done:]
        )
    config = config_for("local", tmp_path, dataset_bad_rows="skip", dataset_order=order)
    assert_resumes_exactly(config, 160, (50, 9, 30, 60), most=2000)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("order", tiers(["files", "shuffled"], "files"))
def test_a_run_resumes_behind_where_a_file_is_cut_off(
    tmp_path: Path, suffix: str, order: str
) -> None:
    for name in "ac":
        write_jsonl(tmp_path / f"{name}.jsonl", DOCUMENTS[:9])
    whole = b"".join(COMPRESS[suffix](lines([text])) for text in DOCUMENTS[9:])
    (tmp_path / f"b.jsonl{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
    config = config_for("local", tmp_path, dataset_bad_rows="skip", dataset_order=order)
    assert_resumes_exactly(config, 80, (5, 9, 1, 11, 20, 3), most=2000)


@pytest.mark.parametrize("name", ["b.jsonl", "b.jsonl.gz", "b.jsonl.zst", "b.parquet"])
@pytest.mark.parametrize("order", ["files", "shuffled"])
def test_a_file_that_has_gone_ends_the_run_in_a_sentence(
    tmp_path: Path, name: str, order: str
) -> None:
    """Whether bad rows are skipped or not: the same command reads it when it is back."""
    file, documents = tmp_path / name, ["text" * 200] * 40
    if name == "b.parquet":
        write_parquet(file, documents)
    elif name == "b.jsonl":
        file.write_bytes(lines(documents))
    else:
        file.write_bytes(COMPRESS[file.suffix](lines(documents)))
    config = config_for("local", tmp_path, dataset_bad_rows="skip", dataset_order=order)
    reading = loader(config)
    file.unlink()
    with pytest.raises(Refusal, match=rf"{name} can't be read( any more \(|: )No such file"):
        rows(reading)


def test_a_disk_that_fails_ends_the_run_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails in the middle of a file does not say in which."""

    def fails(*args: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
        yield

    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS[:9])
    reader = loader(config_for("local", tmp_path))
    monkeypatch.setattr(sources, "read_rows", fails)
    with pytest.raises(Refusal, match=rf"^{tmp_path}/a\.jsonl can't be read any more \(Input/out"):
        rows(reader)
