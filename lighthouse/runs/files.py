"""Files that are there whole or not at all."""

import dataclasses
import errno
import json
import os
import socket
import stat
import tempfile
import typing
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")


def write_atomic(path: Path, text: str) -> None:
    """Write a file in one move, on the disk before it is there under its name."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:  # a full disk, say
        partial.unlink(missing_ok=True)
        raise


def check_writable(output: Path) -> None:
    """Make a folder of results, and a file there that does not stay.

    Raises:
        ValueError: it can't be; says that ``--output`` names another, as commands have it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:  # the folder of someone else, say
        raise ValueError(
            f"{output} can't be written ({error.strerror}): name a folder for the results with "
            "--output"
        ) from error


def open_file(path: Path) -> BinaryIO:
    """A file, to read from.

    Raises:
        OSError: it can't be read, or is a pipe or a device, whose end might never come.
    """
    if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.open("rb")


def read_file(path: Path) -> bytes:
    """All that is in a file.

    Raises:
        OSError: as of :func:`open_file`.
    """
    with open_file(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """What a file of JSON has.

    Raises:
        ValueError: naming the file, which has something else.
        OSError: it can't be read.
    """
    try:
        return json.loads(read_file(path).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, no JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file of JSON has; an empty one where there is no file.

    Raises:
        ValueError: naming the file, which has something else.
        OSError: it can't be read.
    """
    return _object(read_json(path), path) if path.is_file() else {}


def of_json(kind: type[T], record: Any, path: Path | str, **more: Any) -> T:
    """A dataclass whose fields a JSON object has, by their names.

    Args:
        kind: the dataclass.
        record: what `read_json` gave.
        path: of the file, or what has the object there, for the message.
        more: fields that the object does not have.

    Raises:
        ValueError: naming the file, which has something else.
    """
    hints, values = typing.get_type_hints(kind), _object(record, path) | more
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in values and not _is_a(values[field.name], hints[field.name]):
            raise ValueError(f"{path} is damaged: {field.name} = {values[field.name]!r}")
    try:
        return kind(**values)
    except TypeError as error:  # a field too many, or too few
        raise ValueError(f"{path} is damaged: {str(error).partition('() ')[2]}") from error


def _object(found: Any, path: Path | str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it has no JSON object")
    return found


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, whatever it contains."""
    if typing.get_origin(hint) in (UnionType, typing.Union):
        return any(_is_a(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, typing.get_origin(hint) or hint)
