"""Streams of documents, read through the ``datasets`` library.

A source is upstream's registry (C4), a local folder or file ("local"), or the Python installation's
own standard library ("python").
"""

import contextlib
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from torchtitan.hf_datasets import text_datasets as upstream
from torchtitan.tools.logging import logger

from lighthouse.refusal import Refusal
from lighthouse.titan.data.file_checks import reading
from lighthouse.titan.data.rows import BadRow, Block, read_rows
from lighthouse.titan.data.tally import MENDED, SKIPPED, Tally
from lighthouse.titan.data.text_checks import check_files, check_text, refused_row
from lighthouse.titan.data.text_files import READ, hidden_files, local_files, unread_files

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
        key: that named them, for messages.
        column: of parquet, and the key of a line's object.
        skip_bad: pass over rows that are no text, and count them.
        tally: counts those, and texts with broken UTF-8.
    """

    def __init__(
        self,
        key: str,
        column: str = "text",
        skip_bad: bool = False,
        tally: Tally | None = None,
    ) -> None:
        self.column = column
        self._tally = tally or Tally(workers=0)
        self._key = key
        self.skip_bad = skip_bad

    def documents(self, files: list[Path]) -> Iterator[dict[str, str]]:
        """All of the files as {"text": ...}, whatever the column is called.

        Raises:
            Refusal: a row that is no text, unless those are skipped.
        """
        for file in files:
            for text, _ in self.texts(Block(file)):
                yield {"text": text}

    def texts(self, block: Block, place: int = 0) -> Iterator[tuple[str, int]]:
        """Those of a block, each with the place behind it; as :func:`read_rows`.

        Raises:
            Refusal: a row that is no text, unless those are skipped; a file that can't be read.
        """
        with reading(block.file):
            for row, behind in read_rows(block, self.column, self._mended, place):
                if isinstance(row, BadRow):
                    self._bad(row)
                else:
                    yield row, behind

    def _bad(self, row: BadRow) -> None:
        if not self.skip_bad:
            raise Refusal(refused_row(row, self._key))
        count = self._tally.add(SKIPPED)
        if _is_worth_saying(count):
            logger.warning(f"Skipped: {row} ({count} skipped by this process)")

    def _mended(self) -> None:
        count = self._tally.add(MENDED)
        if _is_worth_saying(count):
            logger.warning(f"Texts with bytes that are not UTF-8, now U+FFFD: {count}")


def _is_worth_saying(count: int) -> bool:
    """The first ones, then rarer and rarer."""
    return count <= 3 or str(count).strip("0") == "1"


@contextlib.contextmanager
def reaching(section_name: str, dataset: str) -> Iterator[None]:
    """Let it be a refusal if a dataset of upstream's, which may be far away, can't be had."""
    try:
        yield
    except OSError as error:
        raise Refusal(
            f"{section_name}.dataset = {dataset!r}: {error}; try again where it can be reached, or "
            f'set "local" and {section_name}.dataset_path to text that is here'
        ) from error


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
        with reaching(section_name, dataset):
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
    reader = reader or TextReader(key)
    files = checked_files(key, str(dataset_path), reader)
    return _from_generator(reader.documents, files=files), _text_column


def _from_generator(
    generator: Callable[..., Iterator[dict[str, str]]], **shards: list[Any]
) -> datasets.IterableDataset:
    try:
        return datasets.IterableDataset.from_generator(generator, gen_kwargs=shards)
    except OSError as error:  # it makes its folder, though nothing will be in it
        raise Refusal(
            f"{error.filename}, where the datasets library has its files, can't be made "
            f"({error.strerror}); set HF_HOME to a folder that can be written"
        ) from error


def checked_files(key: str, path: str, reader: TextReader) -> list[Path]:
    """The files of local text, as :func:`check_files`; what is not read is said in the log."""
    files = check_files(key, path, reader.column, reader.skip_bad)
    _say_files(path, len(files))
    return files


@cache
def _say_files(path: str, count: int) -> None:
    """Once a process, though the loader of each stage reads them."""
    logger.info(f"Preparing {count} files from {path}")
    unread, hidden = unread_files(Path(path)), hidden_files(Path(path))
    if unread:
        names = [str(file.relative_to(path)) for file in unread]
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
        logger.warning(f"Not read: {len(names)} files in {path}, which are not {READ}: {shown}")
    if hidden:
        logger.info(f"Not read either: {hidden} files or folders in {path} that are hidden")


@cache
def say_shared(paths: tuple[str, ...]) -> None:
    """Say which sources have files in common, which are read for each; once a process."""
    owner: dict[str, int] = {}
    for number, path in enumerate(paths, start=1):
        real = [os.path.realpath(file) for file in local_files(Path(path))]
        for other in sorted({owner[file] for file in real if file in owner}):
            count = sum(owner.get(file) == other for file in real)
            logger.warning(
                f"training.sources.{number}.path = {path!r}: {count} of its {len(real)} files are "
                f"those of training.sources.{other} too, and are read for both"
            )
        owner |= dict.fromkeys(real, number) | owner
