"""Which checkpoints count, which are refused, and what is kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lighthouse.titan.checkpoint import (
    RECORD,
    begin_save,
    check_resume,
    finished_steps,
    run_record,
    stale_checkpoints,
)


@pytest.fixture
def job(tmp_path: Path):
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.job.dump_folder = str(tmp_path)
    job.checkpoint.enable = True
    job.training.steps = 20
    return job


def save(job, step: int, folder: Path | None = None, finished: bool = True, **record) -> Path:
    path = (folder or Path(job.job.dump_folder) / "checkpoint") / f"step-{step}"
    begin_save(str(path), run_record(job, 1) | record, model_only=record.get("model_only", False))
    if finished:
        (path / ".metadata").touch()
    return path


def refused(job, degree: int = 1) -> str:
    with pytest.raises(ValueError) as error:
        check_resume(job, degree)
    return str(error.value)


def test_only_finished_folders_of_the_exact_name_count(job, tmp_path):
    from torchtitan.components.checkpoint import CheckpointManager

    save(job, 10)
    save(job, 2)
    save(job, 15, finished=False)
    for name in ("step-19.old", "old-step-18", "step-x"):
        (tmp_path / "checkpoint" / name).mkdir()
        (tmp_path / "checkpoint" / name / ".metadata").touch()
    assert finished_steps(tmp_path / "checkpoint") == [2, 10]
    assert finished_steps(tmp_path / "nowhere") == []
    manager = SimpleNamespace(folder=str(tmp_path / "checkpoint"))
    assert CheckpointManager._find_load_step(manager) == 10


def test_leftovers_of_a_killed_save_go_and_finished_ones_stay(job):
    leftover = save(job, 10, finished=False)
    (leftover / "__0_0.distcp").touch()
    save(job, 10)
    assert sorted(path.name for path in leftover.iterdir()) == [".metadata", RECORD]
    (leftover / "__0_0.distcp").touch()
    save(job, 10)
    assert (leftover / "__0_0.distcp").exists()


def test_purging_keeps_the_newest_finished(job, tmp_path):
    folder = str(tmp_path / "checkpoint")
    save(job, 20, finished=False)
    assert stale_checkpoints(folder, 2) == []
    paths = [save(job, step) for step in (5, 10, 15)]
    killed = save(job, 12, finished=False)
    assert stale_checkpoints(folder, 2) == [str(paths[0]), str(killed)]
    assert stale_checkpoints(folder, 3) == [str(killed)]
    assert stale_checkpoints(str(tmp_path), 3) == []


def test_a_matching_resume_passes(job):
    save(job, 10)
    check_resume(job, 1)


def test_nothing_to_load_passes(job, tmp_path):
    check_resume(job, 1)
    (tmp_path / "checkpoint").mkdir()
    check_resume(job, 1)


@pytest.mark.parametrize("step", [20, 25])
def test_step_already_reached(job, step):
    save(job, step)
    message = refused(job)
    assert "training.steps = 20" in message and f"already at step {step}" in message


def test_model_only_cannot_be_resumed(job):
    save(job, 10, model_only=True)
    assert "holds the model alone" in refused(job)


def test_changed_data_parallel_degree(job):
    save(job, 10)
    assert "data-parallel degree = 4" in refused(job, degree=4)
    job.checkpoint.exclude_from_loading = ["dataloader"]
    check_resume(job, 4)


def test_changed_data(job):
    save(job, 10)
    job.training.dataloader.num_workers = 2
    assert "training.dataloader.num_workers = 2" in refused(job)
    job.training.dataloader.num_workers, job.training.dataset = 0, "local"
    assert "training.dataset = 'local'" in refused(job)
    job.checkpoint.exclude_from_loading = ["dataloader"]
    check_resume(job, 1)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("optimizer", "lr", 0.5),
        ("optimizer", "weight_decay", 0.0),
        ("lr_scheduler", "warmup_steps", 3),
        ("lr_scheduler", "total_steps", 40),
    ],
)
def test_settings_that_live_in_the_checkpoint(job, section, name, value):
    save(job, 10)
    setattr(getattr(job, section), name, value)
    message = refused(job)
    assert f"{section}.{name} = {value!r}" in message
    job.checkpoint.exclude_from_loading = ["optimizer", "lr_scheduler"]
    check_resume(job, 1)


def test_longer_training_needs_another_schedule(job):
    save(job, 10)
    job.training.steps = 40
    assert "ends at step 20" in refused(job) and "use training.steps = 20, or" in refused(job)
    job.training.steps = 20
    save(job, 20)
    job.training.steps = 40
    assert "ends at step 20" in refused(job) and "use training.steps" not in refused(job)
    job.lr_scheduler.total_steps = 40
    assert "ends at step 20" in refused(job)
    job.checkpoint.exclude_from_loading = ["optimizer", "lr_scheduler"]
    check_resume(job, 1)


def test_changed_local_text(job, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("one")
    job.training.dataset, job.training.dataset_path = "local", str(texts)
    save(job, 10)
    job.training.dataset_path = str(texts / "a.txt")
    check_resume(job, 1)
    (tmp_path / "other.txt").write_text("two")
    job.training.dataset_path = str(tmp_path / "other.txt")
    assert "training.dataset_path has 1 files of 3 bytes" in refused(job)
    moved = texts.rename(tmp_path / "moved")
    job.training.dataset_path = str(moved)
    check_resume(job, 1)
    (moved / "b.txt").write_text("two")
    message = refused(job)
    assert "training.dataset_path has 2 files of 6 bytes" in message and "1 files of 3" in message
    job.checkpoint.exclude_from_loading = ["dataloader"]
    check_resume(job, 1)


def test_weights_in_hugging_faces_format(job):
    path = save(job, 10, model_only=True)
    (path / ".metadata").rename(path / "model.safetensors.index.json")
    assert "checkpoint.initial_load_in_hf = true" in refused(job)
    job.training.steps = 10
    assert "already at step 10" in refused(job)


def test_load_step(job):
    save(job, 5)
    save(job, 10)
    job.checkpoint.load_step = 7
    assert "finished are [5, 10]" in refused(job)
    job.checkpoint.load_step = 5
    assert "also holds steps [10]" in refused(job)
    job.checkpoint.load_step = 10
    check_resume(job, 1)


def test_initial_load_path(job, tmp_path):
    other = tmp_path / "other"
    path = save(job, 30, folder=other)
    job.checkpoint.initial_load_path = str(other)
    assert f"use {path}" in refused(job)
    job.checkpoint.initial_load_path = str(other / "step-4")
    assert "not a finished checkpoint" in refused(job)
    job.checkpoint.initial_load_path = str(path)
    check_resume(job, 1)  # the model alone: its step does not matter
    job.checkpoint.initial_load_model_only = False
    assert "already at step 30" in refused(job)


def test_seed_checkpoints_and_foreign_checkpoints_pass(job):
    save(job, 0, model_only=True)
    check_resume(job, 1)
    (save(job, 10, model_only=True) / RECORD).unlink()
    check_resume(job, 1)


def test_the_record_is_readable(job):
    record = json.loads((save(job, 10) / RECORD).read_text())
    assert record["optimizer"]["lr"] == job.optimizer.lr
    assert record["lr_scheduler"]["total_steps"] == 20
