import argparse
import gzip
import json
import pickle
import re
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.hf_datasets import DatasetConfig, text_datasets

from lighthouse.titan.data import (
    PackedTextDataset,
    build_dataloader,
    build_validation_dataloader,
    python_pieces,
    read_pieces,
)
from lighthouse.titan.tokenizer import ByteTokenizer

BOS, EOS = 256, 257
SEQ_LEN = 50


class Letters(BaseTokenizer):
    """Not a ByteTokenizer: one token per character, no bos, no eos."""

    def encode(self, text: str, **_: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))

    def get_vocab_size(self) -> int:
        return 0x110000


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [f"{i}:" + "x" * int(rng.integers(0, 120)) for i in range(count)]


def stream(documents: list[str]) -> list[int]:
    return [t for text in documents for t in (BOS, *text.encode(), EOS)]


def write_txt(folder: Path, documents: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(documents):
        (folder / f"{i:04}.txt").write_text(text)
    return folder


def write_jsonl(path: Path, documents: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in documents))


def config_for(dataset: str, path: Path | None, **training: Any) -> JobConfig:
    config = JobConfig()
    config.model.tokenizer = "byte"
    for section in (config.training, config.validation):
        section.dataset = dataset
        section.dataset_path = None if path is None else str(path)
        section.seq_len = SEQ_LEN
        section.local_batch_size = 1
    for key, value in training.items():
        setattr(config.training, key, value)
    return config


def loader(config: JobConfig, rank: int = 0, ranks: int = 1, **kwargs: Any) -> Any:
    return build_dataloader(ranks, rank, ByteTokenizer(), config, **kwargs)


def rows(batches: Any) -> list[list[int]]:
    """Sequences of seq_len + 1 tokens, from (input, label) batches."""
    result = []
    for inputs, labels in batches:
        assert inputs["input"].dtype == labels.dtype == torch.int64
        for x, y in zip(inputs["input"].tolist(), labels.tolist(), strict=True):
            assert x[1:] == y[:-1]
            result.append([x[0], *y])
    return result


def test_sequences_continue_without_a_gap(tmp_path: Path) -> None:
    documents = texts(30)
    expected = stream(documents)
    got = rows(loader(config_for("local", write_txt(tmp_path / "a", documents)), infinite=False))
    assert len(got) == (len(expected) - 1) // SEQ_LEN
    for i, row in enumerate(got):
        assert row == expected[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1]


def test_batches_and_any_other_tokenizer(tmp_path: Path) -> None:
    folder = write_txt(tmp_path / "a", ["abc" * 40, "de" * 70])
    config = config_for("local", folder, local_batch_size=2)
    inputs, labels = next(iter(build_dataloader(1, 0, Letters(), config)))
    assert inputs["input"].shape == labels.shape == (2, SEQ_LEN)
    assert rows([(inputs, labels)])[0] == [ord(c) for c in ("abc" * 40)[: SEQ_LEN + 1]]


def test_infinite_repeats_the_same_order(tmp_path: Path) -> None:
    documents = texts(5)
    once = stream(documents)
    got = rows(islice(loader(config_for("local", write_txt(tmp_path / "a", documents))), 30))
    expected = once * (30 * SEQ_LEN // len(once) + 2)
    assert [token for row in got for token in row[:-1]] == expected[: 30 * SEQ_LEN]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("cuts", [(7,), (3, 1), (0, 4, 4), (19, 25)])
def test_resumes_exactly_and_again(tmp_path: Path, workers: int, cuts: tuple[int, ...]) -> None:
    # 16 documents of some 60 tokens: each stream is more than one epoch long.
    config = config_for("local", write_txt(tmp_path / "a", texts(16)))
    config.training.dataloader.num_workers = workers
    total = 50
    expected = rows(islice(loader(config), total))
    got: list[list[int]] = []
    state = None
    for count in (*cuts, total - sum(cuts)):
        resumed = loader(config)
        if state is not None:
            resumed.load_state_dict(pickle.loads(state))
        got += rows(islice(resumed, count))
        state = pickle.dumps(resumed.state_dict())
    assert got == expected
    assert len(state) < 2_000


def test_state_is_small_in_the_middle_of_a_long_document(tmp_path: Path) -> None:
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 400_000)))
    config = config_for("local", write_txt(tmp_path / "a", [text]), seq_len=100_000)
    first = loader(config)
    batches = iter(first)
    next(batches)
    state = pickle.dumps(first.state_dict())
    assert len(state) < 2_000
    second = loader(config)
    second.load_state_dict(pickle.loads(state))
    assert torch.equal(next(iter(second))[1], next(batches)[1])


@pytest.mark.parametrize("files", [6, 7])
def test_ranks_share_documents_without_overlap(tmp_path: Path, files: int) -> None:
    # 6 files divide by 2 ranks: whole files each. 7 do not: every second document each.
    for i in range(files):
        write_jsonl(tmp_path / f"{i}.jsonl", [f"<{i}.{j}>" for j in range(30)])
    seen = []
    for rank in range(2):
        config = config_for("local", tmp_path)
        tokens = [t for row in rows(loader(config, rank, 2, infinite=False)) for t in row[:-1]]
        text = ByteTokenizer().decode(tokens)
        seen.append(set(re.findall(r"<(\d+\.\d+)>", text)))
    assert not seen[0] & seen[1]
    # Of 30 x files documents only an incomplete last sequence is missing.
    assert len(seen[0] | seen[1]) >= 30 * files - 2 * SEQ_LEN // 5


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_stay_whole_and_single(tmp_path: Path, workers: int) -> None:
    """Over ranks and workers: each document once, in one piece but for the ends of sequences."""
    shares = 2 * workers
    for i in range(2 * shares):
        # Shorter than a sequence, about as long, and longer than several.
        write_jsonl(tmp_path / f"{i}.jsonl", [f"{i:02}.{j:02}" + "x" * 23 * j for j in range(12)])
    config = config_for("local", tmp_path)
    config.training.dataloader.num_workers = workers
    seen: list[str] = []
    for rank in range(2):
        got = rows(loader(config, rank, 2, infinite=False))
        for worker in range(workers):  # shares are equally long, so workers take turns to the end
            row_stream = got[worker::workers]
            assert all(a[-1] == b[0] for a, b in pairwise(row_stream))
            tokens = [t for row in row_stream for t in row[:-1]]
            documents = [bytes(d) for d in _split(tokens)]
            whole, cut = documents[:-1], documents[-1]
            assert all(re.fullmatch(rb"\d\d\.(\d\d)(x*)", d) for d in whole)
            assert all(len(d) == 5 + 23 * int(d[3:5]) for d in whole)
            seen += [d[:5].decode() for d in (*whole, cut)]
            # Of the 24 documents only less than a sequence is missing, the end of the last one.
            total = 2 * sum(5 + 23 * j + 2 for j in range(12))
            assert total - SEQ_LEN <= len(tokens) <= total
    assert len(seen) == len(set(seen)) == 12 * 2 * shares


def _split(tokens: list[int]) -> list[list[int]]:
    """The documents of a stream; the last one may be incomplete."""
    documents: list[list[int]] = []
    for token in tokens:
        if token == BOS:
            documents.append([])
        elif token != EOS:
            documents[-1].append(token)
    return documents


def test_rank_without_documents_is_an_error(tmp_path: Path) -> None:
    config = config_for("local", write_txt(tmp_path / "a", ["only one"]))
    with pytest.raises(ValueError, match="data-parallel rank 1 of 2"):
        next(iter(loader(config, 1, 2)))


def test_fewer_tokens_than_a_sequence(tmp_path: Path) -> None:
    folder = write_txt(tmp_path / "a", ["short"])
    with pytest.raises(ValueError, match="seq_len = 50: the dataset has only 7 tokens"):
        next(iter(loader(config_for("local", folder), infinite=False)))
    # A training stream repeats the text instead.
    assert rows(islice(loader(config_for("local", folder)), 1))[0][:8] == [*stream(["short"]), BOS]


def test_validation_begins_anew_each_time(tmp_path: Path) -> None:
    config = config_for("local", write_txt(tmp_path / "a", texts(30)))
    endless = build_validation_dataloader(1, 0, ByteTokenizer(), config, infinite=True)
    assert rows(islice(endless, 3)) == rows(islice(endless, 3))
    finite = build_validation_dataloader(1, 0, ByteTokenizer(), config)
    assert rows(finite) == rows(finite) != []


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
        (_empty, r"no such file, or no \.parquet"),
        (_no_column, r'no column "text", only \[\'body\'\]'),
        (_numbers, "holds int64, not strings"),
        (_nulls, "has nulls"),
        (_no_key, 'line 1 has no string under "text"'),
        (_not_json, "line 1 is not JSON"),
    ],
)
def test_unusable_folder(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        loader(config_for("local", tmp_path))
    assert str(error.value).startswith(f"training.dataset_path = {str(tmp_path)!r}")
    with pytest.raises(ValueError, match=r"^validation\.dataset_path"):
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


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An upstream dataset that streams, as C4 does."""
    pq.write_table(pa.table({"text": texts(40)}), tmp_path / "a.parquet")

    def load(path: str) -> datasets.IterableDataset:
        return datasets.load_dataset("parquet", data_files=path, split="train", streaming=True)

    entry = DatasetConfig(str(tmp_path / "a.parquet"), load, lambda sample: sample["text"])
    monkeypatch.setitem(text_datasets.DATASETS, "streamed", entry)
    return "streamed"


def test_upstreams_dataset_with_its_tokenizer_keeps_its_loader(registered: str) -> None:
    config = config_for(registered, None)
    ours = build_dataloader(1, 0, Letters(), config)
    assert isinstance(ours.dataset, text_datasets.HuggingFaceTextDataset)
    theirs = text_datasets.build_text_dataloader(1, 0, Letters(), config)
    assert rows(islice(ours, 20)) == rows(islice(theirs, 20))


def test_upstreams_dataset_with_bytes_is_packed(registered: str) -> None:
    ours = loader(config_for(registered, None), infinite=False)
    assert isinstance(ours.dataset, PackedTextDataset)
    expected = stream(texts(40))
    got = rows(ours)
    assert [t for row in got for t in row[:-1]] == expected[: len(got) * SEQ_LEN]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("tokenizer", [Letters(), ByteTokenizer()])
def test_streamed_dataset_resumes_twice_in_a_later_epoch(
    registered: str, tokenizer: BaseTokenizer, workers: int
) -> None:
    config = config_for(registered, None)
    config.training.dataloader.num_workers = workers
    total = 130  # an epoch has some 50 sequences
    expected = rows(islice(build_dataloader(1, 0, tokenizer, config), total))
    got: list[list[int]] = []
    state = None
    for count in (60, 1, total - 61):
        resumed = build_dataloader(1, 0, tokenizer, config)
        if state is not None:
            resumed.load_state_dict(pickle.loads(state))
        got += rows(islice(resumed, count))
        state = pickle.dumps(resumed.state_dict())
    assert got == expected
