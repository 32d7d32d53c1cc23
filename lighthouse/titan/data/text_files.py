"""Which files of a folder are text, and which are passed over."""

import os
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

LOCAL_KINDS = (".parquet", ".jsonl", ".json", ".txt")
COMPRESSIONS = (".gz", ".zst", ".xz")
READ = ".parquet, .jsonl, .json (lines) or .txt, the last three also .gz, .zst or .xz"
"""What is read, for messages."""


def compression_of(file: Path) -> str | None:
    """The suffix that says how a file is compressed, in lower case; None if it is not."""
    suffix = file.suffix.lower()
    return suffix if suffix in COMPRESSIONS else None


def kind_of(file: Path) -> str | None:
    """One of `LOCAL_KINDS`, by a file's name in any case; None for a file that is not read."""
    name = file.name.lower()
    compression = compression_of(file)
    kind = Path(name.removesuffix(compression or "")).suffix
    if kind not in LOCAL_KINDS or (kind == ".parquet" and compression):
        return None
    return kind


@dataclass
class _Listing:
    """What lies at or below a path.

    Attributes:
        files, unread: that are read, and files of other kinds.
        odd: what is no file, such as a pipe, or a link to nothing or to what is read anyway.
        hidden: files and folders whose names begin with a dot, which is where the walk ends.
    """

    files: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    odd: list[Path] = field(default_factory=list)
    hidden: int = 0


@cache
def _listing(path: Path) -> _Listing:
    """Walked once a process, since a start asks several times.

    Links to folders are followed, after all else, to what is not yet read.

    Raises:
        OSError: a folder can't be read.
    """
    found = _Listing()
    if path.is_file():
        (found.files if kind_of(path) else found.unread).append(path)
        return found
    folders, links = deque([path] if path.is_dir() else []), deque[Path]()
    seen = set()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            found.odd.append(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(os.listdir(folder)):
            file = folder / name
            if name.startswith("."):
                found.hidden += 1
            elif file.is_file():
                (found.files if kind_of(file) else found.unread).append(file)
            elif file.is_dir():
                (links if file.is_symlink() else folders).append(file)
            else:
                found.odd.append(file)
    for files in (found.files, found.unread, found.odd):
        files.sort()
    return found


def forget_files() -> None:
    """Look again when next asked."""
    _listing.cache_clear()


def local_files(path: Path) -> list[Path]:
    """Files of a known kind at or below `path`, sorted, without hidden files and folders."""
    return list(_listing(path).files)


def all_files(path: Path) -> list[Path]:
    """Files of any kind, as `local_files`."""
    listing = _listing(path)
    return sorted([*listing.files, *listing.unread])


def root_of(path: Path) -> Path:
    """What the names of a source's files are relative to."""
    return path.parent if path.is_file() else path


def unread_files(path: Path) -> list[Path]:
    """What else is there, but for what is hidden."""
    listing = _listing(path)
    return sorted([*listing.unread, *listing.odd])


def hidden_files(path: Path) -> int:
    """How many files and folders there are hidden, and passed over."""
    return _listing(path).hidden
