"""Checksums of a checkpoint's small files, which stand behind the pickle in ``.metadata``.

Each tensor has a CRC-32 of its own in its shard. ``.metadata`` says where the tensors are, and a
bit that turns in there would move or rename one; so for the record. Unpickling ends before the
seal, so the file stays what torch writes and reads.
"""

import json
import os
import zlib
from pathlib import Path

from torch.distributed.checkpoint import FileSystemWriter, Metadata
from torch.distributed.checkpoint.filesystem import FileSystem, _FileSystemWriter
from torch.distributed.checkpoint.storage import WriteResult

METADATA = ".metadata"
_MARK = b"\nsealed "
_DIGITS = 8


class SealingWriter(_FileSystemWriter):
    """torch's writer, which seals ``.metadata`` before that gets its name: finished is sealed.

    No `FileSystemWriter`: that stages tensors too, ``async_save`` would let it, and of those on a
    CPU it makes no copy. It only ends as one does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.fs = _SealingFiles()

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        FileSystemWriter.finish(self, metadata, results)


class _SealingFiles(FileSystem):
    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        if Path(new_path).name == METADATA:
            _seal(Path(path))
        super().rename(path, new_path)


def _seal(file: Path) -> None:
    """Append the checksums of the files beside, and then that of all that stands before it."""
    beside = {path.name: zlib.crc32(path.read_bytes()) for path in file.parent.glob("*.json")}
    written = file.read_bytes()
    seal = _MARK + json.dumps(beside).encode()
    with file.open("ab") as out:
        out.write(seal + _sum(written + seal))
        out.flush()
        os.fsync(out.fileno())


def unsealed(data: bytes) -> tuple[bytes, dict[str, int]]:
    """The pickle in the bytes of a ``.metadata``, and the checksums of the files beside it.

    Raises:
        ValueError: it is not what was written. Older ones have no seal, and are not judged.
    """
    pickled, mark, seal = data.rpartition(_MARK)
    if not mark:
        return data, {}
    if _sum(data[:-_DIGITS]) != data[-_DIGITS:]:
        raise ValueError(f"{METADATA} has changed since it was written")
    beside: dict[str, int] = json.loads(seal[:-_DIGITS])
    return pickled, beside


def check_beside(checkpoint: Path) -> None:
    """Compare the sealed files beside ``.metadata`` with what was written.

    Raises:
        ValueError: one is missing or has changed, or ``.metadata`` has.
        OSError: one can't be read.
    """
    _, beside = unsealed((checkpoint / METADATA).read_bytes())
    for name, written in beside.items():
        if not (checkpoint / name).exists():
            raise ValueError(f"{name} is missing")
        if zlib.crc32((checkpoint / name).read_bytes()) != written:
            raise ValueError(f"{name} has changed since it was written")


def _sum(data: bytes) -> bytes:
    return b"%08x" % zlib.crc32(data)
