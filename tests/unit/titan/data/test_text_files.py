"""Which text a job names: listed once, and known again by names and sizes."""

from pathlib import Path

import pytest

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.data.text_files import (
    check_texts,
    forget_files,
    local_files,
    text_identity,
)
from tests.support.text import SEQ_LEN, config_for, loader


def identity(path: Path) -> str | None:
    return text_identity("local", str(path))


def test_files_are_listed_once_until_they_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    first = identity(tmp_path)
    (tmp_path / "b.txt").write_text("two")
    assert local_files(tmp_path) == [tmp_path / "a.txt"] and identity(tmp_path) == first
    forget_files()
    assert local_files(tmp_path) == [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert identity(tmp_path) != first


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


def test_an_identity_is_of_names_and_sizes_wherever_they_are(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "a.txt").write_text("one")
    assert identity(tmp_path / "here") == identity(tmp_path / "there")
    assert str(identity(tmp_path / "here")).startswith("1 files of 3 bytes, ")
    assert identity(tmp_path / "here" / "sub") != identity(tmp_path / "here")
    assert identity(tmp_path / "here" / "sub") == identity(tmp_path / "here" / "sub" / "a.txt")


def test_other_datasets_are_what_their_name_says() -> None:
    assert text_identity("c4", "/some/where") is None
    assert text_identity("local", None) is None
