"""Text that changed behind the place that a checkpoint has reached, and before it."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.unread_text import why_read
from lighthouse.titan.data.text_files import forget_files
from tests.support.text import config_for, loader, rows, texts, write_jsonl
from tests.support.tiers import tiers
from tests.unit.titan.data.test_rows import lines

DOCUMENTS = texts(24)
BEGUN, LATER = 2, 20
"""Sequences that end in the first of two files, which has 13 and a half, and in the second."""


def _append(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(lines(["more"]))

    return change


CHANGES: dict[str, tuple[Callable[[Path], object], bool, bool]] = {
    # What changes, and whether it is unread after BEGUN and after LATER sequences.
    "lines of the last file": (_append("d.jsonl"), True, True),
    "lines of the first file": (_append("b.jsonl"), True, False),
    "a file between": (lambda f: write_jsonl(f / "c.jsonl", ["more"]), True, False),
    "a file before": (lambda f: write_jsonl(f / "a.jsonl", ["more"]), False, False),
    "a file behind": (lambda f: write_jsonl(f / "e.jsonl", ["more"]), True, True),
    "another last file": (lambda f: write_jsonl(f / "d.jsonl", ["more"]), True, False),
    "no last file": (lambda f: (f / "d.jsonl").unlink(), True, False),
    "another name": (lambda f: (f / "d.jsonl").rename(f / "z.jsonl"), True, False),
    "another first file": (lambda f: write_jsonl(f / "b.jsonl", DOCUMENTS[1:]), False, False),
    "a line that was not ended": (
        lambda f: (f / "d.jsonl").write_bytes((f / "d.jsonl").read_bytes()[:-1] + b" \n"),
        True,
        False,
    ),
}


def write(folder: Path) -> Path:
    folder.mkdir()
    write_jsonl(folder / "b.jsonl", DOCUMENTS[:12])
    write_jsonl(folder / "d.jsonl", DOCUMENTS[12:])
    return folder


def checkpoint_after(folder: Path, config: Any, count: int, ranks: int = 1) -> list[Any]:
    """Write one in which each rank is as far, and return what each has read."""
    found, states = [], {}
    for rank in range(ranks):
        reading = loader(config, rank, ranks)
        found.append(rows(islice(reading, count)))
        states |= reading.state_dict()
    dcp.save({"dataloader": states}, checkpoint_id=folder, no_dist=True)
    return found


def why(checkpoint: Path, was: Any, now: Any, ranks: int = 1) -> str:
    forget_files()
    (found,) = why_read(checkpoint, RunRecord.of(was, ranks), RunRecord.of(now, ranks))
    return found


def unread(checkpoint: Path, was: Any, now: Any) -> bool:
    return not why(checkpoint, was, now)


@pytest.mark.parametrize(
    ("case", "workers"),
    [
        *((case, 0) for case in CHANGES),
        pytest.param("lines of the last file", 1, marks=pytest.mark.thorough),
        ("a file before", 1),
    ],
)
def test_no_step_taken_is_another_one(tmp_path: Path, case: str, workers: int) -> None:
    change, begun, later = CHANGES[case]
    was = config_for("local", write(tmp_path / "was"))
    changed = write(tmp_path / "now")
    change(changed)
    now = config_for("local", changed)
    was.training.dataloader.num_workers = now.training.dataloader.num_workers = workers
    found = {}
    for count in (BEGUN, 12, 13, 14, LATER):
        checkpoint = tmp_path / str(count)
        read = checkpoint_after(checkpoint, was, count)
        found[count] = unread(checkpoint, was, now)
        assert not found[count] or [rows(islice(loader(now), count))] == read
    assert (found[BEGUN], found[LATER]) == (begun, later)


def test_what_is_begun_may_be_of_the_next_file(tmp_path: Path) -> None:
    """A sequence that takes a part of its first text."""
    was = config_for("local", tmp_path / "was", seq_len=20)
    now = config_for("local", tmp_path / "now", seq_len=20)
    for folder, second in ((tmp_path / "was", "y" * 90), (tmp_path / "now", "z" * 90)):
        folder.mkdir()
        write_jsonl(folder / "b.jsonl", ["x" * 28])
        write_jsonl(folder / "c.jsonl", [])
        write_jsonl(folder / "d.jsonl", [second])
    for count in (1, 2):
        checkpoint_after(tmp_path / str(count), was, count)
        assert unread(tmp_path / str(count), was, now) == (count == 1)


def test_where_it_is_not_known(tmp_path: Path) -> None:
    was = config_for("local", write(tmp_path / "was"))
    now = config_for("local", shutil.copytree(tmp_path / "was", tmp_path / "now"))
    _append("d.jsonl")(tmp_path / "now")
    checkpoint_after(tmp_path / "first", was, BEGUN)
    assert why(tmp_path / "first", was, now) == ""
    assert "not known" in why(tmp_path / "first", was, now, ranks=2)  # whose places there are not
    checkpoint_after(tmp_path / "second", was, 40)
    assert "a whole pass over it is done" in why(tmp_path / "second", was, now)
    for config in (was, now):
        config.training.dataloader.num_workers = 2
    checkpoint_after(tmp_path / "workers", was, BEGUN)
    assert "not known" in why(tmp_path / "workers", was, now)
    for config in (was, now):
        config.training.dataloader.num_workers, config.training.dataset_order = 0, "shuffled"
    checkpoint_after(tmp_path / "shuffled", was, BEGUN)
    assert "another shuffled order" in why(tmp_path / "shuffled", was, now)


def _files(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        write_jsonl(folder / f"{number}.jsonl", texts(25)[number * 5 : number * 5 + 5])
    return folder


ADDED: dict[str, tuple[int, Callable[[Path], object], int]] = {
    # Files for two ranks, what changes, and after how many sequences of each some of it is read. A
    # pass over four files ends in the twelfth of the second rank, over five in its seventeenth.
    "files for each": (4, lambda f: [write_jsonl(f / f"{n}.jsonl", ["more"]) for n in "89"], 12),
    "other shares": (4, lambda f: write_jsonl(f / "8.jsonl", ["more"]), 0),
    "the last file of one": (4, lambda f: write_jsonl(f / "3.jsonl", ["other"] * 9), 4),
    "lines of the last file": (4, _append("3.jsonl"), 12),
    "rows in turn": (5, lambda f: [write_jsonl(f / f"{n}.jsonl", ["more"]) for n in "89"], 17),
    "rows of the last file": (5, lambda f: write_jsonl(f / "4.jsonl", ["other"] * 9), 14),
    "lines in turn": (5, _append("4.jsonl"), 17),
    "the second file": (5, lambda f: write_jsonl(f / "1.jsonl", ["other"] * 9), 3),
}


@pytest.mark.parametrize(
    "case", tiers(ADDED, "rows in turn", "lines in turn", "the last file of one", "other shares")
)
def test_of_several_ranks_each_has_a_place(tmp_path: Path, case: str) -> None:
    """What is said to be unread gives what the new text gives from its first token on."""
    count, change, read_from = ADDED[case]
    was, now = (config_for("local", _files(tmp_path / name, count)) for name in ("was", "now"))
    change(tmp_path / "now")
    answers = []
    for done in range(1, 20):
        checkpoint = tmp_path / f"at-{done}"
        read = checkpoint_after(checkpoint, was, done, ranks=2)
        forget_files()
        answers.append(why(checkpoint, was, now, ranks=2) == "")
        if answers[-1]:
            expected = [rows(islice(loader(now, rank, 2), 30)) for rank in range(2)]
            assert read == [found[:done] for found in expected]
            for rank, found in enumerate(expected):
                resumed = loader(now, rank, 2)
                states: dict[str, Any] = {"dataloader": {f"dp_rank_{rank}": b""}}
                dcp.load(states, checkpoint_id=checkpoint, no_dist=True)
                resumed.load_state_dict(states["dataloader"] | {"world_size": 2})
                assert rows(islice(resumed, 30 - done)) == found[done:]
    assert answers == [done < read_from for done in range(1, 20)]


def test_each_source_has_a_place(tmp_path: Path) -> None:
    was, now = config_for("local", None), config_for("local", None)
    for name, config in (("was", was), ("now", now)):
        (tmp_path / name).mkdir()
        paths = [_files(tmp_path / name / source, 4) for source in "ab"]
        config.training.sources = [{"path": str(path)} for path in paths]
    write_jsonl(tmp_path / "now" / "a" / "0.jsonl", ["other"])
    for number in "89":
        write_jsonl(tmp_path / "now" / "b" / f"{number}.jsonl", ["more"])
    checkpoint_after(tmp_path / "first", was, BEGUN, ranks=2)
    records = RunRecord.of(was, 2), RunRecord.of(now, 2)
    assert why_read(tmp_path / "first", *records) == ["some of which was read", ""]
