"""Checks of what is saved and loaded, and which checkpoint that is; none is read."""

from pathlib import Path
from typing import TYPE_CHECKING

from lighthouse.runs.folder import finished_steps, is_finished
from lighthouse.titan.checkpoint.settings import ACCEPTABLE
from lighthouse.toml_types import spelled

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

STATES = ("model", "optimizer", "lr_scheduler", "dataloader", "train_state")
"""What a checkpoint consists of."""


def check_checkpoint(job_config: "JobConfig") -> None:
    """Refuse what could not be loaded, or would be loaded by halves.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    folder = job_config.checkpoint.folder
    if Path(folder).name != folder or folder == ".." or not folder.strip():
        raise ValueError(
            f"checkpoint.folder = {folder!r}: must be the name of a folder in job.dump_folder, "
            "which one trainer has for itself, such as 'checkpoint'; for another disk make it a "
            "link"
        )
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
    if job_config.checkpoint.enable:
        _check_start(job_config)
    else:
        _check_nothing_to_load(job_config)


def _check_nothing_to_load(job_config: "JobConfig") -> None:
    """Without checkpoints a run begins at random: refuse one that says or seems to go on."""
    config = job_config.checkpoint
    for key, unset in (
        ("initial_load_in_hf", False),
        ("initial_load_path", None),
        ("load_step", -1),
    ):
        value = getattr(config, key)
        if value != unset:
            raise ValueError(
                f"checkpoint.{key} = {spelled(value)}: nothing is loaded with checkpoint.enable = "
                "false; set it to true"
            )
    folder = Path(job_config.job.dump_folder) / config.folder
    if steps := finished_steps(folder):
        raise ValueError(
            f"checkpoint.enable = false: {folder} holds the finished checkpoints {steps}, and the "
            "run would begin anew in their folder; set it to true to go on, or use another "
            "job.dump_folder"
        )


def _check_start(job_config: "JobConfig") -> None:
    """The checkpoint to begin with, or to go on from, is there."""
    config = job_config.checkpoint
    folder = Path(job_config.job.dump_folder) / config.folder
    steps = finished_steps(folder)
    if config.create_seed_checkpoint and steps and steps[-1] > 0:
        raise ValueError(
            f"checkpoint.create_seed_checkpoint = true: {folder} holds the finished checkpoints "
            f"{steps} of a run that has begun; use another job.dump_folder"
        )
    if config.load_step != -1:
        if not is_finished(folder / f"step-{config.load_step}"):
            raise ValueError(
                f"checkpoint.load_step = {config.load_step}: no such finished checkpoint in "
                f"{folder}; finished are {steps or 'none'}"
            )
        if config.load_step < steps[-1]:
            later = [step for step in steps if step > config.load_step]
            raise ValueError(
                f"checkpoint.load_step = {config.load_step}: {folder} also holds steps {later}, "
                "and the next restart would load those; move them away, or branch off into "
                "another job.dump_folder with checkpoint.initial_load_path"
            )
    if steps:
        return
    _check_alone(Path(job_config.job.dump_folder), folder)
    if not config.initial_load_path or config.initial_load_in_hf:
        return
    path = Path(config.initial_load_path)
    if not is_finished(path):
        inside = finished_steps(path)
        hint = f"; use {path / f'step-{inside[-1]}'}" if inside else "; it names a step-N folder"
        raise ValueError(
            f"checkpoint.initial_load_path = {config.initial_load_path!r}: is not a finished "
            f"checkpoint{hint}"
        )


def _check_alone(dump_folder: Path, folder: Path) -> None:
    """No run that has begun has its checkpoints beside the folder for those of a new one."""
    for other in sorted(dump_folder.iterdir()) if dump_folder.is_dir() else []:
        if other.is_dir() and other != folder and any(steps := finished_steps(other)):
            raise ValueError(
                f"checkpoint.folder = {folder.name!r}: has no checkpoint, and {other} holds the "
                f"finished ones {steps}: the run would begin anew beside them; set "
                f"it to {other.name!r} to go on, or use another job.dump_folder"
            )
