"""Text that changed behind the place that a checkpoint has reached, and before it."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.unread_text import still_unread
from lighthouse.titan.data.text_files import forget_files
from tests.support.text import config_for, loader, rows, texts, write_jsonl
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


def checkpoint_after(folder: Path, config: Any, count: int) -> list[list[int]]:
    """Write one that is as far, and return what was read."""
    reading = loader(config)
    found = rows(islice(reading, count))
    dcp.save({"dataloader": reading.state_dict()}, checkpoint_id=folder, no_dist=True)
    return found


def unread(checkpoint: Path, was: Any, now: Any, ranks: int = 1) -> bool:
    (found,) = still_unread(checkpoint, RunRecord.of(was, ranks), RunRecord.of(now, ranks))
    return found


@pytest.mark.parametrize(
    ("case", "workers"),
    [*((case, 0) for case in CHANGES), ("lines of the last file", 1), ("a file before", 1)],
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
        assert not found[count] or rows(islice(loader(now), count)) == read
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
    assert unread(tmp_path / "first", was, now)
    assert not unread(tmp_path / "first", was, now, ranks=2)
    checkpoint_after(tmp_path / "second", was, 40)  # in a later epoch
    assert not unread(tmp_path / "second", was, now)
    forget_files()
    was.training.dataset_order = now.training.dataset_order = "shuffled"
    checkpoint_after(tmp_path / "shuffled", was, BEGUN)
    assert not unread(tmp_path / "shuffled", was, now)
