"""Whether a checkpoint's place in the text is one in the run's text too."""

from collections.abc import Iterator, Sequence
from typing import Any

from lighthouse.titan.checkpoint.change import NOT_SET, Change
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.unread_text import NOT_KNOWN
from lighthouse.titan.data.moved import SOURCES, reads_alike

_BACK = "put the text back"


def text_changes(saved: RunRecord, now: RunRecord, why_read: Sequence[str]) -> Iterator[Change]:
    """What differs of the text, of who reads it, and of its tokenizer.

    Args:
        why_read: as :func:`unread_text.why_read`; empty: not known.
    """
    was, is_now = saved.data_parallel_degree, now.data_parallel_degree
    if was != is_now:
        back = f"read by {was} data-parallel rank{'s' if was > 1 else ''}"
        yield Change("data-parallel degree", was, is_now, "data", back=back)
    yield from _sources(saved.data[SOURCES], now.data[SOURCES])
    for key, value in saved.data.items():
        if key not in now.data:
            yield Change(key, value, NOT_SET, "data")
        elif key != SOURCES and not reads_alike(saved.data, now.data, key):
            yield Change(key, value, now.data[key], "data")
    yield from _text(saved, now, why_read)
    yield from _tokenizer(saved, now)


def assumed_unchanged(saved: RunRecord, now: RunRecord) -> Iterator[str]:
    """A sentence for each source with files that were written since, as far as can be seen."""
    for was, text in zip(saved.text or [], now.text or [], strict=False):
        if names := text.assumed(was):
            yield (
                f"{text.name}: of another time of change than at the checkpoint, and taken as "
                f"unchanged by size and samples: {names}"
            )


def _sources(was: list[Any], is_now: list[Any]) -> Iterator[Change]:
    """Shares and columns of sources, of which there are as many; their texts are compared alone."""
    if len(was) != len(is_now):
        if not (was and is_now):
            yield _number(was, is_now)
        return
    totals = [sum(weight for weight, _ in sources) for sources in (was, is_now)]
    pairs = list(zip(was, is_now, strict=True))
    same_shares = all(a[0] / totals[0] == b[0] / totals[1] for a, b in pairs)
    for number, (before, after) in enumerate(pairs, start=1):
        if before[0] != after[0] and not same_shares:
            yield Change(f"training.sources.{number}.weight", before[0], after[0], "data")
        if before[1] != after[1]:
            yield Change(f"training.sources.{number}.text", before[1], after[1], "data")


def _number(was: Sequence[Any], is_now: Sequence[Any]) -> Change:
    back = "name the sources that it had"
    return Change("training.sources", len(was), len(is_now), "data", "in number", back)


def _text(saved: RunRecord, now: RunRecord, why_read: Sequence[str]) -> Iterator[Change]:
    if saved.text is None or now.text is None:
        if saved.local_text and now.local_text and saved.local_text != now.local_text:
            was_text, is_text = saved.local_text, now.local_text
            yield Change("training.dataset_path", was_text, is_text, "data", back=_BACK)
        return
    listed = bool(now.data[SOURCES])
    if len(saved.text) != len(now.text):
        if listed and saved.data[SOURCES]:  # else `_sources` has said it, or the dataset differs
            yield _number(saved.text, now.text)
        return
    for number, (was, text) in enumerate(zip(saved.text, now.text, strict=True), start=1):
        if not was.same(text):
            key = f"training.sources.{number}.path" if listed else "training.dataset_path"
            why = why_read[number - 1] if why_read else NOT_KNOWN
            values = was.described(), text.described()
            note = ", ".join(filter(None, (text.difference(was), why)))
            yield Change(key, *values, "data" if why else None, note, _BACK)


def _tokenizer(saved: RunRecord, now: RunRecord) -> Iterator[Change]:
    if saved.tokenizer is not None and saved.tokenizer != now.tokenizer:
        back = "use the tokenizer that it had"
        yield Change("model.tokenizer", saved.tokenizer, now.tokenizer, "tokenizer", back=back)
