"""What a checkpoint says of its run, and what killed saves leave behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torchtitan.config import JobConfig

from lighthouse.titan.checkpoint.record import RECORD, RunRecord, begin_save
from lighthouse.titan.config.stages import Stages


@pytest.fixture
def job() -> JobConfig:
    job = JobConfig()
    job.training.steps = 20
    job.lighthouse.enable, job.lighthouse.dense_from_step = True, 15
    return job


def test_a_record_is_read_as_it_was_written(job: JobConfig, tmp_path: Path) -> None:
    record = RunRecord.of(job, 4)
    assert record.data_parallel_degree == 4 and record.local_text is None
    assert record.stages == Stages.of(job)
    assert record.lr_scheduler["total_steps"] == 20
    for model_only in (False, True):
        record.write(tmp_path / "step-3", model_only)
        assert RunRecord.read(tmp_path / "step-3") == replace(record, model_only=model_only)


def test_a_record_is_readable_json(job: JobConfig, tmp_path: Path) -> None:
    RunRecord.of(job, 1).write(tmp_path, model_only=False)
    assert RECORD == "resume.json"
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["optimizer"]["lr"] == job.optimizer.lr
    assert record["lr_scheduler"]["total_steps"] == 20
    stages = [(stage["attention"], stage["first"], stage["last"]) for stage in record["stages"]]
    assert stages == [("lighthouse", 1, 14), ("dense", 15, 20)]


@pytest.mark.parametrize(
    "changed",
    [
        {"stages": []},
        {"settings": []},
        {"changes": 5},
        {"model": "x"},
        {"lr_scheduler": {}},
        {"optimizer": {"a": 1}},
        {"data_parallel_degree": True},
        {"data_parallel_degree": 0},
        {"data_parallel_degree": 10**30},
        {"stages": [{"number": 1, "attention": "dense", "first": 1, "last": "x", "seq_len": 8}]},
        {"stages": [{"number": 1, "attention": "other", "first": 1, "last": 9, "seq_len": 8}]},
        {"stages": [{"number": 1, "attention": "dense", "first": 1, "last": 10**30, "seq_len": 8}]},
        {"stages": [{"number": 1, "attention": "dense", "first": 3, "last": 9, "seq_len": 8}]},
        {"text": [{"name": 5, "files": {}}]},
        {"text": [{"name": "a", "files": {"a": [-1, "x"]}}]},
        {"text": [{"name": "a", "files": {}, "times": {"a": 1}}]},
        {"text": []},
    ],
    ids=str,
)
def test_json_of_other_types_is_no_record(job: JobConfig, tmp_path: Path, changed) -> None:
    RunRecord.of(job, 1).write(tmp_path, model_only=False)
    values = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(values | changed))
    with pytest.raises(
        ValueError, match=rf"^{RECORD} can't be read \(\w+: .*{next(iter(changed))}"
    ):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "training.dataloader.num_workers", "x"),
        ("data", "weights and texts of training.sources", [5]),
        ("data", "weights and texts of training.sources", [["x", "text"]]),
        ("settings", "training.local_batch_size", None),
        ("lr_scheduler", "total_steps", "x"),
        ("lr_scheduler", "total_steps", -1),
        ("lr_scheduler", "decay_ratio", []),
        ("optimizer", "lr", {}),
    ],
)
def test_a_setting_of_another_type_is_no_record(
    job: JobConfig, tmp_path: Path, section: str, key: str, value: object
) -> None:
    """What compares it with a run's would fail."""
    RunRecord.of(job, 1).write(tmp_path, model_only=False)
    values = json.loads((tmp_path / RECORD).read_text())
    values[section][key] = value
    (tmp_path / RECORD).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"^{RECORD} can't be read \((Type|Value)Error: "):
        RunRecord.read(tmp_path)


def test_a_checkpoint_of_another_trainer_has_none(tmp_path: Path) -> None:
    assert RunRecord.read(tmp_path) is None


def test_a_record_under_its_first_name_is_read(job: JobConfig, tmp_path: Path) -> None:
    record = RunRecord.of(job, 1)
    record.write(tmp_path, model_only=False)
    values = json.loads((tmp_path / RECORD).read_text())
    later = {"settings": None, "tokenizer": None, "text": None, "local_text": None, "stages": None}
    for key in ("data", "changes", *later):  # which came later
        del values[key]
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert RunRecord.read(tmp_path) == record
    (tmp_path / RECORD).unlink()
    before = {
        "training.dataset_text": "text",
        "training.dataset_order": "files",
        "training.dataset_seed": 0,
        "weights and texts of training.sources": [],
        "training.task_rate": 0.0,
        "training.document_mask": False,
    }
    assert RunRecord.read(tmp_path) == replace(record, data=before, **later)


def test_leftovers_of_a_killed_save_go_and_finished_ones_stay(
    job: JobConfig, tmp_path: Path
) -> None:
    checkpoint, record = tmp_path / "step-10", RunRecord.of(job, 1)
    checkpoint.mkdir()
    (checkpoint / "__0_0.distcp").touch()
    begin_save(str(checkpoint), record, model_only=False)
    assert [path.name for path in checkpoint.iterdir()] == [RECORD]
    (checkpoint / ".metadata").touch()
    (checkpoint / "__0_0.distcp").touch()
    begin_save(str(checkpoint), record, model_only=False)
    assert (checkpoint / "__0_0.distcp").exists()


def test_other_ranks_leave_it_to_rank_0(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunRecord.of(job, 2)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        begin_save(str(tmp_path / "step-1"), record, model_only=False)
        assert (tmp_path / "step-1").exists() == (rank == 0)


def test_without_a_record_nothing_is_written(tmp_path: Path) -> None:
    begin_save(str(tmp_path / "step-1"), None, model_only=False)
    assert not (tmp_path / "step-1").exists()
