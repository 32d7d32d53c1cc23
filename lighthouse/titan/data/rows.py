"""Rows of text files: what each kind of file holds, and which rows of it are no text.

A row is a parquet row, a line of JSON, or a whole ``.txt`` file.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lighthouse.titan.data.compression import BUFFER, DAMAGE, open_bytes
from lighthouse.titan.data.file_checks import check_schema, said
from lighthouse.titan.data.text_files import compression_of, kind_of

_ROWS_AT_ONCE = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block:
    """A part of a file that can be read by itself; by default all of it.

    Attributes:
        first, end: row groups of parquet; of an uncompressed file of lines the bytes in which its
            lines begin. Other files are one block.
        part, parts: only each `parts`-th row of it, from the `part`-th on.
    """

    file: Path
    first: int = 0
    end: int | None = None
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class BadRow:
    """A row that is no text. As a string it is a sentence that names the file and the row.

    Attributes:
        number: parquet rows count from 0, lines from 1; None where `offset` is known instead.
        offset: of the line in its file, in bytes.
        what: is wrong.
        lacks_column: it may have its text under another key.
    """

    file: Path
    what: str
    number: int | None = None
    offset: int | None = None
    lacks_column: bool = False

    def __str__(self) -> str:
        if self.offset is None:
            number = self.number
        else:
            number = 1 + _newlines_before(self.file, self.offset)
        row = "row" if kind_of(self.file) == ".parquet" else "line"
        return f"{self.file}, {row} {number} {self.what}"


def read_rows(
    block: Block, column: str, mended: Callable[[], None], place: int = 0
) -> Iterator[tuple[str | BadRow, int]]:
    """The rows of a block, each with the place behind it, from which reading can go on.

    Bytes that are not UTF-8 become U+FFFD, and lone surrogates "?".

    Args:
        column: of parquet, and the key of a line's object, that holds the text.
        mended: called for each text with such bytes.
        place: 0 is the start. Up to there a plain file is not read, others are not decoded.
    """
    kind = kind_of(block.file)
    if kind == ".parquet":
        found = _parquet_rows(block, column, mended, place)
    elif kind == ".txt":
        found = _whole_file(block.file, mended, place)
    else:
        found = _json_lines(block, column, mended, place)
    if block.parts == 1:
        return found
    # Places, which are bytes in plain files, tell the parts apart as well as numbers of rows.
    return (row for row in found if (row[1] - 1) % block.parts == block.part)


def _parquet_rows(
    block: Block, column: str, mended: Callable[[], None], place: int
) -> Iterator[tuple[str | BadRow, int]]:
    try:
        # The buffer keeps a large row group from being read at once.
        with pq.ParquetFile(block.file, buffer_size=BUFFER) as table:
            check_schema(block.file, table.schema_arrow, column)
            groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
            most = _batch_size(groups, column)
            first_row = sum(group.num_rows for group in groups[: block.first])
            begin = 0
            for i in range(block.first, len(groups) if block.end is None else block.end):
                end = begin + groups[i].num_rows
                while place < end:
                    try:
                        for data in _row_group(table, i, column, place - begin, most):
                            number, place = first_row + place, place + 1
                            yield _parquet_text(block.file, number, column, data, mended), place
                        place = end
                    except DAMAGE as error:
                        rest = "what follows in its row group"
                        bad = _damage(block.file, error, rest, number=first_row + place)
                        if most == 1:
                            place = end
                            yield bad, place
                        most = 1  # of what was read at once some rows may be whole
                begin = end
    except DAMAGE as error:
        yield _damage(block.file, error, number=0), place


def _row_group(table: Any, number: int, column: str, begin: int, most: int) -> Iterator[Any]:
    """The values of a column from a row on, at most so many read at once."""
    batches = table.iter_batches(batch_size=most, row_groups=[number], columns=[column])
    for batch in batches:
        skipped = min(begin, len(batch))
        begin -= skipped
        texts = batch.column(0).slice(skipped)
        as_bytes = pa.large_binary() if pa.types.is_large_string(texts.type) else None
        # Not as strings: pyarrow would raise at bytes that are not UTF-8.
        yield from texts.cast(as_bytes or pa.binary()).to_pylist()


def _parquet_text(
    file: Path, number: int, column: str, data: bytes | None, mended: Callable[[], None]
) -> str | BadRow:
    if data is None:
        return BadRow(file, f'has a null in column "{column}"', number=number)
    return _decoded(data, mended)


def _batch_size(groups: list[Any], column: str) -> int:
    """Rows of about a buffer: one can be a whole book."""
    found, rows = 0, 0
    for group in groups[:4]:
        rows += group.num_rows
        columns = (group.column(j) for j in range(group.num_columns))
        found += sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)
    return max(1, min(_ROWS_AT_ONCE, BUFFER * rows // max(found, 1)))


def _json_lines(
    block: Block, column: str, mended: Callable[[], None], place: int
) -> Iterator[tuple[str | BadRow, int]]:
    plain = compression_of(block.file) is None
    offset, number = 0, 0
    try:
        with open_bytes(block.file) as source:
            if plain:
                offset = place
                if place == 0 and block.first > 0:
                    source.seek(block.first - 1)
                    # The end of a line that began in the block before.
                    offset = block.first - 1 + len(source.readline())
                source.seek(offset)
            else:
                number = sum(1 for _ in islice(source, place))
            for line in source:
                if plain and block.end is not None and offset >= block.end:
                    return
                where: dict[str, Any] = {"offset": offset} if plain else {"number": number + 1}
                is_first = (offset if plain else number) == 0
                offset, number = offset + len(line), number + 1
                if is_first:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                if line.isspace() or not line:
                    continue
                text = _text_of_line(line, column, mended)
                if isinstance(text, _Wrong):
                    bad = BadRow(block.file, text.what, lacks_column=text.lacks_column, **where)
                    yield bad, offset if plain else number
                else:
                    yield text, offset if plain else number
    except DAMAGE as error:
        where = {"offset": offset} if plain else {"number": number + 1}
        yield _damage(block.file, error, **where), offset if plain else number


@dataclass(frozen=True)
class _Wrong:
    """What is wrong with a line, where its text would be; as `BadRow`."""

    what: str
    lacks_column: bool = False


_MOST_KEYS = 8  # that are named


def _one_a_line(begun: str) -> str:
    """What would do for JSON whose objects have not a line each, by what it begins with."""
    objects = ".[]" if begun.startswith("[") else "."
    return f"; write each object on one line, as jq -c '{objects}' does"


def _text_of_line(line: bytes, column: str, mended: Callable[[], None]) -> str | _Wrong:
    written = _decoded(line, mended)
    try:
        row = json.loads(written)
    except json.JSONDecodeError as error:
        begun = written.lstrip()
        hint = _one_a_line(begun) if begun.startswith("[") or begun.rstrip() == "{" else ""
        return _Wrong(f"is not JSON: {error}{hint}")
    except RecursionError:
        return _Wrong("is nested too deeply")
    except ValueError:  # of int(), which has a limit
        return _Wrong("has a number of more digits than are read")
    if isinstance(row, list):
        return _Wrong(f"holds an array{_one_a_line('[')}")
    text = row.get(column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        return _no_string(row, column)
    # Only an escape can make a surrogate that stands alone.
    if "\\u" in written and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            mended()
            return text.encode(errors="replace").decode()
    return text


def _no_string(row: Any, column: str) -> _Wrong:
    if not isinstance(row, dict):
        return _Wrong(f'has no string under "{column}": it is no object')
    if column in row:
        return _Wrong(f'has no string under "{column}", but {json.dumps(row[column])[:40]}')
    keys = list(row)[:_MOST_KEYS]
    return _Wrong(f'has no string under "{column}", only {keys}', lacks_column=True)


def _whole_file(
    file: Path, mended: Callable[[], None], place: int
) -> Iterator[tuple[str | BadRow, int]]:
    if place:
        return
    try:
        with open_bytes(file) as source:
            data = source.read()
    except DAMAGE as error:
        yield _damage(file, error, number=1), 1
    else:
        text = _decoded(data.removeprefix(_BYTE_ORDER_MARK), mended)
        # As Python's text files read them.
        yield text.replace("\r\n", "\n").replace("\r", "\n"), 1


def _decoded(data: bytes, mended: Callable[[], None]) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        mended()
        return data.decode(errors="replace")


def _damage(file: Path, error: BaseException, rest: str = "what follows", **where: Any) -> BadRow:
    """A row that can't be read, nor a rest. An error of the disk is no damage, and is raised."""
    if isinstance(error, OSError) and error.errno is not None:
        error.filename = error.filename or str(file)
        raise error
    return BadRow(file, f"can't be read, nor {rest}: {said(error)}", **where)


def _newlines_before(file: Path, offset: int) -> int:
    found = 0
    with file.open("rb") as source:
        while offset > 0 and (data := source.read(min(offset, BUFFER))):
            found += data.count(b"\n")
            offset -= len(data)
    return found
