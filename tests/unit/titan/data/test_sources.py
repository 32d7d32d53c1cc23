"""Which files are read as text, and which are refused."""

import argparse
import errno
import gzip
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchtitan.hf_datasets import text_datasets as upstream

from lighthouse.refusal import Refusal
from lighthouse.titan.data.loaders import build_validation_dataloader
from lighthouse.titan.data.sources import open_source, python_pieces, read_pieces
from lighthouse.titan.data.tokenizer import ByteTokenizer
from tests.support.text import BOS, SEQ_LEN, config_for, loader, rows, stream, write_jsonl


def test_every_kind_of_file_in_sorted_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"id": [1], "text": ["three"]}), tmp_path / "b" / "c.parquet")
    (tmp_path / "d.txt").write_text("four")
    with gzip.open(tmp_path / "e.json.gz", "wt") as file:
        file.write('{"text": "five"}\n\n{"text": "six"}\n')
    (tmp_path / "README.md").write_text("not text to train on")
    (tmp_path / ".hidden.txt").write_text("neither")
    config = config_for("local", tmp_path, seq_len=10)
    tokens = [t for row in rows(loader(config, infinite=False)) for t in row[:-1]]
    expected = stream(["one", "two", "three", "four", "five", "six"])
    assert tokens == expected[: len(tokens)]
    assert len(expected) - len(tokens) <= 10


def test_a_single_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["y" * 200])
    got = rows(loader(config_for("local", tmp_path / "a.jsonl"), infinite=False))
    assert got[0] == [BOS, *b"y" * SEQ_LEN]


def _empty(folder: Path) -> None:
    (folder / "notes.md").write_text("no")


def _no_column(folder: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), folder / "a.parquet")


def _numbers(folder: Path) -> None:
    pq.write_table(pa.table({"text": [1]}), folder / "a.parquet")


def _nulls(folder: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([None], pa.string())}), folder / "a.parquet")


def _no_key(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"body": "a"}\n')


def _not_json(folder: Path) -> None:
    (folder / "a.jsonl").write_text("[\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty, r"holds no \.parquet"),
        (_no_column, r'no column "text", only \[\'body\'\]'),
        (_numbers, "holds int64, not strings"),
        (_nulls, "row 0 has a null in column"),
        (_no_key, 'line 1 has no string under "text"'),
        (_not_json, "line 1 is not JSON"),
    ],
)
def test_unusable_folder(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path)
    with pytest.raises(Refusal, match=message) as error:
        loader(config_for("local", tmp_path))
    assert str(error.value).startswith(f"training.dataset_path = {str(tmp_path)!r}")
    with pytest.raises(Refusal, match=r"^validation\.dataset_path"):
        build_validation_dataloader(1, 0, ByteTokenizer(), config_for("local", tmp_path))


def test_bad_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.dataset = 'c5': expected one of .*'python'"):
        loader(config_for("c5", None))
    with pytest.raises(ValueError, match=r"training\.dataset_path is not set"):
        loader(config_for("local", None))
    with pytest.raises(ValueError, match='"python" takes no path'):
        loader(config_for("python", tmp_path))
    with pytest.raises(ValueError, match="no such file"):
        loader(config_for("local", tmp_path / "missing"))


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/home/.cache")

    write_jsonl(tmp_path / "a.jsonl", ["one"])
    monkeypatch.setattr("os.makedirs", refuse)
    with pytest.raises(Refusal, match=r"^/home/\.cache, where .* denied\); set HF_HOME"):
        open_source("training", "local", str(tmp_path))


def test_python_sources_are_complete_and_in_a_fixed_order() -> None:
    pieces = python_pieces()
    assert pieces == python_pieces()
    assert {"os.py", "argparse.py", "ast.py"} <= {path.name for path, _ in pieces}
    assert not any("site-packages" in path.parts for path, _ in pieces)
    # Mixed: the first hundred come from many folders.
    assert len({path.parent for path, _ in pieces[:100]}) > 10
    source = argparse.__file__
    texts_of_file = read_pieces([piece for piece in sorted(pieces) if str(piece[0]) == source])
    assert "".join(piece["text"] for piece in texts_of_file) == Path(source).read_text("utf-8")
    first = next(read_pieces(pieces))["text"].encode()
    row = rows(islice(loader(config_for("python", None)), 1))[0]
    assert row[: min(len(first), SEQ_LEN)] == [BOS, *first][: min(len(first), SEQ_LEN)]


def test_a_dataset_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str) -> None:
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    entry = replace(upstream.DATASETS["c4"], loader=unreachable)
    monkeypatch.setitem(upstream.DATASETS, "c4", entry)
    said = r"^validation\.dataset = 'c4': Couldn't reach 'allenai/c4' on the Hub; try again where "
    with pytest.raises(Refusal, match=said):
        open_source("validation", "c4", None)
