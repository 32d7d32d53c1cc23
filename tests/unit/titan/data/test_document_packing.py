"""Documents told apart: where they begin, padding, labels, positions; and resumed exactly."""

import json
import pickle
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtitan.config import JobConfig

from lighthouse.titan.data.document_packing import Packing, batch_of, one_document
from lighthouse.titan.data.loaders import build_dataloader, build_validation_dataloader
from lighthouse.titan.data.tally import OF_DOCUMENTS, PairsLeft, Tally
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.llama3.chunked_loss import IGNORE_INDEX
from tests.support.text import SEQ_LEN, Letters, config_for, loader, stream, texts, write_jsonl
from tests.support.tiers import tiers

EMBEDDED = {"topk": 2, "stratum": 2, "num_levels": 2, "pooling_factor": 5}
"""Lighthouse layers under which documents begin at multiples of 5."""


def config_of(path: Path, *, lighthouse: bool = True, **training: Any) -> JobConfig:
    config = config_for("local", path, document_mask=True, max_documents=9, **training)
    config.model.name, config.model.flavor = "llama3", "tiny_byte"
    config.training.steps = 10
    config.lighthouse.enable = lighthouse
    for key, value in EMBEDDED.items():
        setattr(config.lighthouse, key, value)
    return config


def write(tmp_path: Path, documents: list[str]) -> Path:
    (tmp_path / "a").mkdir()
    write_jsonl(tmp_path / "a" / "a.jsonl", documents)
    return tmp_path / "a"


def row_of(batch: tuple[dict[str, torch.Tensor], torch.Tensor]) -> dict[str, list[int]]:
    """The only row of a batch, its starts without unused places."""
    inputs, labels = batch
    row = {name: x[0].tolist() for name, x in inputs.items()} | {"labels": labels[0].tolist()}
    starts = [start for start in row.pop("attention_masks") if start < SEQ_LEN]
    return row | {"starts": starts}


def documents_of(row: dict[str, list[int]]) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each document, with its padding."""
    return [(row["input"][a:b], row["labels"][a:b]) for a, b in pairwise([*row["starts"], SEQ_LEN])]


@pytest.mark.parametrize("lighthouse", [True, False])
def test_every_token_stands_once_and_padding_has_no_label(tmp_path: Path, lighthouse: bool) -> None:
    documents = ["", "a", *texts(30)]
    config = config_of(write(tmp_path, documents), lighthouse=lighthouse)
    rest, multiple = stream(documents), 5 if lighthouse else 1
    borders = {0}
    for text in documents:
        borders.add(max(borders) + len(text.encode()) + 2)
    used = 0
    for row in map(row_of, loader(config, infinite=False)):
        assert row["starts"][0] == 0
        assert all(start % multiple == 0 for start in row["starts"])
        for number, (tokens, labels) in enumerate(documents_of(row)):
            assert number == 0 or used in borders
            end = next(
                n for n in range(1, len(tokens) + 1) if n == len(tokens) or used + n in borders
            )
            assert tokens[:end] == rest[used : used + end]
            assert labels[:end] == rest[used + 1 : used + end + 1]
            assert set(tokens[end:]) <= {tokens[end - 1]}
            assert set(labels[end:]) <= {IGNORE_INDEX}
            used += end
    assert len(rest) - used <= SEQ_LEN


def test_the_label_behind_the_end_may_be_ignored(tmp_path: Path) -> None:
    folder = write(tmp_path, texts(30))
    kept, ignored = (
        list(map(row_of, loader(config_of(folder, document_end_label=how), infinite=False)))
        for how in ("keep", "ignore")
    )
    eos = ByteTokenizer.eos_id
    for with_label, without in zip(kept, ignored, strict=True):
        assert with_label["input"] == without["input"]
        expected = [
            IGNORE_INDEX if token == eos else label
            for token, label in zip(with_label["input"], with_label["labels"], strict=True)
        ]
        assert without["labels"] == expected


def test_positions_may_restart(tmp_path: Path) -> None:
    config = config_of(write(tmp_path, texts(9)), document_positions="restart")
    for row in map(row_of, loader(config, infinite=False)):
        lengths = [b - a for a, b in pairwise([*row["starts"], SEQ_LEN])]
        assert row["positions"] == [i for length in lengths for i in range(length)]


def test_no_token_is_a_border(tmp_path: Path) -> None:
    """A tokenizer without an end token, and a text that holds what would be one."""
    config = config_of(write(tmp_path, ["abc\x00def", "gh", "i" * 60]))
    inputs, _ = next(iter(build_dataloader(1, 0, Letters(), config)))
    assert inputs["attention_masks"][0].tolist() == [0, 10, 15] + [SEQ_LEN] * 6
    assert inputs["attention_masks"].dtype == torch.int32


def test_a_sequence_full_of_documents_is_padded_and_counted(tmp_path: Path) -> None:
    config = replace_max(config_of(write(tmp_path, ["ab"] * 4 + ["c" * 200])), 2)
    read = loader(config)
    rows = list(map(row_of, islice(read, 2)))
    assert [row["starts"] for row in rows] == [[0, 5]] * 2
    # "ab" is 4 tokens: 1 is padded behind the first, and all behind the second.
    assert [row["labels"].count(IGNORE_INDEX) for row in rows] == [1 + SEQ_LEN - 9] * 2
    totals = read.tally.totals()
    assert totals["padding_tokens"] == 2 * (1 + SEQ_LEN - 9)
    assert totals["sequences_full_of_documents"] == 2
    assert totals["pairs_in_documents"] == 2 * (pairs(5) + pairs(SEQ_LEN - 5))
    assert totals["pairs_in_sequences"] == 2 * pairs(SEQ_LEN)


def pairs(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def test_the_share_of_pairs_is_that_since_the_last_look() -> None:
    tally, left = Tally(0, OF_DOCUMENTS), PairsLeft()
    assert left.share(tally) == 1.0
    for of_documents, expected in ((3, 0.3), (5, 0.5)):
        tally.add("pairs_in_documents", of_documents)
        tally.add("pairs_in_sequences", 10)
        assert left.share(tally) == expected
    assert left.share(tally) == 0.5


def replace_max(config: JobConfig, most: int) -> JobConfig:
    config.training.max_documents = most
    return config


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cuts", tiers([(7,), (3, 1), (0, 4, 4)], (0, 4, 4)))
def test_resumes_exactly_and_again(tmp_path: Path, workers: int, cuts: tuple[int, ...]) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name in "ab":
        write_jsonl(folder / f"{name}.jsonl", texts(16))
    config = config_of(folder)
    config.training.dataloader.num_workers = workers
    expected = list(map(row_of, islice(loader(config), 40)))
    got: list[dict[str, list[int]]] = []
    state = None
    for count in (*cuts, 40 - sum(cuts)):
        resumed = loader(config)
        if state is not None:
            resumed.load_state_dict(pickle.loads(state))
        got += list(map(row_of, islice(resumed, count)))
        state = pickle.dumps(resumed.state_dict())
    assert got == expected
    assert state is not None and len(state) <= 2000


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_tasks_are_documents_of_their_own(tmp_path: Path, cut: int) -> None:
    config = config_of(write(tmp_path, texts(16)), task_rate=0.9)
    first = loader(config)
    rows = list(map(row_of, islice(first, cut)))
    resumed = loader(config)
    resumed.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    rows += map(row_of, islice(resumed, 100 - cut))
    assert rows == list(map(row_of, islice(loader(config), 100)))
    begun = 0
    for row in rows:
        for tokens, _ in documents_of(row):
            assert ByteTokenizer.bos_id not in tokens[1:]
            begun += tokens[0] == ByteTokenizer.bos_id
    flat = bytes(token for row in rows for token in row["input"] if token < 256)
    tasks = flat.count(b"\nget ") + flat.count(b"hidden digit is")
    assert tasks > 2 and begun > 16


def test_validation_text_is_told_apart_too(tmp_path: Path) -> None:
    config = config_of(write(tmp_path, ["ab", "c" * 99]))
    config.validation.dataset_path = config.training.dataset_path
    read = build_validation_dataloader(1, 0, ByteTokenizer(), config)
    assert len(row_of(next(iter(read)))["starts"]) == 2


def test_without_the_mask_a_batch_has_nothing_new(tmp_path: Path) -> None:
    config = config_of(write(tmp_path, texts(9)))
    config.training.document_mask = False
    read = loader(config)
    assert list(next(iter(read))[0]) == ["input"]
    assert list(read.tally.totals()) == ["skipped_rows", "broken_utf8_rows"]


def test_a_batch_has_few_places_more_than_documents() -> None:
    config = config_of(Path("nowhere"), lighthouse=False)
    seq_len = 98304
    for most, counts, places in (
        (384, (1, 2), 32),
        (384, (3, 32), 32),
        (384, (33, 1), 64),
        (384, (1, 380), 384),
        (9, (1, 4), 9),
    ):
        packing = replace(Packing.of(config, [], seq_len), most=most)
        tokens = torch.zeros(seq_len, dtype=torch.int64)
        of_rows = [packing.inputs(tokens.numpy(), list(range(count))) for count in counts]
        inputs, _ = batch_of([(row, tokens) for row in of_rows])
        starts = inputs["attention_masks"]
        assert starts.shape == (2, places)
        assert (starts < seq_len).sum(dim=1).tolist() == list(counts)
        assert list(inputs) == ["input", "attention_masks"]


def test_room_for_documents_grows_with_the_sequence() -> None:
    config = config_of(Path("nowhere"), lighthouse=False)
    config.training.max_documents = None
    assert [Packing.of(config, [], n).most for n in (50, 256, 257, 98304)] == [1, 1, 2, 384]
    packing = replace(Packing.of(config, [], 8), most=3, restart_positions=True)
    batch = one_document(packing, rows=2)
    assert json.dumps({name: x[1].tolist() for name, x in batch.items()}) == json.dumps(
        {"input": [0] * 8, "attention_masks": [0, 8, 8], "positions": list(range(8))}
    )
