"""Checks of what is saved and loaded, before there is a checkpoint to look at."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

STATES = ("model", "optimizer", "lr_scheduler", "dataloader", "train_state")
"""What a checkpoint consists of."""


def check_checkpoint(job_config: "JobConfig") -> None:
    """Refuse what could not be loaded, or would be loaded by halves.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    excluded = job_config.checkpoint.exclude_from_loading
    unknown = [state for state in excluded if state not in STATES]
    if unknown:
        raise ValueError(
            f"checkpoint.exclude_from_loading = {excluded}: a checkpoint has no "
            f"{', '.join(map(repr, unknown))}, but {', '.join(STATES)}"
        )
    if "lr_scheduler" in excluded and "optimizer" not in excluded:
        raise ValueError(
            f"checkpoint.exclude_from_loading = {excluded}: without 'optimizer' the checkpoint's "
            "learning rate stays for a step while warmup restarts; exclude both or none"
        )
    if job_config.checkpoint.create_seed_checkpoint and not job_config.checkpoint.enable:
        raise ValueError(
            "checkpoint.create_seed_checkpoint = true: needs checkpoint.enable = true to save it"
        )
