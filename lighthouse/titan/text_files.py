"""Which files are the text of the "local" dataset, and whether they are the same as before."""

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


def text_identity(dataset: str, dataset_path: str | None) -> str | None:
    """What a place in local text belongs to: names and sizes of its files, wherever they are.

    None for other datasets, which are what their name says.
    """
    if dataset.lower() != "local" or dataset_path is None:
        return None
    root = Path(dataset_path)
    sizes = {file.relative_to(root).as_posix(): file.stat().st_size for file in local_files(root)}
    digest = hashlib.sha256(repr(sorted(sizes.items())).encode()).hexdigest()
    return f"{len(sizes)} files of {sum(sizes.values()):,} bytes, {digest[:12]}"
