"""Streams of documents, read through the ``datasets`` library.

A source is upstream's registry (C4), a local folder or file ("local"), or the Python installation's
own standard library ("python").
"""

import gzip
import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from torchtitan.hf_datasets import text_datasets as upstream
from torchtitan.tools.logging import logger

from lighthouse.refusal import Refusal
from lighthouse.titan.data.text_files import LOCAL_KINDS, check_text, local_files

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


def read_documents(files: list[Path]) -> Iterator[dict[str, str]]:
    """Documents of `files` as {"text": ...}: a parquet row, a line of JSON, or a whole text file.

    Raises:
        Refusal: a row without a string in "text", or a line that is not JSON.
    """
    for file in files:
        if file.suffix == ".parquet":
            texts = _read_parquet(file)
        elif file.suffix == ".txt":
            texts = iter([file.read_text(encoding="utf-8", errors="replace")])
        else:
            texts = _read_json_lines(file)
        for text in texts:
            yield {"text": text}


def _read_parquet(file: Path) -> Iterator[str]:
    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        if "text" not in schema.names:
            raise Refusal(f'{file} has no column "text", only {schema.names}')
        kind = schema.field("text").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise Refusal(f'{file}: column "text" holds {kind}, not strings')
        # One row at a time: it can be a whole book.
        for batch in table.iter_batches(batch_size=1, columns=["text"]):
            for text in batch.column(0):
                if not text.is_valid:
                    raise Refusal(f'{file}: column "text" has nulls')
                yield text.as_py()


def _read_json_lines(file: Path) -> Iterator[str]:
    open_text = gzip.open if file.suffix == ".gz" else open
    with open_text(file, "rt", encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise Refusal(f"{file}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise Refusal(f'{file}, line {number} has no string under "text"')
            yield row["text"]


def _text_column(sample: dict[str, Any]) -> str:
    return sample["text"]


def open_source(
    section_name: str, dataset: str, dataset_path: str | None
) -> tuple[datasets.IterableDataset, Callable[[dict[str, Any]], str]]:
    """The documents of `dataset` in order, and how to get a document's text."""
    check_text(section_name, dataset, dataset_path)
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
    files = local_files(Path(str(dataset_path)))
    _check_first_documents(f"{section_name}.dataset_path", str(dataset_path), files)
    logger.info(f"Preparing {len(files)} files from {dataset_path}")
    return _from_generator(read_documents, files=files), _text_column


def _from_generator(
    generator: Callable[..., Iterator[dict[str, str]]], **shards: list[Any]
) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(generator, gen_kwargs=shards)


def _check_first_documents(key: str, dataset_path: str, files: list[Path]) -> None:
    """A wrong column is an error at the start: look into the first file of each kind."""
    for kind in LOCAL_KINDS:
        first = next((file for file in files if file.name.endswith(kind)), None)
        if first is not None:
            try:
                next(read_documents([first]), None)
            except ValueError as error:
                raise Refusal(f"{key} = {dataset_path!r}: {error}") from error
