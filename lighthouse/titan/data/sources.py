"""Streams of documents, read through the ``datasets`` library.

A source is upstream's registry (C4), a local folder or file ("local"), or the Python installation's
own standard library ("python").
"""

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
from torchtitan.hf_datasets import text_datasets as upstream
from torchtitan.tools.logging import logger

from lighthouse.refusal import Refusal
from lighthouse.titan.data.rows import BadRow, Block, check_file, read_rows
from lighthouse.titan.data.tally import MENDED, SKIPPED, Tally
from lighthouse.titan.data.text_files import (
    READ,
    check_path,
    check_text,
    compression_of,
    kind_of,
    local_files,
    unread_files,
)

PIECE_BYTES = 4096


def python_pieces() -> list[tuple[Path, int]]:
    """Pieces of the standard library's sources, as (file, number), in an order that mixes them.

    Pieces have about `PIECE_BYTES`, so that the few thousand tokens of a small step are not all of
    one file. The order depends on nothing but relative paths and numbers. Tests are left out, which
    not every installation has, and so are the tables of the character encodings.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "encodings"}
    files: list[Path] = []
    for folder, inside, names in os.walk(root):
        inside[:] = set(inside) - skipped  # installed packages are many times as many files
        files += (Path(folder, name) for name in names if name.endswith(".py"))
    pieces = [
        (path, number) for path in files for number in range(-(-path.stat().st_size // PIECE_BYTES))
    ]

    def place(piece: tuple[Path, int]) -> bytes:
        name = f"{piece[0].relative_to(root).as_posix()}:{piece[1]}"
        return hashlib.sha256(name.encode()).digest()

    return sorted(pieces, key=place)


def read_pieces(pieces: list[tuple[Path, int]]) -> Iterator[dict[str, str]]:
    """The pieces as {"text": ...}: the lines that begin within the piece's `PIECE_BYTES`."""
    for file, number in pieces:
        with file.open("rb") as source:
            if number > 0:
                source.seek(number * PIECE_BYTES - 1)
                source.readline()  # the end of a line that began in the piece before
            text = source.read(max(0, (number + 1) * PIECE_BYTES - source.tell()))
            if text and not text.endswith(b"\n"):
                text += source.readline()  # the end of this piece's last line
        if text:
            yield {"text": text.decode("utf-8", errors="replace")}


class TextReader:
    """Texts of local files.

    Args:
        section_name: ``training`` or ``validation``, for messages.
        column: of parquet, and the key of a line's object.
        skip_bad: pass over rows that are no text, and count them.
        tally: counts those, and texts with broken UTF-8.
    """

    def __init__(
        self,
        section_name: str,
        column: str = "text",
        skip_bad: bool = False,
        tally: Tally | None = None,
    ) -> None:
        self.column = column
        self._tally = tally or Tally(workers=0)
        self._key = f"{section_name}.dataset_bad_rows"
        self._skip_bad = skip_bad

    def documents(self, files: list[Path]) -> Iterator[dict[str, str]]:
        """All of the files as {"text": ...}, whatever the column is called.

        Raises:
            Refusal: a row that is no text, unless those are skipped.
        """
        for file in files:
            for text, _ in self.texts(Block(file)):
                yield {"text": text}

    def texts(self, block: Block, place: int = 0) -> Iterator[tuple[str, int]]:
        """Those of a block, each with the place behind it; as :func:`read_rows`."""
        for row, behind in read_rows(block, self.column, self._mended, place):
            if isinstance(row, BadRow):
                self._bad(row)
            else:
                yield row, behind

    def looked_at(self, file: Path) -> Iterator[str]:
        """As `texts` of a whole file, without counting what will be read again."""
        for row, _ in read_rows(Block(file), self.column, _nothing):
            if not isinstance(row, BadRow):
                yield row
            elif not self._skip_bad:
                raise self._refusal(row)

    def _refusal(self, row: BadRow) -> Refusal:
        return Refusal(f'{row}; mend it, or pass over such rows by {self._key} = "skip"')

    def _bad(self, row: BadRow) -> None:
        if not self._skip_bad:
            raise self._refusal(row)
        count = self._tally.add(SKIPPED)
        if _is_worth_saying(count):
            logger.warning(f"Skipped: {row} ({count} skipped by this process)")

    def _mended(self) -> None:
        count = self._tally.add(MENDED)
        if _is_worth_saying(count):
            logger.warning(f"Texts with bytes that are not UTF-8, now U+FFFD: {count}")


def _nothing() -> None:
    pass


def _is_worth_saying(count: int) -> bool:
    """The first ones, then rarer and rarer."""
    return count <= 3 or str(count).strip("0") == "1"


def _text_column(sample: dict[str, Any]) -> str:
    return sample["text"]


def open_source(
    section_name: str,
    dataset: str,
    dataset_path: str | None,
    reader: TextReader | None = None,
    key: str | None = None,
) -> tuple[datasets.IterableDataset, Callable[[dict[str, Any]], str]]:
    """The documents of `dataset` in order, and how to get a document's text.

    Args:
        reader: of local files; by default one that takes "text", and refuses bad rows.
        key: that named the path, for messages.
    """
    key = key or f"{section_name}.dataset_path"
    check_text(section_name, dataset, dataset_path, key)
    if dataset in upstream.DATASETS:
        entry = upstream.DATASETS[dataset]
        place = dataset_path or entry.path
        logger.info(f"Preparing {dataset} dataset from {place}")
        documents = entry.loader(place)
        if isinstance(documents, datasets.Dataset):
            documents = documents.to_iterable_dataset()
        return documents, entry.sample_processor

    # One shard a file or piece: ranks and workers share them out where the numbers allow it.
    if dataset == "python":
        pieces = python_pieces()
        if not pieces:
            raise Refusal(
                f'{section_name}.dataset = "python": no source files below '
                f'{sysconfig.get_path("stdlib")}; choose "local" and a path'
            )
        return _from_generator(read_pieces, pieces=pieces), _text_column
    reader = reader or TextReader(section_name)
    files = checked_files(key, str(dataset_path), reader)
    return _from_generator(reader.documents, files=files), _text_column


def _from_generator(
    generator: Callable[..., Iterator[dict[str, str]]], **shards: list[Any]
) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(generator, gen_kwargs=shards)


def checked_files(key: str, path: str, reader: TextReader) -> list[Path]:
    """The files of local text, each looked at, and what is not read said in the log.

    Raises:
        Refusal: a damaged file, a wrong column, a bad first row, or no text in any of them.
    """
    check_path(key, path)
    files = local_files(Path(path))
    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(partial(check_file, column=reader.column), files))
        _check_first_documents(files, reader)
    except ValueError as error:
        raise Refusal(f"{key} = {path!r}: {error}") from error
    _say_files(path, len(files))
    return files


@cache
def _say_files(path: str, count: int) -> None:
    """Once a process, though the loader of each stage reads them."""
    logger.info(f"Preparing {count} files from {path}")
    unread = unread_files(Path(path))
    if unread:
        names = [str(file.relative_to(path)) for file in unread]
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
        logger.warning(f"Not read: {len(names)} files in {path}, which are not {READ}: {shown}")


def _check_first_documents(files: list[Path], reader: TextReader) -> None:
    """A wrong key is an error at the start: look into the first file of each kind."""
    firsts = {(kind_of(file), compression_of(file)): file for file in reversed(files)}
    for file in sorted(firsts.values()):
        next(reader.looked_at(file), None)
    if not any(text for file in files for text in reader.looked_at(file)):
        rows = (row for file in files for row in read_rows(Block(file), reader.column, _nothing))
        bad = next((row for row, _ in rows if isinstance(row, BadRow)), None)
        why = f": {bad}" if bad else ", or nothing but empty ones"
        raise ValueError(f"there is no text in any of its files{why}; name others")
