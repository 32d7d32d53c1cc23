"""Whether the text that a job names is there, and is text: seen without reading it through."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lighthouse.titan.data.file_checks import WrongColumn, check_file
from lighthouse.titan.data.rows import BadRow, Block, read_rows
from lighthouse.titan.data.source_tables import sources_of
from lighthouse.titan.data.text_files import READ, kind_of, local_files

if TYPE_CHECKING:
    from torchtitan.config import JobConfig
    from torchtitan.config.job_config import Training, Validation


def check_texts(job_config: "JobConfig") -> None:
    """Refuse the text of training, or of validation, that there is not; as :func:`check_text`.

    Local text is looked at, as by :func:`check_files`.
    """
    training = job_config.training
    if training.sources:
        _check_sources(job_config)
    else:
        _check_section("training", training)
    _check_order(training)
    if job_config.validation.enable:
        _check_section("validation", job_config.validation)


def _check_section(name: str, section: "Training | Validation") -> None:
    dataset = section.dataset.lower()
    column, bad_rows = section.dataset_text, section.dataset_bad_rows
    check_text(name, dataset, section.dataset_path, f"{name}.dataset_path")
    _check_reading(name, dataset, column, bad_rows)
    if dataset == "local":
        path = str(section.dataset_path)
        check_files(f"{name}.dataset_path", path, column, bad_rows == "skip")


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
        skip_bad = training.dataset_bad_rows == "skip"
        check_files(f"training.sources.{number}.path", source.path, source.text, skip_bad)


def _check_order(training: "Training") -> None:
    """Refuse an order of text that can't be put into one, and a seed that no order follows."""
    for key, default in (("dataset_order", "files"), ("dataset_seed", 0)):
        value = getattr(training, key)
        if value != default and training.dataset.lower() != "local":
            raise ValueError(
                f"training.{key} = {value!r}: is for local text alone, and training.dataset = "
                f"{training.dataset!r}; leave it out"
            )
    if training.dataset_seed != 0 and training.dataset_order != "shuffled":
        raise ValueError(
            f"training.dataset_seed = {training.dataset_seed}: is for a shuffled order alone, and "
            f"training.dataset_order = {training.dataset_order!r}; leave it out, or set "
            "training.dataset_order = 'shuffled'"
        )


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
    try:
        files = local_files(Path(path))
    except OSError as error:
        raise ValueError(
            f"{key} = {path!r}: {error.filename} can't be read ({error.strerror}); name "
            "another, or make it readable"
        ) from error
    if not files:
        found = f"holds no {READ}" if Path(path).exists() else "no such file or folder"
        raise ValueError(f"{key} = {path!r}: {found}")


def check_files(key: str, path: str, column: str, skip_bad: bool) -> list[Path]:
    """The files of local text, each looked at: its format, its column, and its first line.

    Args:
        key: that named the path, for messages.
        column: of parquet, and the key of a line's object, that holds the text.
        skip_bad: rows that are no text are passed over.

    Raises:
        ValueError: a file that is damaged or no text, a wrong column, a first line that is none, or
            no text in any of them; names the key, the path and the file.
    """
    check_path(key, path)
    files = local_files(Path(path))
    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(partial(check_file, column=column), files))
            if not skip_bad:
                bad_rows = pool.map(partial(_first_bad_row, column=column), files)
                bad = next((row for row in bad_rows if row is not None), None)
                if bad is not None:
                    raise ValueError(refused_row(bad, key))
        _check_any_text(files, column)
    except WrongColumn as error:
        raise ValueError(f"{key} = {path!r}: {error}; {_name_column(key)}") from error
    except ValueError as error:
        raise ValueError(f"{key} = {path!r}: {error}") from error
    return files


@cache
def _first_bad_row(file: Path, column: str) -> BadRow | None:
    """The first line of JSON, if it is no text; once a process.

    Rows of parquet have passed :func:`check_file`, and a ``.txt`` is text.
    """
    if kind_of(file) in (".parquet", ".txt"):
        return None
    row, _ = next(read_rows(Block(file), column, lambda: None), (None, 0))
    return row if isinstance(row, BadRow) else None


def refused_row(row: BadRow, key: str) -> str:
    """The sentence that a row is refused with.

    Args:
        key: that named the path.
    """
    if _is_option(key):
        return f"{row}; mend it, or name other files"
    ways = ["mend it", *([_name_column(key)] if row.lacks_column else [])]
    section = key.partition(".")[0]
    return (
        f'{row}; {", ".join(ways)}, or pass over such rows by {section}.dataset_bad_rows = "skip"'
    )


def _is_option(key: str) -> bool:
    """Whether a command's option named the path: it has no others for what is in the files."""
    return key.startswith("--")


def _name_column(key: str) -> str:
    """How to name the column that holds the text of a path that a key names."""
    if _is_option(key):
        return "name other files"
    text_key = key.removesuffix("path") + "text" if key.endswith("path") else "--text"
    return f"name the one that holds the text by {text_key}"


def _check_any_text(files: list[Path], column: str) -> None:
    bad = None
    for file in files:
        for row, _ in read_rows(Block(file), column, lambda: None):
            if isinstance(row, BadRow):
                bad = bad or row
            elif row:
                return
    if bad is None:
        raise ValueError(
            "there is no text in any of its files, or nothing but empty ones; name others"
        )
    sentence = f"there is no text in any of its files: {bad}"
    raise WrongColumn(sentence) if bad.lacks_column else ValueError(f"{sentence}; name others")
