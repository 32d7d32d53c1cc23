"""Which text a place in the data belongs to: its files, and samples of what stands in them."""

import hashlib
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighthouse.runs.files import of_json
from lighthouse.titan.data.source_tables import sources_of
from lighthouse.titan.data.text_files import all_files, local_files, root_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

SAMPLES = 8
SAMPLE_BYTES = 16 << 10
"""What is read of a file: all of it up to SAMPLES of these, else its ends and as many between."""
_READ_WHOLE = SAMPLES * SAMPLE_BYTES

Mark = tuple[int, str]
"""Of a file: its bytes, and a digest of its samples."""


@dataclass(frozen=True)
class SourceText:
    """The text of a source.

    Attributes:
        name: as it was named; of no meaning where there are files.
        files: by their paths relative to the source, in the order in which they are read.
        times: of those of which samples alone were read, when they were last written, in ns.
    """

    name: str
    files: dict[str, Mark] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "SourceText":
        """From what JSON has made of one.

        Raises:
            ValueError: that is something else.
        """
        files = {name: (size, digest) for name, (size, digest) in record["files"].items()}
        found = of_json(cls, record, "text", files=files)
        marked = all(type(s) is int and s >= 0 and type(d) is str for s, d in files.values())
        timed = all(n in files and type(time) is int for n, time in found.times.items())
        if not (marked and timed):
            raise ValueError("text is damaged: its files have no sizes, digests and times")
        return found

    def __str__(self) -> str:
        if not self.files:
            return self.name
        sizes = sorted((name, size) for name, (size, _) in self.files.items())
        digest = hashlib.sha256(repr(sizes).encode()).hexdigest()
        total = sum(size for _, size in sizes)
        return f"{len(sizes)} files of {total:,} bytes, {digest[:12]}"

    def described(self) -> str:
        """For people."""
        if not self.files:
            return self.name
        total = sum(size for size, _ in self.files.values())
        return f"{self.name}, {len(self.files)} files of {total:,} bytes"

    def same(self, other: "SourceText") -> bool:
        """Whether it is the same text, wherever it lies."""
        return self.files == other.files if self.files or other.files else self.name == other.name

    def difference(self, other: "SourceText") -> str:
        """What has become of the other's files, in words; empty for the same text."""
        if self.same(other):
            return ""
        if not (self.files and other.files):
            return f"{other} has become {self}"
        changed = [n for n in self.files if n in other.files and self.files[n] != other.files[n]]
        found = {
            "changed": changed,
            "new": [name for name in self.files if name not in other.files],
            "gone": [name for name in other.files if name not in self.files],
        }
        return "; ".join(f"{what}: {_some(names)}" for what, names in found.items() if names)

    def assumed(self, other: "SourceText") -> str:
        """The other's files that were written at another time, of equal size and samples."""
        return _some(
            [
                name
                for name, time in other.times.items()
                if time != self.times.get(name) and self.files.get(name) == other.files[name]
            ]
        )


def same_texts(texts: Sequence[SourceText], others: Sequence[SourceText]) -> bool:
    """Whether sources are the same text, one by one."""
    return len(texts) == len(others) and all(map(SourceText.same, texts, others))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def training_text(job_config: "JobConfig") -> list[SourceText]:
    """All that a job trains on, source by source. Reads samples of local files.

    A folder of an upstream dataset counts as its files, and Python's sources as their release.
    """
    training = job_config.training
    dataset, path = training.dataset.lower(), training.dataset_path
    if training.sources:
        return [_of_files(source.path, local=True) for source in sources_of(job_config)]
    if dataset == "python":
        return [SourceText(f"Python {platform.python_version()}")]
    if path is None or not Path(path).exists():
        return [SourceText(path or dataset)]
    return [_of_files(path, local=dataset == "local")]


def _of_files(path: str, local: bool) -> SourceText:
    root = Path(path)
    files = local_files(root) if local else all_files(root)
    names = [file.relative_to(root_of(root)).as_posix() for file in files]
    with ThreadPoolExecutor(16) as pool:
        marks = dict(zip(names, pool.map(_mark, files), strict=True))
        statuses = zip(names, pool.map(Path.stat, files), strict=True)
        times = {name: s.st_mtime_ns for name, s in statuses if marks[name][0] > _READ_WHOLE}
    return SourceText(path, marks, times)


def is_grown(file: Path, before: Mark) -> bool:
    """Whether a file is what it was, and then more lines."""
    size = before[0]
    if file.stat().st_size <= size or _mark(file, size) != before:
        return False
    with file.open("rb") as source:
        source.seek(max(0, size - 1))
        return size == 0 or source.read(1) == b"\n"


def _mark(file: Path, size: int | None = None) -> Mark:
    """Of a file, or of its first bytes."""
    digest = hashlib.blake2b(digest_size=8)
    with file.open("rb") as source:
        size = file.stat().st_size if size is None else size
        if size <= _READ_WHOLE:
            digest.update(source.read(size))
        else:
            for i in range(SAMPLES):
                source.seek(i * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(source.read(SAMPLE_BYTES))
    return size, digest.hexdigest()


def old_identity(text: Sequence[SourceText], dataset: str) -> str | None:
    """As records of before have it: names and sizes, of local text alone."""
    if dataset.lower() != "local" or not all(source.files for source in text):
        return None
    return "; ".join(map(str, text))
