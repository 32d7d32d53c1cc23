"""Which checkpoints of a folder are finished, and which may go."""

import errno
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from lighthouse.runs.folder import (
    all_steps,
    finished_steps,
    is_finished,
    newest_checkpoint,
    stale_checkpoints,
    unfinished_steps,
    unreadable_checkpoints,
)
from tests.support.locked import lock


def save(folder: Path, step: int, finished: bool = True) -> Path:
    path = folder / f"step-{step}"
    path.mkdir(parents=True)
    if finished:
        (path / ".metadata").touch()
    return path


@pytest.mark.parametrize("mark", [".metadata", "model.safetensors.index.json"])
def test_a_checkpoint_is_finished_when_its_mark_is_there(tmp_path: Path, mark: str) -> None:
    assert not is_finished(tmp_path / "nowhere")
    assert not is_finished(tmp_path)
    (tmp_path / mark).touch()
    assert is_finished(tmp_path)


def test_a_folder_in_the_place_of_the_mark_is_damage_and_no_unfinished_save(tmp_path: Path) -> None:
    (tmp_path / "step-1" / ".metadata").mkdir(parents=True)
    save(tmp_path, 2, finished=False)
    assert finished_steps(tmp_path) == [1]
    assert unfinished_steps(tmp_path) == [2]


def test_only_finished_folders_of_the_exact_name_count(tmp_path: Path) -> None:
    from torchtitan.components.checkpoint import CheckpointManager

    for step, finished in ((10, True), (2, True), (15, False)):
        save(tmp_path, step, finished)
    for name in (
        "step-19.old",
        "old-step-18",
        "step-x",
        "step-020",
        "step-\uff12\uff11",
        "step-22\n",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".metadata").touch()
    assert finished_steps(tmp_path) == [2, 10]
    assert all_steps(tmp_path) == [2, 10, 15]
    assert finished_steps(tmp_path / "nowhere") == all_steps(tmp_path / "nowhere") == []
    manager = SimpleNamespace(folder=str(tmp_path))
    assert CheckpointManager._find_load_step(manager) == 10


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 5)

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(ValueError, match=rf"^checkpoint {path} can't be read \(Permission denied"):
        finished_steps(tmp_path)
    monkeypatch.setattr("os.listdir", denied)
    with pytest.raises(ValueError, match=rf"^{tmp_path} can't be read \(Permission denied"):
        finished_steps(tmp_path)


def test_what_cannot_be_looked_into_matters_where_it_would_be_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    closed = tmp_path / "step-10"
    lock(monkeypatch, closed)
    said = f"checkpoint {closed} can't be read (Permission denied)"
    assert finished_steps(tmp_path) == [5, 15]
    assert unreadable_checkpoints(tmp_path) == [said]
    (tmp_path / "step-15" / ".metadata").unlink()
    with pytest.raises(ValueError, match=f"^{re.escape(said)}; make it readable, or move"):
        finished_steps(tmp_path)


def test_the_newest_of_all_folders(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert newest_checkpoint(tmp_path) is None
    for folder, step in (("checkpoint", 9), ("checkpoint", 10), ("other", 7)):
        save(tmp_path / folder, step)
    save(tmp_path / "checkpoint", 20, finished=False)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint" / "step-10"


def test_purging_keeps_the_newest_finished(tmp_path: Path) -> None:
    folder = str(tmp_path)
    save(tmp_path, 20, finished=False)
    assert stale_checkpoints(folder, 2) == ([], [])
    paths = [save(tmp_path, step) for step in (5, 10, 15)]
    killed = save(tmp_path, 12, finished=False)
    assert stale_checkpoints(folder, 2) == ([str(paths[0]), str(killed)], [])
    assert stale_checkpoints(folder, 3) == ([str(killed)], [])
    assert stale_checkpoints(str(tmp_path / "nowhere"), 3) == ([], [])
