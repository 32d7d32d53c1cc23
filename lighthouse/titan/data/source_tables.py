"""``training.sources``: which local texts a run mixes, and in which shares.

torchtitan's ``JobConfig`` imports this module, so it must not import torchtitan.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lighthouse.toml_types import check_toml_types

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

SourceTables = Annotated[list[dict[str, Any]], tyro.conf.Fixed]
"""Of a TOML alone: tyro would have flags for the items of the default, of which there are none."""


_MOST = 1e30  # the sum of as many as anybody writes is finite
_LEAST_SHARE = 1e-15


@dataclass
class Source:
    """A table of ``training.sources``."""

    path: str = ""
    """A folder or a file; required"""

    weight: float = 1.0
    """Its share of the tokens, in any unit"""

    text: str = "text"
    """The parquet column, or the key of a JSON line; unset: as training.dataset_text"""


def sources_of(job_config: "JobConfig") -> list[Source]:
    """Those of a job, in order; empty where ``training.dataset_path`` is all its text.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    training = job_config.training
    sources: list[Source] = []
    for number, table in enumerate(training.sources, start=1):
        key = f"training.sources.{number}."
        check_toml_types(Source, table, key)
        source = Source(**{"text": training.dataset_text, **table})
        if not source.path:
            raise ValueError(f"{key}path: is missing; name a folder or a file")
        if not source.text:
            raise ValueError(f'{key}text = "": name the column, such as "text"')
        if not 0 < source.weight < _MOST:
            raise ValueError(f"{key}weight = {source.weight}: must be above 0 and below {_MOST:g}")
        real = os.path.realpath(source.path)
        if any(os.path.realpath(other.path) == real for other in sources):
            raise ValueError(f"{key}path = {source.path!r}: is a source already; raise its weight")
        sources.append(source)
    _check_shares(sources)
    return sources


def _check_shares(sources: list[Source]) -> None:
    """A source has its first document when the tokens given, times its share, are as many."""
    total = sum(source.weight for source in sources)
    for number, source in enumerate(sources, start=1):
        if (share := source.weight / total) < _LEAST_SHARE:
            raise ValueError(
                f"training.sources.{number}.weight = {source.weight}: is a share of {share:g}, of "
                f"which no run would read a document; use {_LEAST_SHARE * total:g} or more, or "
                "leave the source out"
            )
