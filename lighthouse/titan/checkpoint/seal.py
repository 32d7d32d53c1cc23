"""Checksums of a checkpoint's files, which stand behind the pickle in ``.metadata``.

Each tensor has a CRC-32 of its own in its shard. ``.metadata`` says where the tensors are, and a
bit that turns in there would move or rename one; so for the record. And a shard of another rank or
step is sound in itself: that it is the one that was written tell the ends of its tensors, where
their CRC-32 stand. Unpickling ends before the seal, so the file stays what torch writes and reads.
"""

import itertools
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch.distributed.checkpoint import FileSystemWriter, Metadata, SavePlan, SavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, _FileSystemWriter
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from lighthouse.runs.files import read_file

METADATA = ".metadata"
_MARK = b"\nsealed "
_DIGITS = 8
_END_BYTES = 1024
"""Of an entry: at least the table of torch's zip archives, with the names and CRC-32 of all in it,
which has some 600."""


@dataclass(frozen=True)
class _Written(WriteResult):
    """What torch says of an entry, and the checksum of its end."""

    end: int


class SealingWriter(_FileSystemWriter):
    """torch's writer, which seals ``.metadata`` before that gets its name: finished is sealed.

    No `FileSystemWriter`: that stages tensors too, ``async_save`` would let it, and of those on a
    CPU it makes no copy. It only ends as one does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.fs: _SealingFiles = _SealingFiles()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """On each rank; what it has just written is still in the host's memory."""
        written = super().write_data(plan, planner).value()
        found: list[WriteResult] = []
        for name, results in _by_file(written, lambda result: result.storage_data):
            with (Path(self.path) / name).open("rb") as file:
                for result in results:
                    end = _end(file, result.storage_data)
                    found.append(
                        _Written(result.index, result.size_in_bytes, result.storage_data, end)
                    )
        future: Future[list[WriteResult]] = Future()
        future.set_result(found)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        ends = {
            result.index: (result.storage_data, result.end)
            for result in itertools.chain.from_iterable(results)
            if isinstance(result, _Written)
        }
        self.fs.shards = {
            name: _sum_of_ends(end for _, end in found)
            for name, found in _by_file(ends.values(), lambda pair: pair[0])
        }
        FileSystemWriter.finish(self, metadata, results)


class _SealingFiles(FileSystem):
    def __init__(self) -> None:
        self.shards: dict[str, int] = {}

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        if Path(new_path).name == METADATA:
            _seal(Path(path), self.shards)
        super().rename(path, new_path)


def shard_sums(checkpoint: Path, names: Iterable[str], stored: Iterable[Any]) -> dict[str, int]:
    """Of shards as they are, what the seal has of them as they were written.

    Args:
        names: of the shards to read.
        stored: the places in all of them, as ``.metadata`` has them.

    Raises:
        OSError: one can't be read.
    """
    wanted, sums = set(names), {}
    for name, places in _by_file(stored, lambda place: place):
        if name in wanted:
            with (checkpoint / name).open("rb") as file:
                sums[name] = _sum_of_ends(_end(file, place) for place in places)
    return sums


def _by_file(values: Iterable[Any], place: Any) -> Iterable[tuple[str, list[Any]]]:
    """Values by the file that they are in, in the order in which they lie there."""

    def where(value: Any) -> tuple[str, int]:
        return place(value).relative_path, place(value).offset

    grouped = itertools.groupby(sorted(values, key=where), lambda value: where(value)[0])
    return [(name, list(found)) for name, found in grouped]


def _end(file: BinaryIO, place: Any) -> int:
    length = min(place.length, _END_BYTES)
    file.seek(place.offset + place.length - length)
    return zlib.crc32(file.read(length))


def _sum_of_ends(ends: Iterable[int]) -> int:
    return zlib.crc32(b"".join(end.to_bytes(4, "big") for end in ends))


def _seal(file: Path, shards: dict[str, int]) -> None:
    """Append the checksums of the files beside, and then that of all that stands before it."""
    beside = {path.name: zlib.crc32(path.read_bytes()) for path in file.parent.glob("*.json")}
    beside |= shards
    written = file.read_bytes()
    seal = _MARK + json.dumps(beside).encode()
    with file.open("ab") as out:
        out.write(seal + _sum(written + seal))
        out.flush()
        os.fsync(out.fileno())


def unsealed(data: bytes) -> tuple[bytes, dict[str, int]]:
    """The pickle in the bytes of a ``.metadata``, and the checksums of the files beside it.

    Those of small files are of all that is in them, those of shards see `shard_sums`.

    Raises:
        ValueError: it is not what is written. Older ones have no seal, and are not judged.
    """
    pickled, mark, seal = data.rpartition(_MARK)
    if not mark:
        return data, {}
    if _sum(data[:-_DIGITS]) != data[-_DIGITS:]:
        raise ValueError(f"{METADATA} has changed since it was written")
    try:
        beside: dict[str, int] = json.loads(seal[:-_DIGITS])
        if all(type(found) is int and Path(name).name == name for name, found in beside.items()):
            return pickled, beside
    except (ValueError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{METADATA} can't be read: its checksums are none")


def check_beside(checkpoint: Path, sums: dict[str, int]) -> None:
    """Compare the small sealed files beside ``.metadata`` with what was written.

    Raises:
        ValueError: one is missing or has changed.
        OSError: one can't be read.
    """
    for name, written in sums.items():
        if not name.endswith(".json"):
            continue
        if not (checkpoint / name).exists():
            raise ValueError(f"{name} is missing")
        if zlib.crc32(read_file(checkpoint / name)) != written:
            raise ValueError(f"{name} has changed since it was written")


def _sum(data: bytes) -> bytes:
    return b"%08x" % zlib.crc32(data)
