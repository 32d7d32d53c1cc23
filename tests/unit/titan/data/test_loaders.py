"""Whose loader a dataset gets, and how validation begins."""

import pickle
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.hf_datasets import DatasetConfig, text_datasets

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.text_changes import text_changes
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.data.loaders import build_dataloader, build_validation_dataloader
from lighthouse.titan.data.packing import PackedTextDataset
from lighthouse.titan.data.staged import StagedLoader
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.llama3.chunked_loss import IGNORE_INDEX
from tests.support.text import (
    SEQ_LEN,
    Letters,
    config_for,
    loader,
    rows,
    stream,
    texts,
    write_jsonl,
    write_txt,
)
from tests.support.tiers import tiers


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
@pytest.mark.parametrize(
    "tokenizer", [Letters(), pytest.param(ByteTokenizer(), marks=pytest.mark.thorough)]
)
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


def test_validation_begins_anew_each_time(tmp_path: Path) -> None:
    config = config_for("local", write_txt(tmp_path / "a", texts(30)))
    endless = build_validation_dataloader(1, 0, ByteTokenizer(), config, infinite=True)
    assert rows(islice(endless, 3)) == rows(islice(endless, 3))
    finite = build_validation_dataloader(1, 0, ByteTokenizer(), config)
    assert rows(finite) == rows(finite) != []


@pytest.mark.parametrize("dataset", ["local", "streamed"])
@pytest.mark.parametrize(
    ("ranks", "batch", "workers"),
    [pytest.param(1, 1, 3, marks=pytest.mark.thorough), (2, 1, 0), (2, 3, 0), (3, 2, 1)],
)
def test_validation_has_one_list_of_sequences_for_any_layout(
    registered: str, tmp_path: Path, dataset: str, ranks: int, batch: int, workers: int
) -> None:
    config = config_for(dataset, None if dataset == registered else tmp_path / "a.parquet")
    tokenizer = Letters() if dataset == registered else ByteTokenizer()
    whole = rows(build_validation_dataloader(1, 0, tokenizer, config))
    config.validation.local_batch_size = batch
    config.validation.dataloader.num_workers = workers
    of_ranks = [
        list(build_validation_dataloader(ranks, rank, tokenizer, config)) for rank in range(ranks)
    ]
    assert len({len(batches) for batches in of_ranks}) == 1
    got = []
    for step in zip(*of_ranks, strict=True):
        for inputs, labels in step:
            assert inputs["input"].shape == labels.shape == (batch, SEQ_LEN)
            counted = labels[:, 0] != IGNORE_INDEX
            assert (labels[~counted] == IGNORE_INDEX).all()
            got += rows([({"input": inputs["input"][counted]}, labels[counted])])
    assert got == whole


@pytest.mark.parametrize("stored", ["streamed", "in memory"])
@pytest.mark.parametrize("workers", [0, 1])
def test_upstreams_validation_begins_anew_too(
    registered: str, monkeypatch: pytest.MonkeyPatch, stored: str, workers: int
) -> None:
    """Before and after a resume, which starts with a new loader, and at the first as upstream's."""
    if stored == "in memory":
        whole = datasets.Dataset.from_dict({"text": texts(40)})
        entry = DatasetConfig("", lambda path: whole, lambda sample: sample["text"])
        monkeypatch.setitem(text_datasets.DATASETS, registered, entry)
    config = config_for(registered, None)
    config.validation.dataloader.num_workers = workers
    config.validation.dataloader.persistent_workers = bool(workers)
    build = text_datasets.build_text_validation_dataloader
    expected = rows(islice(build(1, 0, Letters(), config, infinite=True), 7))
    for _ in range(2):
        ours = build_validation_dataloader(1, 0, Letters(), config, infinite=True)
        assert all(rows(islice(ours, 7)) == expected for _ in range(2))


def test_upstreams_loader_reads_on_in_the_next_stage(registered: str) -> None:
    """Upstream takes a token more than a sequence has, for the last label."""
    config = config_for(registered, None)
    lengths = (20, 50, 7)
    config.stages = [{"steps": 1, "attention": "dense", "seq_len": n} for n in lengths]
    staged, letters = build_dataloader(1, 0, Letters(), config), []
    assert isinstance(staged, StagedLoader)
    batches = iter(staged)
    for stage in Stages.of(config):
        staged.begin_stage(stage)
        inputs, labels = next(batches)
        assert inputs["input"].shape == (1, stage.seq_len)
        letters += [inputs["input"][0, 0].item(), *labels[0].tolist()]
    assert letters == [ord(letter) for letter in "".join(texts(40))][: len(letters)]


@pytest.mark.parametrize("order", ["files", "shuffled"])
@pytest.mark.parametrize("apart", tiers([False, True], True))
def test_none_and_one_worker_go_on_from_each_other(tmp_path: Path, order: str, apart: bool) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts(30))
    config = config_for("local", tmp_path, dataset_order=order, document_mask=apart)
    expected = [batch[1].tolist() for batch in islice(loader(config), 60)]
    records, got, state = [], [], None
    for workers, count in ((0, 7), (1, 30), (1, 3), (0, 20)):
        config.training.dataloader.num_workers = workers
        records.append(RunRecord.of(config, 1))
        reading = loader(config)
        if state is not None:
            reading.load_state_dict(state)
            assert pickle.dumps(reading.state_dict())  # also before it is iterated
        got += [batch[1].tolist() for batch in islice(reading, count)]
        state = reading.state_dict()
    assert got == expected
    assert not list(text_changes(records[0], records[1], []))
    config.training.dataloader.num_workers = 2
    (change,) = text_changes(records[0], RunRecord.of(config, 1), [])
    assert (change.was, change.now, change.name) == (0, 2, "data")
