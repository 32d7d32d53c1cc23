"""Whether a finished checkpoint is still what was written, asked before it is read.

A crash, a disk or a copy leaves files empty, short, missing or changed. How long each file must be
stands in ``.metadata``, which is sealed with the record. What a shard must contain stands beside
each tensor: torch writes every one as a zip archive, with a CRC-32 that is computed while writing
and that reading alone does not look at. Which shard it is, is sealed as well.
"""

import errno
import io
import os
import stat
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist

from lighthouse.runs.folder import finished_steps
from lighthouse.titan.checkpoint.reading import read_sealed
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.seal import METADATA, check_beside, shard_sums
from lighthouse.titan.distributed.agree import first_of_ranks

_THREADS = 4
"""Of each rank: reading and the CRC leave Python's lock alone."""


def check_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint whose files are not all there in full; reads none but the small ones.

    Raises:
        ValueError: what is wrong with it, and the way on.
    """
    if (fault := fault_of(checkpoint)) is not None:
        raise ValueError(_sentence(checkpoint, fault))


def check_content(checkpoint: Path, names: Iterable[str] | None = None) -> None:
    """Refuse a checkpoint with bytes that have changed; each rank reads a share of the files.

    A collective, where there are several ranks.

    Args:
        checkpoint: one that `check_whole` takes.
        names: of the tensors to look at; None for all that there is.

    Raises:
        ValueError: on all ranks alike.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    wanted = None if names is None else set(names)
    metadata, sums = read_sealed(checkpoint)
    stored = metadata.storage_data
    shards = sorted({place.relative_path for place in stored.values()})
    if rank == 0:
        _say_unsealed(checkpoint, shards, sums)
    entries = sorted(
        (place.relative_path, place.offset, place.length, index.fqn)
        for index, place in stored.items()
        if wanted is None or index.fqn in wanted
    )
    found = _exchanged(checkpoint, shards[rank::ranks], stored.values(), sums)
    fault = first_of_ranks(found or _changed(checkpoint, _share(entries, rank, ranks)))
    if fault is not None:
        raise ValueError(_sentence(checkpoint, fault))


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's small files and with the sizes of its large ones."""
    try:
        RunRecord.read(checkpoint)
        metadata, sums = read_sealed(checkpoint)
        check_beside(checkpoint, sums)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or METADATA).name} can't be read ({error.strerror})"
    needed: dict[str, int] = {}
    for place in metadata.storage_data.values():
        name = place.relative_path
        if not name or os.path.basename(name) != name:
            return f"{METADATA} names {name!r}, which is not in the folder"
        needed[name] = max(place.offset + place.length, needed.get(name, 0))
    for name, size in sorted(needed.items()):
        file = checkpoint / name
        try:
            found = file.stat()
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
        except ValueError:  # no name that a file could have
            return f"{METADATA} names {name!r}, which is not in the folder"
        if not stat.S_ISREG(found.st_mode):
            return f"{name} is no file"
        if not os.access(file, os.R_OK):
            return f"{name} can't be read ({os.strerror(errno.EACCES)})"
        if found.st_size < size:
            return f"{name} has {found.st_size:,} of {size:,} bytes"
    return None


def say_unsealed(checkpoint: Path) -> None:
    """Warn of a checkpoint without checksums, of which `check_content` is not asked."""
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    metadata, sums = read_sealed(checkpoint)
    _say_unsealed(checkpoint, {p.relative_path for p in metadata.storage_data.values()}, sums)


def _say_unsealed(checkpoint: Path, shards: Iterable[str], sums: dict[str, int]) -> None:
    if all(shard in sums for shard in shards):
        return
    # Not imported above, as what torchtitan's lowest modules need must not.
    from torchtitan.tools.logging import logger

    logger.warning(
        f"Checkpoint {checkpoint} was written without checksums of its files: that they belong "
        f"together, and what {METADATA} and the record say, is taken as it stands"
    )


def _exchanged(
    checkpoint: Path, shards: Sequence[str], stored: Iterable[Any], sums: dict[str, int]
) -> str | None:
    """The first of the shards that is sound perhaps, and not the one that was written."""
    sealed = [shard for shard in shards if shard in sums]
    try:
        found = shard_sums(checkpoint, sealed, stored)
    except OSError as error:
        return f"{error.filename} can't be read ({error.strerror})"
    other = next((shard for shard in sealed if found[shard] != sums[shard]), None)
    return None if other is None else f"{other} has changed since it was written"


_Entry = tuple[str, int, int, str]
"""File, offset, length, and the name of what is there."""


def _share(entries: Sequence[_Entry], rank: int, ranks: int) -> list[_Entry]:
    """A rank's entries: as many bytes as another's, in one piece of the sorted ones."""
    total, before, share = sum(length for _, _, length, _ in entries), 0, []
    for entry in entries:
        if min(ranks - 1, before * ranks // max(1, total)) == rank:
            share.append(entry)
        before += entry[2]
    return share


def _changed(checkpoint: Path, entries: Sequence[_Entry]) -> str | None:
    """The first of the entries whose bytes are not what was written."""

    def fault(entry: _Entry) -> str | None:
        name, offset, length, what = entry
        try:
            with (checkpoint / name).open("rb") as file:
                part = io.BufferedReader(_Part(file, offset, length), 1 << 20)
                changed = zipfile.ZipFile(part).testzip() is not None
        except (zipfile.BadZipFile, NotImplementedError, EOFError):
            changed = True
        except OSError as error:  # a disk that fails, say
            return f"{name} can't be read ({error.strerror}), in {what}"
        return f"{name} has changed since it was written, in {what}" if changed else None

    with ThreadPoolExecutor(_THREADS) as threads:
        return next((found for found in threads.map(fault, entries) if found is not None), None)


@dataclass
class _Part(io.RawIOBase):
    """A piece of a file, as a file of its own."""

    file: BinaryIO
    offset: int
    length: int
    at: int = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self.length - self.at)]
        self.file.seek(self.offset + self.at)
        count: int = self.file.readinto(view)  # type: ignore[attr-defined]
        self.at += count
        return count


def _sentence(checkpoint: Path, fault: str) -> str:
    """What a user can do about it."""
    folder = checkpoint.absolute().parent
    other = [f"step-{step}" for step in reversed(finished_steps(folder))]
    whole = next((n for n in other if n != checkpoint.name and not fault_of(folder / n)), None)
    if whole is None:
        way = "there is no other whole one beside it; copy it again from where it is whole"
    else:
        way = f"the newest whole one beside it is {whole}: move {checkpoint.name} away to go on"
        way += " from there"
    return f"checkpoint {checkpoint} can't be read: {fault}; {way}"
