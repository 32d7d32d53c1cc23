"""Going on from a place in other text, or under another tokenizer, at a document's border."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from lighthouse.titan.data.text_identity import SourceText, same_texts

if TYPE_CHECKING:
    from lighthouse.titan.checkpoint.record import RunRecord
    from lighthouse.titan.checkpoint.resume import Resume

SOURCES = "weights and texts of training.sources"
"""A key of ``RunRecord.data``."""


@dataclass(frozen=True)
class Moved:
    """A source as it was when a place in it was written down, and as it is.

    Attributes:
        was, now: the text.
        column: whether its texts are taken from another column.
        one_share: whether a single rank and worker reads all of it.
        weight: that it had.
    """

    was: SourceText
    now: SourceText
    column: bool
    one_share: bool
    weight: float

    @property
    def elsewhere(self) -> bool:
        """Whether a place means other text now."""
        return self.column or not self.now.same(self.was)

    def ordered(self, place: Any) -> tuple[Any, bool]:
        """A place of documents in the order of their files: in the file that it was in, or behind.

        Where files came or went and several ranks or workers share them, each has other ones now,
        and begins with its first.

        Returns:
            The place, and whether the document behind it is the one that it was.
        """
        before, names = list(self.was.files), list(self.now.files)
        if before == names:
            kept = bool(names) or self.now.same(self.was)
            return (place, True) if kept else (None, False)
        if not (self.one_share and before and names):
            return None, False
        if place is None:
            return None, before[0] == names[0]
        # The datasets library has a place as the number of a file and that of a row.
        inner = place["examples_iterable"]
        name = before[inner["shard_idx"]]
        kept = name in self.now.files
        if kept:
            found = {"shard_idx": names.index(name)}
        else:
            behind = (i for i, n in enumerate(names) if PurePosixPath(n) > PurePosixPath(name))
            found = {"shard_idx": next(behind, len(names)), "shard_example_idx": 0}
        return {**place, "examples_iterable": {**inner, **found}}, kept


_WORKERS = "training.dataloader.num_workers"
# Where one of these is another one, a place has another form or order, or ranks other shares.
OF_SHARES = ("training.dataset", "training.dataset_order", "training.dataset_seed", _WORKERS)


def reads_alike(was: Mapping[str, Any], now: Mapping[str, Any], key: str) -> bool:
    """Whether a key of ``RunRecord.data`` says the same in two of them.

    One loader worker reads what none does, and goes on from its place; but for upstream's loader.
    """
    if key == _WORKERS and now["training.dataset"].lower() in ("local", "python"):
        return max(1, was[key]) == max(1, now[key])
    return bool(was[key] == now[key])


def moved_between(was: "RunRecord", now: "RunRecord") -> list[list[Moved]] | None:
    """For each source of a run, what has become of each one that a checkpoint had.

    Returns:
        None where its place can't be gone on from, so that the text begins anew.
    """
    if was.text is None or now.text is None or was.data_parallel_degree != now.data_parallel_degree:
        return None
    if not all(reads_alike(was.data, now.data, key) for key in OF_SHARES):
        return None
    if (was.data[SOURCES] == []) != (now.data[SOURCES] == []):
        return None
    one_share = now.data_parallel_degree == 1 and now.data[_WORKERS] <= 1
    return [
        [
            Moved(old, text, old_column != column, one_share, weight)
            for old, (weight, old_column) in zip(was.text, weights_and_columns(was), strict=True)
        ]
        for text, (_, column) in zip(now.text, weights_and_columns(now), strict=True)
    ]


def weights_and_columns(record: "RunRecord") -> list[tuple[float, str]]:
    """Of each source; one without ``training.sources``."""
    listed = [(weight, column) for weight, column in record.data[SOURCES]]
    return listed or [(1.0, record.data["training.dataset_text"])]


def go_on_reading(
    resume: "Resume", loader: Any, checkpointer: Any, say: Callable[[str], None]
) -> None:
    """Before a checkpoint is loaded, settle what becomes of its place in the data.

    Args:
        loader: the run's.
        checkpointer: torchtitan's, which leaves the place out where it can't be gone on from.
        say: logs a sentence.
    """
    accepted = {change.name for change in resume.changes} & {"data", "tokenizer"}
    if resume.before is None or not accepted or "dataloader" in checkpointer.exclude_from_loading:
        return
    sources = moved_between(resume.before, resume.record)
    if sources is None or not getattr(loader, "moves", False):
        checkpointer.exclude_from_loading = [*checkpointer.exclude_from_loading, "dataloader"]
        say("The text begins anew: its place in the checkpoint is of another order, ranks or files")
    else:
        loader.go_on_from(sources)
        changed = not same_texts(resume.before.text or [], resume.record.text or [])
        anew = ""
        if changed and resume.record.data["training.dataset_order"] == "shuffled":
            anew = "; what is shuffled and has changed, with its next epoch"
        elif changed and not all(moved.one_share for moves in sources for moved in moves):
            anew = "; what ranks or workers share and has other files, from its first file on"
        say(f"The text goes on with the next document{anew}")
