"""Which text a job names: whether it is there, and whether it is the same as before."""

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

LOCAL_KINDS = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt")


@cache
def _listing(path: Path) -> tuple[tuple[Path, int], ...]:
    """Files and their sizes. Walked once a process, since a start asks several times."""
    if path.is_file():
        found = [path] if path.name.endswith(LOCAL_KINDS) else []
    else:
        found = sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and file.name.endswith(LOCAL_KINDS)
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
    return tuple((file, file.stat().st_size) for file in found)


def forget_files() -> None:
    """Look again when next asked."""
    _listing.cache_clear()


def local_files(path: Path) -> list[Path]:
    """Files of a known kind at or below `path`, sorted, without hidden files and folders."""
    return [file for file, _ in _listing(path)]


def check_texts(job_config: "JobConfig") -> None:
    """Refuse the text of training, or of validation, that there is not; as :func:`check_text`."""
    sections = {"training": job_config.training}
    if job_config.validation.enable:
        sections["validation"] = job_config.validation
    for name, section in sections.items():
        check_text(name, section.dataset.lower(), section.dataset_path)


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
        raise ValueError(
            f"{key} = {dataset_path!r}: no such file, or no {', '.join(LOCAL_KINDS)} in it"
        )
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
    sizes = {file.relative_to(root).as_posix(): size for file, size in _listing(path)}
    digest = hashlib.sha256(repr(sorted(sizes.items())).encode()).hexdigest()
    return f"{len(sizes)} files of {sum(sizes.values()):,} bytes, {digest[:12]}"
