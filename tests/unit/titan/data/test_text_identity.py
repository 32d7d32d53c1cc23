"""Text is known again wherever it lies, and what has changed in it is named."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from lighthouse.titan.data.text_files import forget_files
from lighthouse.titan.data.text_identity import SAMPLE_BYTES, SAMPLES, SourceText, training_text
from tests.support.text import config_for, write_txt


def text_of(path: Path, dataset: str = "local") -> SourceText:
    forget_files()
    (text,) = training_text(config_for(dataset, path))
    return text


def test_it_is_of_names_and_contents_wherever_they_are(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "a.txt").write_text("one")
    here, there = text_of(tmp_path / "here"), text_of(tmp_path / "there")
    assert here.same(there) and str(here) == str(there)
    assert str(here).startswith("1 files of 3 bytes, ")
    assert not here.same(text_of(tmp_path / "here" / "sub"))
    file = tmp_path / "here" / "sub" / "a.txt"
    assert text_of(file).same(text_of(tmp_path / "here" / "sub"))
    file.write_text("eno")
    assert not text_of(tmp_path / "here").same(there)


@pytest.mark.parametrize("at", ["start", "middle", "end"])
def test_an_edit_of_a_sampled_place_is_seen(tmp_path: Path, at: str) -> None:
    size = 4 * SAMPLES * SAMPLE_BYTES
    data = bytearray(size)
    (tmp_path / "a.txt").write_bytes(data)
    before = text_of(tmp_path)
    places = {"start": 0, "middle": 3 * (size - SAMPLE_BYTES) // (SAMPLES - 1), "end": size - 1}
    data[places[at]] = 1
    (tmp_path / "a.txt").write_bytes(data)
    assert text_of(tmp_path).difference(before) == "changed: a.txt"


def test_an_edit_between_samples_is_told_by_its_time(tmp_path: Path) -> None:
    """Of a small file all is compared, and a time says nothing."""
    for name, size in (("large.txt", 4 * SAMPLES * SAMPLE_BYTES), ("small.txt", 99)):
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, ns=(5, 5))
    before = SourceText.of_record(json.loads(json.dumps(asdict(text_of(tmp_path)))))
    assert text_of(tmp_path).assumed(before) == ""
    with (tmp_path / "large.txt").open("r+b") as file:
        file.seek(2 * SAMPLE_BYTES)
        file.write(b"x")
    os.utime(tmp_path / "small.txt", ns=(6, 6))
    after = text_of(tmp_path)
    assert after.same(before) and after.assumed(before) == "large.txt"
    assert after.assumed(SourceText(before.name, before.files)) == ""  # an older record


def test_what_has_become_of_files(tmp_path: Path) -> None:
    before = text_of(write_txt(tmp_path, ["a", "b", "c", "d", "e"]))
    assert text_of(tmp_path).difference(before) == ""
    (tmp_path / "0009.txt").write_text("more")
    assert text_of(tmp_path).difference(before) == "new: 0009.txt"
    (tmp_path / "0000.txt").unlink()
    for number in range(1, 5):
        (tmp_path / f"000{number}.txt").write_text("other")
    after = text_of(tmp_path)
    changed = "changed: 0001.txt, 0002.txt, 0003.txt and 1 more"
    assert after.difference(before) == f"{changed}; new: 0009.txt; gone: 0000.txt"


def test_upstreams_datasets_are_their_files_or_their_name(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("one")
    (tmp_path / "other.csv").write_text("one")
    assert list(text_of(tmp_path, "c4").files) == ["data.json", "other.csv"]
    (named,) = training_text(config_for("c4", Path("/not/there")))
    assert named == SourceText("/not/there")
    assert training_text(config_for("c4", None)) == [SourceText("c4")]
    (python,) = training_text(config_for("python", None))
    assert python.name.startswith("Python 3.")
