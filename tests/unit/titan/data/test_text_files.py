"""Which text a job names: listed once."""

from pathlib import Path

import pytest

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.data.text_files import (
    check_texts,
    forget_files,
    local_files,
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
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, *p: walked.append(path) or rglob(path, *p))
    config = config_for("local", tmp_path)
    config.validation.enable = True
    check_texts(config)
    RunRecord.of(config, 1)
    next(iter(loader(config)))
    assert walked == [tmp_path]
