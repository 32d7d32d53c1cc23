"""Which text a job names, and whether it is there."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lighthouse.titan.data.source_tables import sources_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig
    from torchtitan.config.job_config import Training, Validation

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
    """Files that are read, and those that are not."""

    files: tuple[Path, ...]
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
    read = tuple(file for file in found if kind_of(file))
    return _Listing(read, tuple(file for file in found if not kind_of(file)))


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
    """The other files there, but for hidden ones."""
    return list(_listing(path).unread)


def check_texts(job_config: "JobConfig") -> None:
    """Refuse the text of training, or of validation, that there is not; as :func:`check_text`."""
    training = job_config.training
    if training.sources:
        _check_sources(job_config)
    else:
        _check_section("training", training)
    if training.dataset_order == "shuffled" and training.dataset.lower() != "local":
        raise ValueError(
            f"training.dataset_order = 'shuffled': is for local text alone, and training.dataset = "
            f"{training.dataset!r}; leave it out"
        )
    if job_config.validation.enable:
        _check_section("validation", job_config.validation)


def _check_section(name: str, section: "Training | Validation") -> None:
    dataset = section.dataset.lower()
    check_text(name, dataset, section.dataset_path, f"{name}.dataset_path")
    _check_reading(name, dataset, section.dataset_text, section.dataset_bad_rows)


def _check_sources(job_config: "JobConfig") -> None:
    training = job_config.training
    if training.dataset.lower() != "local":
        raise ValueError(
            f"training.sources: are local text, and training.dataset = {training.dataset!r}; set "
            'it to "local"'
        )
    if training.dataset_path is not None:
        raise ValueError(
            f"training.dataset_path = {training.dataset_path!r}: training.sources name what is "
            "read; leave it out, or make it one of them"
        )
    for number, source in enumerate(sources_of(job_config), start=1):
        check_path(f"training.sources.{number}.path", source.path)


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


def check_text(section_name: str, dataset: str, dataset_path: str | None, key: str) -> None:
    """Refuse a dataset that there is not.

    Args:
        section_name: ``training`` or ``validation``, for messages.
        dataset: in lower case.
        key: that named the path.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    if dataset == "python" and dataset_path is not None:
        raise ValueError(f'{key} = {dataset_path!r}: dataset "python" takes no path, remove it')
    if dataset == "local" and dataset_path is None:
        raise ValueError(f'{key} is not set: dataset "local" needs a folder or a file')
    if dataset == "local":
        check_path(key, str(dataset_path))
    if dataset not in ("local", "python"):
        # Not imported above: it takes seconds.
        from torchtitan.hf_datasets.text_datasets import DATASETS

        if dataset not in DATASETS:
            known = ["local", "python", *DATASETS]
            raise ValueError(f"{section_name}.dataset = {dataset!r}: expected one of {known}")


def check_path(key: str, path: str) -> None:
    """Refuse a path without local text, and none, which would be the folder at hand."""
    if not path:
        raise ValueError(f"{key} = '': must name a folder or a file")
    if not local_files(Path(path)):
        raise ValueError(f"{key} = {path!r}: no such file, or no {READ} in it")
