"""Which text a job names: whether it is there, and whether it is the same as before."""

import hashlib
from pathlib import Path

LOCAL_KINDS = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt")


def local_files(path: Path) -> list[Path]:
    """Files of a known kind at or below `path`, sorted, without hidden files and folders."""
    if path.is_file():
        return [path] if path.name.endswith(LOCAL_KINDS) else []
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.name.endswith(LOCAL_KINDS)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
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
    sizes = {file.relative_to(root).as_posix(): file.stat().st_size for file in local_files(path)}
    digest = hashlib.sha256(repr(sorted(sizes.items())).encode()).hexdigest()
    return f"{len(sizes)} files of {sum(sizes.values()):,} bytes, {digest[:12]}"
