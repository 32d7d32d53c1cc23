"""What can be seen of a text file without reading it: its format, its columns, its encoding."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lighthouse.refusal import Refusal
from lighthouse.titan.data.compression import DAMAGE, open_bytes
from lighthouse.titan.data.text_files import compression_of, kind_of

_MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}
_SKIPPED_FRAME = b"\x2a\x4d\x18"  # of zstd, behind a byte from 0x50 to 0x5f
_PARQUET = b"PAR1\x15"
_START = 8  # bytes that are looked at


class WrongColumn(ValueError):
    """A column that a file has not, or that holds no texts."""


@contextmanager
def reading(file: Path | None = None) -> Iterator[None]:
    """Inside, an error of the disk ends the run in a sentence: a file has gone, say.

    Args:
        file: where it is one; pyarrow's errors, and those in the middle of a file, don't say which.

    Raises:
        Refusal: naming the file.
    """
    try:
        yield
    except OSError as error:
        raise Refusal(
            f"{file or error.filename} can't be read any more ({_why(error)}): bring it "
            "back, and the same command goes on from the last checkpoint"
        ) from error


@cache
def check_file(file: Path, column: str) -> int:
    """Look at what can be seen without reading a file; once a process.

    Returns:
        Its row groups, 1 for other kinds than parquet.

    Raises:
        ValueError: damaged, another format than its name says, or parquet without texts in
            `column`.
    """
    try:
        if kind_of(file) == ".parquet":
            with pq.ParquetFile(file) as table:
                check_schema(file, table.schema_arrow, column)
                return table.num_row_groups
        with file.open("rb") as source:
            start = source.read(_START)
        if compression_of(file):
            _check_compression(file, start)
            start = _decompressed_start(file)
        _check_text(file, start)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is damaged, or not parquet: {said(error)}") from error
    except OSError as error:
        raise ValueError(f"{file} can't be read: {_why(error)}") from error
    return 1


def _check_compression(file: Path, start: bytes) -> None:
    """Whether the first bytes are those of the compression that its name says."""
    suffix = str(compression_of(file))
    skipped = suffix == ".zst" and start[1:4] == _SKIPPED_FRAME and start[0] >> 4 == 5
    if not skipped and not start.startswith(_MAGIC[suffix]):
        raise ValueError(f"{file} is damaged, or not {suffix}: begins with {start!r}")


def _decompressed_start(file: Path) -> bytes:
    try:
        with open_bytes(file) as source:
            return source.read(_START)
    except DAMAGE:
        return b""  # which is said where it is read


def _check_text(file: Path, start: bytes) -> None:
    """Whether the first bytes, decompressed, can be those of text."""
    # None of these can begin what is UTF-8, but the name of parquet, which is followed by more.
    for suffix, magic in {**_MAGIC, ".parquet": _PARQUET}.items():
        if start.startswith(magic):
            raise ValueError(f"{file} begins as a {suffix} file does; end its name with that")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:4]:
        raise ValueError(
            f"{file} is not UTF-8, and its text begins with {start!r}; if that is UTF-16, write it "
            "anew by iconv -f UTF-16 -t UTF-8"
        )


def check_schema(file: Path, schema: Any, column: str) -> None:
    """Refuse parquet without texts in a column, by :class:`WrongColumn`."""
    count = schema.names.count(column)
    if count != 1:
        has = f'{count} columns "{column}"' if count else f'no column "{column}"'
        raise WrongColumn(f"{file} has {has}, only {schema.names}")
    kind = schema.field(column).type
    if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        raise WrongColumn(f'{file}: column "{column}" holds {kind}, not strings')


def _is_text(kind: pa.DataType) -> bool:
    """Whether values are strings, or bytes, as some writers call them."""
    types = pa.types
    return any(
        check(kind)
        for check in (
            *(types.is_string, types.is_large_string, types.is_string_view),
            *(types.is_binary, types.is_large_binary, types.is_binary_view),
        )
    )


def _why(error: OSError) -> str:
    """What the system says; pyarrow puts the file's name around it."""
    return os.strerror(error.errno) if error.errno else said(error)


def said(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())
