"""A folder that can't take a run's output is refused by name."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from lighthouse.titan.checkpoint.disk import (
    GIB,
    SaveError,
    check_space,
    check_writable,
    explain_failed_save,
)

MILLION = 1_000_000


@pytest.fixture
def job(tmp_path: Path):
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.job.dump_folder = str(tmp_path / "runs" / "one")
    job.checkpoint.enable = True
    job.checkpoint.interval = 10
    job.checkpoint.keep_latest_k = 3
    job.training.steps = 100
    return job


@pytest.fixture
def disk(monkeypatch):
    def set_free(size: float, total: float = 1e15) -> None:
        usage = SimpleNamespace(total=total, free=size)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return set_free


def test_the_folder_is_made_and_nothing_is_left_in_it(job):
    check_writable(job)
    assert list(Path(job.job.dump_folder).iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "why"),
    [("/proc/nowhere", "No such file or directory"), ("/dev/null/run", "Not a directory")],
)
def test_an_unwritable_folder(job, folder, why):
    job.job.dump_folder = folder
    said = rf"job.dump_folder = '{folder}': can't be written \({why}: {folder}\);"
    with pytest.raises(ValueError, match=said):
        check_writable(job)


@pytest.mark.parametrize("name", ["configs", "assets", "checkpoint"])
def test_a_file_in_the_place_of_a_folder(job, name):
    folder = Path(job.job.dump_folder)
    folder.mkdir(parents=True)
    (folder / name).mkdir()
    check_writable(job)
    assert list((folder / name).iterdir()) == []
    (folder / name).rmdir()
    (folder / name).touch()
    with pytest.raises(ValueError, match=rf"{folder}/{name} is no folder"):
        check_writable(job)


def test_folders_of_logs_are_looked_at_where_they_are_written(job):
    folder = Path(job.job.dump_folder)
    folder.mkdir(parents=True)
    for name in ("tb", "profile_traces", "memory_snapshot"):
        (folder / name).touch()
    check_writable(job)
    job.metrics.enable_tensorboard = True
    with pytest.raises(ValueError, match=rf"{folder}/tb is no folder"):
        check_writable(job)
    (folder / "tb").unlink()
    job.profiling.enable_profiling = job.profiling.enable_memory_snapshot = True
    for name in ("profile_traces", "memory_snapshot"):
        with pytest.raises(ValueError, match=rf"{folder}/{name} is no folder"):
            check_writable(job)
        (folder / name).unlink()
    check_writable(job)


def test_a_configuration_of_another_user(job, monkeypatch):
    """It is compared with the attempt's."""
    file = Path(job.job.dump_folder) / "configs" / "0001.toml"
    file.parent.mkdir(parents=True)
    file.touch()
    check_writable(job)
    monkeypatch.setattr(os, "access", lambda path, mode: path != file)  # root may do anything
    with pytest.raises(ValueError, match=f"{file} can't be read, as a file of another user; "):
        check_writable(job)


def test_the_rest_of_another_users_save(job, monkeypatch):
    """It would be in the way when that step is saved."""
    steps = Path(job.job.dump_folder) / "checkpoint"
    for step in (1, 2, 3):
        (steps / f"step-{step}").mkdir(parents=True)
    (steps / "step-2" / ".metadata").touch()
    check_writable(job)

    def refuse(dir: Path) -> Any:
        if dir.name in ("step-1", "step-3"):  # root may do anything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return tempfile.SpooledTemporaryFile()

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(
        ValueError,
        match=rf"{steps}/step-3, the rest of a save, can't be written again \(Permission denied\)",
    ):
        check_writable(job)


@pytest.mark.parametrize("name", ["metrics.jsonl", "assets/tokenizer.json"])
def test_a_file_of_another_user(job, name, monkeypatch):
    """In a folder that both may write to; the run would end at its first step."""
    file = Path(job.job.dump_folder) / name
    file.parent.mkdir(parents=True)
    file.touch()
    check_writable(job)
    monkeypatch.setattr(os, "access", lambda path, mode: path != file)  # root may do anything
    with pytest.raises(ValueError, match=f"{file} can't be read and written, as a file of another"):
        check_writable(job)


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint/step-6"])
def test_a_link_to_a_disk_that_is_not_there(job, name):
    """Training would begin before what it points to, and its next save would fail."""
    link = Path(job.job.dump_folder) / name
    link.parent.mkdir(parents=True)
    link.symlink_to("/nowhere/step-6")
    with pytest.raises(ValueError, match=rf"job\.dump_folder = .*{link}"):
        check_writable(job)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.toml", "OWNER", "STOP", "DIVERGED"])
def test_a_folder_in_the_place_of_a_file(job, name):
    (Path(job.job.dump_folder) / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"job\.dump_folder = .*: {name} in it is a folder"):
        check_writable(job)


def test_one_more_checkpoint_than_are_kept_must_fit(job, disk):
    disk(4 * 12 * MILLION)
    check_space(job, MILLION)
    disk(4 * 12 * MILLION - 1)
    with pytest.raises(ValueError, match=r"4 checkpoint\(s\) of 1,000,000 parameters") as error:
        check_space(job, MILLION)
    assert str(error.value).startswith(f"job.dump_folder = {job.job.dump_folder!r}: ")
    assert f"need about {4 * 12 * MILLION / GIB:.2f} GiB" in str(error.value)


def test_checkpoints_that_are_there_need_no_room(job, disk):
    for step in (10, 20, 30, 40, 50):
        folder = Path(job.job.dump_folder) / "checkpoint" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / ".metadata").touch()
    disk(12 * MILLION)
    check_space(job, MILLION)
    disk(12 * MILLION - 1)
    with pytest.raises(ValueError, match=r"1 checkpoint\(s\)"):
        check_space(job, MILLION)


def test_all_that_are_kept_must_fit(job, disk):
    job.checkpoint.keep_latest_k = 0
    disk(11 * 12 * MILLION - 1)
    with pytest.raises(ValueError, match=r"11 checkpoint\(s\)"):
        check_space(job, MILLION)
    disk(11 * 12 * MILLION)
    check_space(job, MILLION)


def test_a_run_that_saves_nothing_needs_nothing(job, disk):
    disk(0)
    job.checkpoint.load_only = True
    check_space(job, MILLION)
    job.checkpoint.enable = False
    check_space(job, MILLION)


def test_a_disk_without_a_size_is_not_judged(job, disk):
    disk(0, total=0)
    check_space(job, MILLION)


def save_that_raises(folder: Path, error: BaseException):
    """The explained save of step 9, beside a finished checkpoint of step 6."""
    (folder / "step-6").mkdir()
    (folder / "step-6" / ".metadata").touch()

    @explain_failed_save
    def save(manager: object, step: int) -> None:
        raise error

    return lambda: save(SimpleNamespace(folder=str(folder)), 9)


FULL = OSError(errno.ENOSPC, "No space left on device")
STREAM = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
WRITER = RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")


@pytest.mark.parametrize("error", [FULL, STREAM, WRITER], ids=["system", "stream", "writer"])
@pytest.mark.parametrize("of_ranks", [False, True])
def test_a_save_that_the_disk_has_failed_says_so(
    tmp_path: Path, error: Exception, of_ranks: bool
) -> None:
    raised = CheckpointException("write", {1: (error, None)}) if of_ranks else error
    with pytest.raises(SaveError, match="step 9: a checkpoint could not be written to ") as said:
        save_that_raises(tmp_path, raised)()
    assert "the same command continues from step 6" in str(said.value)
    assert said.value.__cause__ is raised
    assert ("[Errno 28] No space left on device; " in str(said.value)) == (error is FULL)
    assert " GiB are free); finished ones are whole" in str(said.value)


def test_the_reason_that_the_writer_does_not_tell(tmp_path: Path, monkeypatch) -> None:
    """As where a quota is used up on a disk with much room."""

    def no_more(**_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("tempfile.TemporaryFile", no_more)
    with pytest.raises(SaveError, match=r"\(\[Errno 122\] Disk quota exceeded; .* GiB are free\);"):
        save_that_raises(tmp_path, STREAM)()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        # Whatever it says of the one that it lost.
        torch.distributed.DistBackendError("NCCL error: remote process exited, iostream closed"),
        torch.distributed.DistNetworkError("failed to recv, got 0 bytes: unexpected pos"),
    ],
    ids=["memory", "device", "NCCL", "network"],
)
@pytest.mark.parametrize("of_ranks", [False, True])
def test_another_failure_of_a_save_stays_what_it_is(
    tmp_path: Path, error: Exception, of_ranks: bool
) -> None:
    raised = CheckpointException("write", {1: (error, None)}) if of_ranks else error
    with pytest.raises(type(raised)) as said:
        save_that_raises(tmp_path, raised)()
    assert said.value is raised
    (note,) = said.value.__notes__
    assert note.startswith("The checkpoint of step 9 is not written; ")
    assert note.endswith("the same command continues from step 6.")
    error.__notes__ = []
