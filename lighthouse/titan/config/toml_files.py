"""TOML files that extend another one: ``[job] extends = "base.toml"``, relative to the file itself.

``extends`` is a directive of the file, not a key of the configuration: it is taken out on reading.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lighthouse.toml_types import check_toml_types, read_toml

Layer = tuple[Path, dict[str, Any]]
"""A file and what stands in it, without ``extends``."""


def read_layers(file: str | Path) -> list[Layer]:
    """The file and all that it extends, the base first.

    Raises:
        ValueError: a file that does not exist, a cycle, or text that is not TOML; names the file.
    """
    layers: list[Layer] = []
    path: Path | None = Path(file)
    while path is not None:
        if any(path.resolve() == seen.resolve() for seen, _ in layers):
            chain = " -> ".join(str(p) for p in (*(seen for seen, _ in layers), path))
            raise ValueError(f"job.extends: files extend each other in a circle: {chain}")
        values = _read(path)
        base = _take_extends(path, values)
        layers.append((path, values))
        path = base
    return layers[::-1]


def merge(layers: Sequence[Layer]) -> dict[str, Any]:
    """Tables merged key by key, later layers over earlier ones; any other value is replaced."""
    merged: dict[str, Any] = {}
    for _, values in layers:
        merged = _merge(merged, values)
    return merged


def check_layers(config_cls: type, layers: Sequence[Layer]) -> None:
    """Check the keys and types of each file on its own.

    Raises:
        ValueError: naming the key, the value, what it should be, and the file.
    """
    for file, values in layers:
        try:
            check_toml_types(config_cls, values)
        except ValueError as error:
            raise ValueError(f"{error} (in {file})") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except OSError as error:
        raise ValueError(
            f"job.config_file = {str(path)!r}: can't be read ({error.strerror}); name a TOML file, "
            "such as train_configs/quickstart.toml"
        ) from None


def _take_extends(path: Path, values: dict[str, Any]) -> Path | None:
    if "extends" in values:
        raise ValueError(
            f"extends = {values['extends']!r}: is job.extends, write it below [job] (in {path})"
        )
    job = values.get("job")
    if not isinstance(job, dict) or "extends" not in job:
        return None
    extends = job.pop("extends")
    if not isinstance(extends, str):
        raise ValueError(
            f"job.extends = {extends!r}: must be one path, relative to the file (in {path})"
        )
    base = path.parent / extends
    if not os.path.isfile(base):  # which raises for no name
        raise ValueError(f"job.extends = {extends!r}: there is no file {base} (in {path})")
    return base


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both_tables = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both_tables else value  # type: ignore[arg-type]
    return merged
