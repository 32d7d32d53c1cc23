"""Which text a job names: listed once."""

import os
from pathlib import Path
from typing import Any

import pytest

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.data.text_checks import check_texts
from lighthouse.titan.data.text_files import (
    all_files,
    forget_files,
    hidden_files,
    local_files,
    unread_files,
)
from tests.support.text import SEQ_LEN, config_for, loader


def test_files_are_listed_once_until_they_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert local_files(tmp_path) == [tmp_path / "a.txt"]
    (tmp_path / "b.txt").write_text("two")
    assert local_files(tmp_path) == [tmp_path / "a.txt"]
    forget_files()
    assert local_files(tmp_path) == [tmp_path / "a.txt", tmp_path / "b.txt"]


def test_a_start_walks_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is checked, recorded beside checkpoints, and read."""
    (tmp_path / "a.txt").write_text("one" * SEQ_LEN)
    walked: list[Path] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: walked.append(path) or listdir(path))
    config = config_for("local", tmp_path)
    config.validation.enable = True
    check_texts(config)
    RunRecord.of(config, 1)
    next(iter(loader(config)))
    assert walked == [tmp_path]


def test_links_are_followed_once(tmp_path: Path) -> None:
    """To what lies elsewhere; what is passed over is named."""
    inside, elsewhere = tmp_path / "text", tmp_path / "elsewhere"
    for folder in (inside, elsewhere):
        folder.mkdir()
        (folder / "z.txt").write_text("z")
    (inside / "sub").mkdir()
    (inside / "a").symlink_to("sub")
    (inside / "b").symlink_to(elsewhere)
    (inside / "c").symlink_to(inside)
    (inside / "d.txt").symlink_to("nothing.txt")
    (inside / "e").symlink_to("e")
    os.mkfifo(inside / "f.txt")
    (inside / ".hidden.txt").write_text("h")
    assert local_files(inside) == [inside / "b" / "z.txt", inside / "z.txt"]
    assert unread_files(inside) == [inside / name for name in ("a", "c", "d.txt", "e", "f.txt")]
    assert all_files(inside) == local_files(inside)
    assert hidden_files(inside) == 1


def test_a_folder_that_cant_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "sub").mkdir()
    listdir = os.listdir

    def refusing(path: Path) -> list[str]:  # for root may read everything
        if path.name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    with pytest.raises(ValueError, match=r"^training\.dataset_path = .*/sub can't be read \(Perm"):
        check_texts(config_for("local", tmp_path))


def test_a_file_that_cant_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    opened = Path.open

    def refusing(path: Path, *arguments: Any) -> Any:
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(ValueError, match=r"a\.txt can't be read: Permission denied"):
        check_texts(config_for("local", tmp_path))
