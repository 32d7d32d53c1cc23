"""The text of a run with stages is read once, in order, whatever their lengths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torchtitan.config import JobConfig

from lighthouse.titan.config.stages import Stages
from lighthouse.titan.data.loaders import build_dataloader
from lighthouse.titan.data.staged import StagedLoader
from lighthouse.titan.data.tokenizer import ByteTokenizer
from tests.support.text import config_for, stream, texts, write_jsonl

LENGTHS = ((3, 20, 2), (1, 50, 1), (2, 7, 3), (2, 50, 1))  # steps, length, rows


def job_of(folder: Path, workers: int, documents: list[str]) -> JobConfig:
    path = folder / "text.jsonl"
    if not path.exists():
        write_jsonl(path, documents)
    job = config_for("local", path)
    job.training.dataloader.num_workers = workers
    job.stages = [
        {"steps": steps, "attention": "dense", "seq_len": length, "local_batch_size": rows}
        for steps, length, rows in LENGTHS
    ]
    return job


def loader_of(job: JobConfig, tokenizer: Any = None) -> StagedLoader:
    loader = build_dataloader(1, 0, tokenizer or ByteTokenizer(), job)
    assert isinstance(loader, StagedLoader)
    return loader


def read(
    loader: StagedLoader, stages: Stages, first: int = 1, last: int = 8
) -> Iterator[list[list[int]]]:
    """The rows of each step, labels included."""
    batches = iter(loader)
    for step in range(first, last + 1):
        loader.begin_stage(stages.at(step))
        inputs, labels = next(batches)
        rows = zip(inputs["input"].tolist(), labels.tolist(), strict=True)
        yield [[x[0], *y] for x, y in rows]


def shapes(steps: list[list[list[int]]]) -> list[tuple[int, int]]:
    return [(len(rows), len(rows[0]) - 1) for rows in steps]


EXPECTED_SHAPES = [(rows, length) for steps, length, rows in LENGTHS for _ in range(steps)]


@pytest.mark.parametrize("workers", [0, 1])
def test_no_token_is_lost_or_read_twice(tmp_path: Path, workers: int) -> None:
    """Also where batches of the old length are read ahead: they are given back."""
    documents = texts(40)
    job = job_of(tmp_path, workers, documents)
    steps = list(read(loader_of(job), Stages.of(job)))
    assert shapes(steps) == EXPECTED_SHAPES
    tokens = [token for rows in steps for row in rows for token in row[:-1]]
    assert tokens == stream(documents)[: len(tokens)]


@pytest.mark.parametrize(
    ("workers", "saved_after"),
    [(0, 1), (0, 3), (1, 3), pytest.param(1, 6, marks=pytest.mark.thorough)],
)
def test_a_saved_place_goes_on(tmp_path: Path, workers: int, saved_after: int) -> None:
    """Inside a stage, and on a boundary: after steps 3, 4 and 6."""
    job = job_of(tmp_path, workers, texts(40))
    stages = Stages.of(job)
    expected = list(read(loader_of(job), stages))
    loader = loader_of(job)
    begun = list(read(loader, stages, last=saved_after))
    state = loader.state_dict()
    fresh = loader_of(job)
    assert fresh.state_dict().keys() == state.keys()
    fresh.load_state_dict(state)
    assert [*begun, *read(fresh, stages, first=saved_after + 1)] == expected


def test_each_of_two_workers_goes_on_in_its_own_documents(tmp_path: Path) -> None:
    """Two workers take turns; nothing of what either was to give is lost or given twice."""
    documents = texts(40)
    folder = tmp_path / "files"
    folder.mkdir()
    for part in (0, 1):
        write_jsonl(folder / f"{part}.jsonl", documents[part::2])
    job = job_of(tmp_path, 2, documents)
    job.training.dataset_path = str(folder)
    steps = list(read(loader_of(job), Stages.of(job)))
    assert shapes(steps) == EXPECTED_SHAPES
    streams = [stream(documents[part::2]) for part in (0, 1)]
    at = [0, 0]
    for rows in steps:
        tokens = [token for row in rows for token in row[:-1]]
        fits = [w for w in (0, 1) if streams[w][at[w] : at[w] + len(tokens)] == tokens]
        assert fits, "neither worker's next tokens"
        at[fits[0]] += len(tokens)
    assert min(at) > 0


def test_the_present_stage_again_changes_nothing(tmp_path: Path) -> None:
    job = job_of(tmp_path, 0, texts(40))
    first, *_ = Stages.of(job)
    loader = loader_of(job)
    batches = iter(loader)
    next(batches)
    before = loader.state_dict()
    loader.begin_stage(first)
    assert loader.state_dict() == before


def test_without_stages_there_is_the_plain_loader(tmp_path: Path) -> None:
    job = job_of(tmp_path, 0, texts(4))
    job.stages = []
    assert not isinstance(build_dataloader(1, 0, ByteTokenizer(), job), StagedLoader)
