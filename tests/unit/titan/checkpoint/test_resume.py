"""Which checkpoints a run goes on from, and which it is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from lighthouse.refusal import NothingToDo
from lighthouse.titan.checkpoint.record import RECORD, RunRecord, begin_save
from lighthouse.titan.checkpoint.resume import check_resume
from lighthouse.titan.data.text_files import forget_files


@pytest.fixture
def job(tmp_path: Path):
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.job.dump_folder = str(tmp_path)
    job.checkpoint.enable = True
    job.training.steps = 20
    return job


def save(
    job, step: int, folder: Path | None = None, model_only: bool = False, **changes: object
) -> Path:
    """A finished checkpoint of the job in one process; ``changes`` are of its record."""
    path = (folder or Path(job.job.dump_folder) / "checkpoint") / f"step-{step}"
    begin_save(str(path), replace(RunRecord.of(job, 1), **changes), model_only)
    (path / ".metadata").touch()
    return path


def refused(job, degree: int = 1) -> str:
    with pytest.raises(ValueError) as error:
        check_resume(job, degree)
    return str(error.value)


def finished(job) -> str:
    with pytest.raises(NothingToDo) as done:
        check_resume(job, 1)
    return str(done.value)


def test_a_matching_resume_passes(job):
    save(job, 10)
    assert check_resume(job, 1) == 1


def test_nothing_to_load_passes(job, tmp_path):
    assert check_resume(job, 3) == 3
    (tmp_path / "checkpoint").mkdir()
    assert check_resume(job, 3) == 3


@pytest.mark.parametrize("step", [20, 25])
def test_a_finished_run_is_no_mistake(job, step):
    path = save(job, step)
    message = finished(job)
    assert f"nothing is left to train: checkpoint {path} is at step {step}" in message
    assert "training.steps = 20; raise training.steps to go on" in message


def test_model_only_cannot_be_resumed(job):
    save(job, 10, model_only=True)
    assert "holds the model alone" in refused(job)


def test_changed_data_parallel_degree(job):
    save(job, 10)
    assert "data-parallel degree = 4" in refused(job, degree=4)
    job.checkpoint.exclude_from_loading = ["dataloader"]
    assert check_resume(job, 4) == 1  # by which its tokens were counted


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


def test_steps_are_not_counted_again_over_finished_checkpoints(job, tmp_path):
    path = save(job, 10)
    job.checkpoint.exclude_from_loading = ["train_state"]
    message = refused(job)
    assert message.startswith("checkpoint.exclude_from_loading = ['train_state']: ")
    assert f"would overwrite the finished checkpoints in {path.parent}" in message
    # Where there are none to overwrite, they may be.
    job.job.dump_folder = str(tmp_path / "other")
    job.checkpoint.initial_load_path = str(path)
    job.checkpoint.initial_load_model_only = False
    assert check_resume(job, 1) == 1


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
    forget_files()
    moved = texts.rename(tmp_path / "moved")
    job.training.dataset_path = str(moved)
    check_resume(job, 1)
    (moved / "b.txt").write_text("two")
    forget_files()
    message = refused(job)
    assert "training.dataset_path has 2 files of 6 bytes" in message and "1 files of 3" in message
    job.checkpoint.exclude_from_loading = ["dataloader"]
    check_resume(job, 1)


def test_weights_in_hugging_faces_format(job):
    path = save(job, 10, model_only=True)
    (path / ".metadata").rename(path / "model.safetensors.index.json")
    assert "checkpoint.initial_load_in_hf = true" in refused(job)
    job.training.steps = 10
    assert "is at step 10" in finished(job)


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
    assert "is at step 30" in finished(job)


def test_seed_checkpoints_and_foreign_checkpoints_pass(job):
    save(job, 0, model_only=True)
    check_resume(job, 1)
    (save(job, 10, model_only=True) / RECORD).unlink()
    check_resume(job, 1)


def lighthouse_until(job, dense_from_step: int | None, selection: str) -> None:
    section = job.lighthouse
    section.enable, section.dense_from_step, section.selection = True, dense_from_step, selection


def test_a_lighthouse_stage_goes_on_with_the_selection_that_it_began_with(job):
    lighthouse_until(job, 15, "published")
    save(job, 10)
    lighthouse_until(job, 15, "causal")
    message = refused(job)
    assert message.startswith("lighthouse.selection = 'causal': checkpoint ")
    assert "set lighthouse.selection = 'published' to go on as it began" in message
    lighthouse_until(job, 15, "published")
    check_resume(job, 1)
    lighthouse_until(job, 11, "causal")  # what comes is dense
    check_resume(job, 1)


def test_a_dense_stage_goes_on_under_any_selection(job):
    lighthouse_until(job, 5, "published")
    save(job, 10)
    lighthouse_until(job, 15, "causal")
    check_resume(job, 1)


@pytest.mark.parametrize(
    ("logged", "was_lighthouse"),
    [(None, False), ("", False), ("lighthouse", True), ("dense", False)],
)
def test_the_log_tells_the_selection_of_a_record_without_stages(
    job, tmp_path, logged, was_lighthouse
):
    """There was no other selection than the published one then."""
    lighthouse_until(job, 15, "causal")
    save(job, 10, stages=None)
    if logged is not None:
        lines = (f'{{"step": {step}, "loss": 1.0, "stage": "{logged}"}}\n' for step in (9, 10))
        later = '{"step": 11, "loss": 1.0, "stage": "other"}\n'
        text = "".join(lines) + later if logged else ""
        (tmp_path / "metrics.jsonl").write_text(text)
    if was_lighthouse:
        assert "was trained with 'published'" in refused(job)
    else:
        check_resume(job, 1)


def test_a_validation_that_was_logged_last_says_nothing_of_the_stage(job, tmp_path):
    lighthouse_until(job, 15, "causal")
    save(job, 10, stages=None)
    lines = [
        '{"step": 10, "loss": 1.0, "stage": "lighthouse"}',
        '{"step": 10, "validation_loss": 2}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "was trained with 'published'" in refused(job)
