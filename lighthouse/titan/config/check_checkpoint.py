"""Checks of what is saved and loaded, before there is a checkpoint to look at."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

STATES = ("model", "optimizer", "lr_scheduler", "dataloader", "train_state")
"""What a checkpoint consists of."""

NONFINITE = "nonfinite"
ACCEPTABLE = {
    "lr_scheduler": "the learning rate: optimizer.lr, [lr_scheduler], lr_factor and warmup_steps",
    "optimizer": "the rest of [optimizer]",
    "data": "the text, its order and weights, and who reads it",
    "tokenizer": "the tokenizer",
    "attention": "[lighthouse], and the attention of stages",
    "model": "what [model.args] may change without other weights",
    "training": "all else: batch, length, clipping, precision, seed",
    NONFINITE: "values of weights that are not finite, in the weights that had some when loaded",
}
"""What ``checkpoint.accept_changes`` may name, and what each stands for."""


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
    accepted = job_config.checkpoint.accept_changes
    unknown = [name for name in accepted if name not in ACCEPTABLE]
    if unknown:
        raise ValueError(
            f"checkpoint.accept_changes = {accepted}: there is no {', '.join(map(repr, unknown))}, "
            f"but {', '.join(ACCEPTABLE)}"
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
