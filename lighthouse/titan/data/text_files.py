"""Which text a job names: whether it is there, and whether it is the same as before."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

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


@dataclass(frozen=True)
class _Listing:
    """Files with their sizes, and those that are not read."""

    files: tuple[tuple[Path, int], ...]
    unread: tuple[Path, ...]


@cache
def _listing(path: Path) -> _Listing:
    """Walked once a process, since a start asks several times."""
    if path.is_file():
        found = [path]
    else:
        found = sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
    read = tuple((file, file.stat().st_size) for file in found if kind_of(file))
    return _Listing(read, tuple(file for file in found if not kind_of(file)))


def forget_files() -> None:
    """Look again when next asked."""
    _listing.cache_clear()


def local_files(path: Path) -> list[Path]:
    """Files of a known kind at or below `path`, sorted, without hidden files and folders."""
    return [file for file, _ in _listing(path).files]


def unread_files(path: Path) -> list[Path]:
    """The other files there, but for hidden ones."""
    return list(_listing(path).unread)


def check_texts(job_config: "JobConfig") -> None:
    """Refuse the text of training, or of validation, that there is not; as :func:`check_text`."""
    sections = {"training": job_config.training}
    if job_config.validation.enable:
        sections["validation"] = job_config.validation
    for name, section in sections.items():
        dataset = section.dataset.lower()
        check_text(name, dataset, section.dataset_path)
        _check_reading(name, dataset, section.dataset_text, section.dataset_bad_rows)


def _check_reading(section_name: str, dataset: str, column: str, bad_rows: str) -> None:
    """Refuse keys of local text that would do nothing, or that name no column."""
    if not column:
        raise ValueError(f'{section_name}.dataset_text = "": name the column, such as "text"')
    for key, value, default in (("text", column, "text"), ("bad_rows", bad_rows, "error")):
        if dataset != "local" and value != default:
            raise ValueError(
                f'{section_name}.dataset_{key} = {value!r}: is for dataset "local" alone, and '
                f"{section_name}.dataset = {dataset!r}; leave it out"
            )


def check_text(section_name: str, dataset: str, dataset_path: str | None) -> None:
    """Refuse a dataset that there is not.

    Args:
        section_name: ``training`` or ``validation``, for messages.
        dataset: in lower case.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    key = f"{section_name}.dataset_path"
    if dataset == "python" and dataset_path is not None:
        raise ValueError(f'{key} = {dataset_path!r}: dataset "python" takes no path, remove it')
    if dataset == "local" and dataset_path is None:
        raise ValueError(f'{key} is not set: dataset "local" needs a folder or a file')
    if dataset == "local" and not local_files(Path(str(dataset_path))):
        raise ValueError(f"{key} = {dataset_path!r}: no such file, or no {READ} in it")
    if dataset not in ("local", "python"):
        # Not imported above: it takes seconds.
        from torchtitan.hf_datasets.text_datasets import DATASETS

        if dataset not in DATASETS:
            known = ["local", "python", *DATASETS]
            raise ValueError(f"{section_name}.dataset = {dataset!r}: expected one of {known}")


def text_identity(dataset: str, dataset_path: str | None) -> str | None:
    """What a place in local text belongs to: names and sizes of its files, wherever they are.

    None for other datasets, which are what their name says.
    """
    if dataset.lower() != "local" or dataset_path is None:
        return None
    path = Path(dataset_path)
    root = path.parent if path.is_file() else path
    sizes = {file.relative_to(root).as_posix(): size for file, size in _listing(path).files}
    digest = hashlib.sha256(repr(sorted(sizes.items())).encode()).hexdigest()
    return f"{len(sizes)} files of {sum(sizes.values()):,} bytes, {digest[:12]}"
