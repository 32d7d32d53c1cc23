"""The checkpoint to begin with is looked for before anything is built, as text is."""

import re
from pathlib import Path
from typing import Any

import pytest
from torchtitan.config import JobConfig

from lighthouse.titan.check.checkpoint import check_checkpoint
from lighthouse.titan.trained import finished_checkpoint
from tests.support.locked import lock


@pytest.fixture
def job(tmp_path: Path) -> Any:
    config = JobConfig()
    config.job.dump_folder, config.checkpoint.enable = str(tmp_path / "run"), True
    return config


def saved(folder: Path, step: int) -> Path:
    path = folder / f"step-{step}"
    path.mkdir(parents=True)
    (path / ".metadata").touch()
    return path


def refused(job: Any) -> str:
    with pytest.raises(ValueError) as error:
        check_checkpoint(job)
    return str(error.value)


def test_a_step_to_load_is_the_last_one(job: Any, tmp_path: Path) -> None:
    job.checkpoint.load_step = 7
    assert refused(job).endswith("finished are none")
    for step in (5, 10):
        saved(tmp_path / "run" / "checkpoint", step)
    assert refused(job).endswith("finished are [5, 10]")
    job.checkpoint.load_step = 5
    assert "also holds steps [10]" in refused(job)
    job.checkpoint.load_step = 10
    check_checkpoint(job)


def test_a_closed_step_to_load_is_said_to_be_closed(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an older one that is closed is in nobody's way."""
    folder = tmp_path / "run" / "checkpoint"
    older, newer = saved(folder, 5), saved(folder, 10)
    with pytest.MonkeyPatch.context() as closed:
        lock(closed, older)
        check_checkpoint(job)
        assert finished_checkpoint(folder, None) == (newer, 10)
        said = f"checkpoint {older} can't be read (Permission denied)"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            finished_checkpoint(folder, 5)
        job.checkpoint.load_step = 5
        assert refused(job) == said
    # Nor is a newer one in the way of one that is named.
    lock(monkeypatch, newer)
    assert finished_checkpoint(folder, 5) == (older, 5)
    said = rf"^checkpoint {newer} can't be read \(Permission denied\); make it readable, or move"
    with pytest.raises(ValueError, match=said):
        finished_checkpoint(folder, None)


def test_a_checkpoint_to_begin_with_is_finished(job: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    path = saved(other, 30)
    job.checkpoint.initial_load_path = str(other)
    assert refused(job).endswith(f"use {path}")
    job.checkpoint.initial_load_path = str(other / "step-4")
    assert "is not a finished checkpoint; it names a step-N folder" in refused(job)
    job.checkpoint.initial_load_path = str(path)
    check_checkpoint(job)
    # A run with a checkpoint of its own goes on from that, wherever it began.
    job.checkpoint.initial_load_path = str(other / "gone")
    saved(tmp_path / "run" / "checkpoint", 5)
    check_checkpoint(job)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("initial_load_path", "elsewhere/step-4", "'elsewhere/step-4'"),
        ("initial_load_in_hf", True, "true"),
        ("load_step", 5, "5"),
    ],
)
def test_what_is_to_be_loaded_needs_checkpoints(job: Any, key: str, value: Any, said: str) -> None:
    """Else the run would begin with random weights, and not say so."""
    job.checkpoint.enable = False
    check_checkpoint(job)
    setattr(job.checkpoint, key, value)
    assert refused(job).startswith(f"checkpoint.{key} = {said}: nothing is loaded with checkpoint.")


def test_no_run_begins_anew_beside_finished_checkpoints(job: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint"
    saved(folder, 0)
    job.checkpoint.create_seed_checkpoint = True
    check_checkpoint(job)
    saved(folder, 5)
    assert refused(job).startswith(f"checkpoint.create_seed_checkpoint = true: {folder} holds the ")
    job.checkpoint.create_seed_checkpoint = job.checkpoint.enable = False
    assert refused(job).startswith(f"checkpoint.enable = false: {folder} holds the finished ")


def test_no_run_begins_anew_beside_another_folder_of_checkpoints(job: Any, tmp_path: Path) -> None:
    other = tmp_path / "run" / "before"
    saved(other, 0)
    check_checkpoint(job)  # a seed checkpoint is of no run that has begun
    saved(other, 5)
    assert refused(job) == (
        f"checkpoint.folder = 'checkpoint': has no checkpoint, and {other} holds the finished ones "
        "[0, 5]: the run would begin anew beside them; set it to 'before' to go on, or use another "
        "job.dump_folder"
    )
    saved(tmp_path / "run" / "checkpoint", 3)
    check_checkpoint(job)
