"""Which two runs are the same: what is trained, on how many processes.

An identity is made of the values that differ from their defaults, so that a key that the trainer
gains leaves finished runs what they are. A default that changes does not: raise ``VERSION`` then.
"""

import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lighthouse.runs.folder import RESOLVED_FILE
from lighthouse.toml_types import under_dotted_keys

VERSION = 2

# Where a run lives, how it is called and watched, how often it is saved, and what it went on with.
_NOT_TRAINED = (
    *("job.", "metrics.", "profiling.", "comm."),
    *("checkpoint.interval", "checkpoint.keep_latest_k", "checkpoint.async_mode"),
    "checkpoint.accept_changes",
    *("lighthouse.validate_dense", "lighthouse.validate_leak", "lighthouse.selection_log_freq"),
    "training.rehearse_stages",
)
_BUT = "job.custom_config_module"

# What runs of the first version did where their configuration has no such key.
_FIRST_VERSION = {"lighthouse.selection": "published", "training.dataset_seed": 0}

Values = dict[str, Any]
"""A resolved configuration under dotted keys."""


def values_of(config_toml: str) -> Values:
    """The values of a resolved configuration that decide what is trained."""
    flat = under_dotted_keys(tomllib.loads(config_toml))
    return {k: v for k, v in flat.items() if k == _BUT or not k.startswith(_NOT_TRAINED)}


def identity(values: Values, defaults: Values, processes: int) -> str:
    """Hash of the values that are not their defaults, and of the number of processes."""
    differing = {k: v for k, v in values.items() if k not in defaults or defaults[k] != v}
    text = json.dumps([VERSION, differing, processes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def is_first_versions(
    folder: Path, record: Mapping[str, Any], values: Values, processes: int, named: Collection[str]
) -> bool:
    """Whether a folder of the first version, which hashed every default, is of the same run.

    Args:
        folder: with the configuration that it was made with.
        record: its ``run.json``.
        values, processes: of the run that is looked for.
        named: keys that this run's sweep sets. Others that the folder does not know are newer than
            it, and no reason to train it again.
    """
    if record.get("version", 1) != 1 or record["processes"] != processes:
        return False
    file = folder / RESOLVED_FILE
    if not file.is_file():
        return False
    was = values_of(file.read_text(encoding="utf-8"))
    newer = {key: _FIRST_VERSION.get(key) for key in values if key not in was}
    return all(values.get(key) == value for key, value in was.items()) and all(
        values[key] == value for key, value in newer.items() if key in named
    )
