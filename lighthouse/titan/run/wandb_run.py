"""One Weights & Biases run for one run folder, however often training is restarted."""

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from lighthouse.runs.files import write_atomic

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

RUN_ID_FILE = "wandb_run_id"


def run_identity(job_config: "JobConfig") -> dict[str, str | None]:
    """The ``id`` and ``resume`` arguments of ``wandb.init``.

    The id is kept in ``<dump_folder>/wandb_run_id`` (one file a rank where all ranks log), so that
    a restart continues the run; offline too, where ``wandb sync`` joins the parts. ``WANDB_RUN_ID``
    and ``WANDB_RESUME`` come first. ``WANDB_RESUME_FROM`` and ``WANDB_FORK_FROM`` name a place in
    some run, which W&B takes in place of ``resume``: then nothing is kept.
    """
    explicit_id = os.getenv("WANDB_RUN_ID")
    if os.getenv("WANDB_RESUME_FROM") or os.getenv("WANDB_FORK_FROM"):
        return {"id": explicit_id, "resume": None}
    name = RUN_ID_FILE
    if job_config.metrics.save_for_all_ranks:
        name += f".rank{dist.get_rank()}"
    run_id = explicit_id or _kept_id(Path(job_config.job.dump_folder) / name)
    return {"id": run_id, "resume": os.getenv("WANDB_RESUME", "allow")}


def _kept_id(file: Path) -> str:
    if not file.exists():
        write_atomic(file, secrets.token_hex(8))
    return file.read_text()
