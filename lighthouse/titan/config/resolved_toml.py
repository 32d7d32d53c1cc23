"""The configuration a run really has, as a TOML in its folder, and those that it had before."""

import shlex
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch.distributed as dist

from lighthouse.runs.files import write_atomic
from lighthouse.runs.folder import CONFIGS_FOLDER, RESOLVED_FILE
from lighthouse.toml_types import read_toml

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def write_resolved(job_config: "JobConfig", step: int | None) -> None:
    """Write ``<dump_folder>/config.toml``, on rank 0 and in one move.

    And the same under ``configs/``, where that of every attempt is kept; one that is as the attempt
    before had it is not written again.

    Args:
        step: of the checkpoint that the attempt goes on from; None if it begins.
    """
    if dist.get_rank() != 0:
        return
    folder = Path(job_config.job.dump_folder)
    kept = folder / CONFIGS_FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    command = shlex.join(sys.argv).replace("\n", " ")
    values = to_toml(job_config)
    text = f"{_HEAD} {command}\n{values}"
    before = sorted(file for file in kept.glob("*.toml") if file.stem.isdecimal())
    if not before or _read(before[-1]) != tomllib.loads(values):
        number = 1 + (int(before[-1].stem) if before else 0)
        since = "from the start" if step is None else f"after step {step}"
        write_atomic(kept / f"{number:04d}.toml", f"# In use {since}.\n{text}")
    write_atomic(folder / RESOLVED_FILE, text)


def _read(file: Path) -> dict[str, Any] | None:
    """None where it is damaged, so that it is another one than any."""
    try:
        return read_toml(file)
    except ValueError:
        return None


def check_resolved(file: Path) -> None:
    """Refuse a ``config.toml`` that is damaged: what is cut off would be the default's silently.

    Raises:
        ValueError: it is no TOML, or lacks the section that `to_toml` writes last.
    """
    values = _read(file)
    written_here = values is not None and file.read_text(encoding="utf-8").startswith(_HEAD)
    if not values or (written_here and _LAST_SECTION not in values):
        raise ValueError(
            f"{file} is damaged, empty or cut; copy the newest one of "
            f"{file.parent / CONFIGS_FOLDER} to it, which is what the run had"
        )


_HEAD = "# The resolved configuration of:"
_LAST_SECTION = "debug"


def to_toml(job_config: "JobConfig") -> str:
    """Every value of a merged configuration; read again, it gives the same configuration.

    ``job.config_file`` is left out: it says where values came from. TOML has no null: where None is
    the default, it is left out, and ``context_parallel_load_balancer`` has a word for it.
    """
    values = _without_none(job_config.to_dict())
    values["job"].pop("config_file", None)
    if job_config.lr_scheduler.decay_from_stage is not None:
        values["lr_scheduler"].pop("decay_ratio", None)  # which follows from it
    values["parallelism"].setdefault("context_parallel_load_balancer", "none")
    return tomli_w.dumps(values)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
