"""Values of a job's configuration that TOML can't hold, in which the run's is written down."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

_WHOLE = 1 << 63


def check_written(job_config: "JobConfig") -> None:
    """Refuse whole numbers that TOML does not have, and text that is not UTF-8.

    Raises:
        ValueError: naming the key.
    """
    tables = [(f"stages.{n}", table) for n, table in enumerate(job_config.stages, start=1)]
    sections = [
        (field.name, vars(section))
        for field in dataclasses.fields(job_config)
        if dataclasses.is_dataclass(section := getattr(job_config, field.name))
    ]
    for name, values in (*tables, *sections):
        for key, value in values.items():
            if isinstance(value, int) and not -_WHOLE <= value < _WHOLE:
                raise ValueError(
                    f"{name}.{key} = {value}: must be a whole number of 64 bits, so below 2 ** 63"
                )
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str) and not _is_utf8(text):
                    raise ValueError(
                        f"{name}.{key} = {text!r}: is not UTF-8, which the run's config.toml is; "
                        "rename what it names, or give another one"
                    )


def _is_utf8(text: str) -> bool:
    """Bytes that are not UTF-8 come from a command line as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
