"""A loader goes on from a place in text that has changed, at a document's border."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torchtitan.config import JobConfig

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.data.moved import moved_between
from lighthouse.titan.data.text_files import forget_files
from lighthouse.titan.data.tokenizer import ByteTokenizer
from tests.support.text import BOS, EOS, config_for, loader, rows, write_jsonl

DOCUMENTS = [f"{number:03}" + "x" * 40 for number in range(60)]


def documents(sequences: list[list[int]]) -> list[str]:
    """What stands in sequences of whole documents, by the numbers at their beginnings."""
    tokens = [token for row in sequences for token in row[:-1]]
    begins = [i for i, token in enumerate(tokens[:-4]) if token == BOS]
    return [ByteTokenizer().decode(tokens[i + 1 : i + 4]) for i in begins]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.mkdir()
    write_jsonl(path / "b.jsonl", DOCUMENTS[:30])
    write_jsonl(path / "d.jsonl", DOCUMENTS[30:])
    return path


def resumed(was: RunRecord, state: Any, config: JobConfig) -> Any:
    """The loader of a run whose text changed."""
    forget_files()
    sources = moved_between(was, RunRecord.of(config, 1))
    assert sources is not None
    again = loader(config)
    again.go_on_from(sources)
    again.load_state_dict(state)
    return again


def read(config: JobConfig, count: int) -> tuple[RunRecord, list[str], Any]:
    first = loader(config)
    got = documents(rows(islice(first, count)))
    return RunRecord.of(config, 1), got, first.state_dict()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_behind_the_place_is_mended(folder: Path, workers: int) -> None:
    config = config_for("local", folder)
    config.training.dataloader.num_workers = workers
    was, before, state = read(config, 10)
    mended = [*DOCUMENTS[:20], "new" + "x" * 40, *DOCUMENTS[21:30]]
    write_jsonl(folder / "b.jsonl", mended)
    again = rows(islice(resumed(was, state, config), 20))
    assert again[0][0] == BOS
    # What was left of the document at hand is passed over; none is read twice.
    assert before[-1] == "011" and documents(again)[:9] == [
        *(f"0{n}" for n in range(12, 20)),
        "new",
    ]


def test_files_before_and_behind(folder: Path) -> None:
    config = config_for("local", folder)
    was, before, state = read(config, 10)
    write_jsonl(folder / "a.jsonl", ["not"] * 3)
    write_jsonl(folder / "c.jsonl", ["see" + "x" * 40] * 5)
    got = documents(rows(islice(resumed(was, state, config), 20)))
    assert before[-1] == "011" and got[0] == "012" and got.index("see") == 18


def test_the_file_at_hand_is_gone(folder: Path) -> None:
    config = config_for("local", folder)
    was, _, state = read(config, 10)
    (folder / "b.jsonl").unlink()
    assert documents(rows(islice(resumed(was, state, config), 5)))[:2] == ["030", "031"]


def test_files_added_behind_are_read_in_their_turn(folder: Path) -> None:
    """For which no word is needed: it is as if they had been there."""
    config = config_for("local", folder)
    _, _, state = read(config, 10)
    write_jsonl(folder / "e.jsonl", ["end" + "x" * 40] * 9)
    forget_files()
    expected = rows(islice(loader(config), 60))
    again = loader(config)
    again.load_state_dict(state)
    assert rows(islice(again, 50)) == expected[10:]


def test_shuffled_text_begins_another_epoch(folder: Path) -> None:
    config = config_for("local", folder, dataset_order="shuffled")
    was, _, state = read(config, 10)
    write_jsonl(folder / "e.jsonl", ["end" + "x" * 40] * 9)
    got = documents(rows(islice(resumed(was, state, config), 70)))
    assert sorted(got[:69]) == sorted([*(text[:3] for text in DOCUMENTS), *["end"] * 9])


def test_weights_change_and_a_source_is_new(folder: Path, tmp_path: Path) -> None:
    config = config_for("local", None)
    config.training.sources = [
        {"path": str(folder / "b.jsonl"), "weight": 1.0},
        {"path": str(folder / "d.jsonl"), "weight": 1.0},
    ]
    was, before, state = read(config, 10)
    write_jsonl(tmp_path / "other.jsonl", ["oth" + "x" * 40] * 50)
    config.training.sources = [
        {"path": str(tmp_path / "other.jsonl"), "weight": 2.0},
        {"path": str(folder / "d.jsonl"), "weight": 1.0},
        {"path": str(folder / "b.jsonl"), "weight": 1.0},
    ]
    got = documents(rows(islice(resumed(was, state, config), 30)))
    seen = {text: before.count(text) + got.count(text) for text in {*before, *got} - {"oth"}}
    assert set(seen.values()) == {1}
    assert abs(got.count("oth") - len(got) / 2) <= 1


def test_other_shares_have_no_place(folder: Path) -> None:
    config = config_for("local", folder)
    was = RunRecord.of(config, 1)
    assert moved_between(was, RunRecord.of(config, 2)) is None
    config.training.dataset_order = "shuffled"
    shuffled = RunRecord.of(config, 1)
    assert moved_between(was, shuffled) is None
    config.training.dataset_seed = 1
    assert moved_between(shuffled, RunRecord.of(config, 1)) is None


def test_of_the_next_sequence_nothing_is_an_old_token(folder: Path) -> None:
    config = config_for("local", folder)
    was, _, state = read(config, 1)
    config.training.task_rate = 0.5
    first = rows(islice(resumed(was, state, config), 1))[0]
    assert first[0] == BOS and EOS in first
