"""Whether text that has changed lies behind the place that a checkpoint has reached in it."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from lighthouse.titan.checkpoint.reading import load_state, plain
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.data.moved import SOURCES, reads_alike, weights_and_columns
from lighthouse.titan.data.packing import places_in
from lighthouse.titan.data.rows import BadRow, Block, read_rows
from lighthouse.titan.data.text_files import compression_of, kind_of, root_of
from lighthouse.titan.data.text_identity import Mark, SourceText, is_grown

NOT_KNOWN = "and it is not known how far it was read"


@dataclass(frozen=True)
class _Reached:
    """How far the first pass over some files has come.

    Attributes:
        file: number of the one that is read.
        texts: from its start on, in it and those behind, that what was read depends on.
    """

    file: int
    texts: int


def why_read(checkpoint: Path, saved: RunRecord, now: RunRecord) -> list[str]:
    """Of each source, why what differs may have been read already; "" where it is still to be.

    That is known of local text in the order of files, in its first pass, by any number of ranks of
    one loader worker each.

    Args:
        saved: the checkpoint's record.
        now: the run's, with as many sources.
    """
    assert saved.text is not None and now.text is not None
    data, ranks = now.data, now.data_parallel_degree
    others = data.keys() & saved.data.keys() - {SOURCES}
    why = NOT_KNOWN
    alike = all(reads_alike(saved.data, data, key) for key in others)
    if saved.data_parallel_degree != ranks or not alike:
        why = "and it is read in another way"
    elif data["training.dataset_order"] != "files":
        why = "which puts all of the text into another shuffled order"
    elif data["training.dataloader.num_workers"] <= 1 and _is_local(data):
        try:
            places = _places_of(checkpoint, ranks)
            columns = [column for _, column in weights_and_columns(now)]
            sources = zip(saved.text, now.text, columns, strict=True)
            listed = bool(data[SOURCES])
            return [_why(places, n, listed, *source) for n, source in enumerate(sources)]
        except (ValueError, KeyError, CheckpointException):
            pass  # Damaged, which is said when it is loaded, or of another loader.
    return [why] * len(now.text)


def _why(
    places: list[dict[str, Any]],
    number: int,
    listed: bool,
    was: SourceText,
    text: SourceText,
    column: str,
) -> str:
    """As `why_read`, of a source by its number.

    Args:
        places: of the ranks.
        listed: whether there are several sources, or could be.
    """
    if was.same(text):
        return ""
    ranks = len(places)
    # As the datasets library deals them: whole files where all ranks get as many, and else rows.
    by_rows = len(was.files) % ranks > 0
    if by_rows != (len(text.files) % ranks > 0):
        return f"so that each of {ranks} data-parallel ranks gets another share of all files"
    reached = []
    for rank, place in enumerate(places):
        epoch, at = place["epoch"], place["source"]
        if listed:
            epoch, at, _ = at[number] if at else (0, None, 0)
        if epoch > 0:
            return "and a whole pass over it is done"
        reached.append(_reached(at, rank if by_rows else None))
    if by_rows:
        # All ranks read the same files. Who is furthest depends on all that the others do.
        reached, ranks = [max(reached, key=lambda place: (place.file, place.texts))], 1
    behind = all(
        _is_behind(place, was, text, slice(rank, None, ranks), by_rows, column)
        for rank, place in enumerate(reached)
    )
    return "" if behind else "some of which was read"


def _is_local(data: dict[str, Any]) -> bool:
    return bool(data["training.dataset"].lower() == "local")


def _places_of(checkpoint: Path, ranks: int) -> list[dict[str, Any]]:
    """What the `PackedTextDataset` of each rank says of itself."""
    names = [f"dp_rank_{rank}" for rank in range(ranks)]
    states: dict[str, Any] = {"dataloader": dict.fromkeys(names, b"")}
    load_state(states, checkpoint, no_dist=True)
    found = []
    for name in names:
        state = plain(states["dataloader"][name], "the loader's place in the data")
        (place,) = places_in(state)
        found.append(place)
    return found


def _reached(at: Any, turn: int | None) -> _Reached:
    """What the datasets library's place means.

    Args:
        turn: of a rank, where ranks take rows in turn.
    """
    # It has the number of a file and that of a row, behind which a text may have been begun.
    inner = at["examples_iterable"] if at else {"shard_idx": 0, "shard_example_idx": 0}
    if at and turn is not None:
        inner = inner["examples_iterable"]
    return _Reached(inner["shard_idx"], inner["shard_example_idx"] + 1 + (turn or 0))


def _is_behind(
    place: _Reached, was: SourceText, text: SourceText, share: slice, by_rows: bool, column: str
) -> bool:
    """Whether what a place depends on stands in the text as it was.

    Args:
        share: files of the rank.
    """
    before, after = list(was.files.items())[share], list(text.files.items())[share]
    if before[: place.file] != after[: place.file]:
        return False
    # Of rows in turn the last turn may have been short, and would be filled up.
    if before == after[: len(before)] and not by_rows:
        return True
    root, missing = root_of(Path(text.name)), place.texts
    pairs = zip(before[place.file :], after[place.file :], strict=False)
    for (name, mark), (new_name, new_mark) in pairs:
        if missing == 0:
            break
        whole = (name, mark) == (new_name, new_mark)
        if not whole and not (name == new_name and _has_more_lines(root / name, mark)):
            return False
        missing -= _count(root / name, column, None if whole else mark[0], missing)
        if not whole:
            break
    return missing == 0


def _has_more_lines(file: Path, was: Mark) -> bool:
    is_lines = kind_of(file) in (".jsonl", ".json") and not compression_of(file)
    return is_lines and is_grown(file, was)


def _count(file: Path, column: str, end: int | None, most: int) -> int:
    """Texts of a file, up to so many."""
    rows = read_rows(Block(file, end=end), column, lambda: None)
    texts = (row for row, _ in rows if not isinstance(row, BadRow))
    return sum(1 for _ in islice(texts, most))
