"""Old checkpoints that can't be deleted: said once, and no reason to stop or to delete others."""

import logging
import os
import queue
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from torchtitan.components.checkpoint import Terminate, purge_thread

from lighthouse.titan.checkpoint.purge import checkpoints_to_delete

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the user that this process is until the test ends; pytest's own are root's."""
    made = Path(tempfile.mkdtemp())
    os.chown(made, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield made
    finally:
        os.seteuid(0)
        shutil.rmtree(made)


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"step-{step}").mkdir()
        (folder / f"step-{step}" / ".metadata").touch()


def give_to_root(checkpoint: Path, mode: int) -> None:
    os.seteuid(0)
    os.chown(checkpoint, 0, 0)
    checkpoint.chmod(mode)
    os.seteuid(NOBODY)


def purge(folder: Path, keep: int) -> None:
    """As the checkpoint manager does behind a save."""
    paths: queue.Queue[object] = queue.Queue()
    for path in checkpoints_to_delete(str(folder), keep):
        paths.put(path)
    paths.put(Terminate())
    purge_thread(paths)


def steps(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o755, "the old checkpoint {} can't be deleted (Permission denied); training goes on"),
        (0o700, "checkpoint {} can't be read (Permission denied); it is not deleted, and training"),
    ],
    ids=["readable", "closed"],
)
def test_another_users_is_said_once_and_left(
    folder: Path, mode: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, 1, 2, 3, 4)
    give_to_root(folder / "step-2", mode)
    with caplog.at_level(logging.INFO):
        purge(folder, keep=2)
        save(folder, 5)
        purge(folder, keep=2)
    assert steps(folder) == {"step-2", "step-4", "step-5"}
    about = [r for r in caplog.records if "step-2" in r.message]
    assert [r.levelno for r in about] == [logging.WARNING]
    assert about[0].message.startswith(said.format(folder / "step-2"))
    deleted = [r for r in caplog.records if r.message.startswith("Checkpointer deleted")]
    assert len(deleted) == 2


def test_it_is_deleted_once_it_can_be(folder: Path) -> None:
    save(folder, 1, 2, 3)
    give_to_root(folder / "step-1", 0o755)
    purge(folder, keep=2)
    assert "step-1" in steps(folder)
    os.seteuid(0)
    os.chown(folder / "step-1", NOBODY, NOBODY)
    os.seteuid(NOBODY)
    purge(folder, keep=2)
    assert steps(folder) == {"step-2", "step-3"}
