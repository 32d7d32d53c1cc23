"""Which text a job names: listed once, and known again by names and sizes."""

from pathlib import Path

from lighthouse.titan.data.text_files import forget_files, local_files, text_identity


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
