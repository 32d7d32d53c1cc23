"""The configuration a run really has, as a TOML in its folder."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch.distributed as dist

from lighthouse.runs.files import write_atomic
from lighthouse.runs.folder import RESOLVED_FILE

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def write_resolved(job_config: "JobConfig") -> None:
    """Write ``<dump_folder>/config.toml``, on rank 0 and in one move."""
    if dist.get_rank() != 0:
        return
    folder = Path(job_config.job.dump_folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(sys.argv).replace("\n", " ")
    text = f"# The resolved configuration of: {command}\n{to_toml(job_config)}"
    write_atomic(folder / RESOLVED_FILE, text)


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
