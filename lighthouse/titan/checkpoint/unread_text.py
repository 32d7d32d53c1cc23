"""Whether text that has changed lies behind the place that a checkpoint has reached in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from lighthouse.titan.checkpoint.reading import load_state, plain
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.data.moved import SOURCES, weights_and_columns
from lighthouse.titan.data.rows import BadRow, Block, read_rows
from lighthouse.titan.data.text_files import compression_of, kind_of, root_of
from lighthouse.titan.data.text_identity import SourceText, is_grown

_OF_PLACE = {"epoch", "source", "offset", "last_token"}
"""Keys of what `PackedTextDataset` says of itself."""


@dataclass(frozen=True)
class _Reached:
    """How far the first pass over a source has come.

    Attributes:
        file: number of the one that is read.
        rows: texts of it that have been used up.
        inside: whether a part of the next text may have been used too.
    """

    file: int
    rows: int
    inside: bool


def still_unread(checkpoint: Path, saved: RunRecord, now: RunRecord) -> list[bool]:
    """Of each source, whether all that differs between its texts is still to be read.

    Known of text in the order of files that one rank and worker reads; of another the answer is no.

    Args:
        saved: the checkpoint's record.
        now: the run's, with as many sources.
    """
    assert saved.text is not None and now.text is not None
    no = [False] * len(now.text)
    ranks = saved.data_parallel_degree, now.data_parallel_degree
    data = now.data
    if ranks != (1, 1) or data["training.dataloader.num_workers"] > 1:
        return no
    if data["training.dataset_order"] != "files" or data["training.dataset"].lower() != "local":
        return no
    if any(saved.data[key] != data[key] for key in data.keys() & saved.data.keys() - {SOURCES}):
        return no
    try:
        reached = _reached(checkpoint, len(no), listed=bool(data[SOURCES]))
    except (ValueError, KeyError, CheckpointException):
        # Damaged, which is said when it is loaded, or of another loader.
        return no
    columns = [column for _, column in weights_and_columns(now)]
    return [
        place is not None and _is_behind(place, was, text, column)
        for place, was, text, column in zip(reached, saved.text, now.text, columns, strict=True)
    ]


def _reached(checkpoint: Path, sources: int, listed: bool) -> list[_Reached | None]:
    """The place in each source; None where it is not in its first pass."""
    states: dict[str, Any] = {"dataloader": {"dp_rank_0": b""}}
    load_state(states, checkpoint, no_dist=True)
    state = plain(states["dataloader"]["dp_rank_0"], "the loader's place in the data")
    (place,) = _places(state)
    inside = place["offset"] > 0
    of_sources = place["source"] or [(0, None, 0)] * sources
    if not listed:
        of_sources = [(place["epoch"], place["source"], 0)]
    found: list[_Reached | None] = []
    for epoch, at, _ in of_sources:
        if epoch > 0:
            found.append(None)
            continue
        # The datasets library has a place as the number of a file and that of a row.
        inner = at["examples_iterable"] if at else {"shard_idx": 0, "shard_example_idx": 0}
        found.append(_Reached(inner["shard_idx"], inner["shard_example_idx"], inside))
    return found


def _places(state: Any) -> Iterator[dict[str, Any]]:
    """Wherever torchdata keeps them, by its number of workers."""
    if isinstance(state, dict):
        if state.keys() >= _OF_PLACE:
            yield state
        else:
            for value in state.values():
                yield from _places(value)


def _is_behind(place: _Reached, was: SourceText, text: SourceText, column: str) -> bool:
    before, after = list(was.files.items()), list(text.files.items())
    root = root_of(Path(text.name))

    def same(count: int) -> bool:
        return before[:count] == after[:count]

    def has_texts(number: int, more_than: int, end: int | None = None) -> bool:
        rows = read_rows(Block(root / after[number][0], end=end), column, lambda: None)
        texts = (row for row, _ in rows if not isinstance(row, BadRow))
        return any(count > more_than for count, _ in enumerate(texts, start=1))

    at = place.file
    if not same(at):
        return False
    if not same(at + 1):
        if at >= min(len(before), len(after)) or before[at][0] != after[at][0]:
            return False
        mark, file = before[at][1], root / after[at][0]
        if kind_of(file) not in (".jsonl", ".json") or compression_of(file):
            return False
        if not is_grown(file, mark):
            return False
        return not place.inside or has_texts(at, place.rows, end=mark[0])
    if not place.inside or has_texts(at, place.rows):
        return True
    # What is begun is the first text of a file behind.
    for number in range(at + 1, len(before)):
        if not same(number + 1):
            return False
        if has_texts(number, 0):
            return True
    return True
