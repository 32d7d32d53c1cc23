"""Numbers of a job's configuration that would train nothing, or end deep inside the trainer."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def check_numbers(job_config: "JobConfig") -> None:
    """Refuse numbers without a sense, of the sections in use.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    for key in _at_least_one(job_config):
        section, name = key.split(".")
        value = getattr(getattr(job_config, section), name)
        if value < 1:
            raise ValueError(f"{key} = {value}: must be at least 1")
    rate = job_config.training.task_rate
    if not 0 <= rate < 1:
        raise ValueError(f"training.task_rate = {rate}: must be at least 0 and below 1")
    if job_config.training.nonfinite == "skip" and job_config.optimizer.early_step_in_backward:
        raise ValueError(
            "training.nonfinite = 'skip': optimizer.early_step_in_backward = true updates weights "
            "before the gradient norm is known; use 'stop', or no early step"
        )
    _check_schedule(job_config)
    checkpoint, profiling = job_config.checkpoint, job_config.profiling
    if checkpoint.enable and checkpoint.keep_latest_k == 1:
        raise ValueError(
            "checkpoint.keep_latest_k = 1: must be at least 2, since one is being written while "
            "another is deleted, or 0 to keep all"
        )
    traced = profiling.profiler_warmup + profiling.profiler_active
    if profiling.enable_profiling and profiling.profile_freq < traced:
        raise ValueError(
            f"profiling.profile_freq = {profiling.profile_freq}: must be at least {traced}, the "
            "steps of profiling.profiler_warmup and profiling.profiler_active"
        )


def _at_least_one(job_config: "JobConfig") -> list[str]:
    keys = ["training.steps", "training.seq_len", "training.local_batch_size", "training.gc_freq"]
    keys.append("metrics.log_freq")
    if job_config.checkpoint.enable and not job_config.checkpoint.load_only:
        keys.append("checkpoint.interval")
    if job_config.validation.enable:
        keys += ["validation.freq", "validation.seq_len", "validation.local_batch_size"]
    return keys


def _check_schedule(job_config: "JobConfig") -> None:
    lr, schedule, steps = (
        job_config.optimizer.lr,
        job_config.lr_scheduler,
        job_config.training.steps,
    )
    if not math.isfinite(lr) or lr < 0:
        raise ValueError(f"optimizer.lr = {lr}: must be a finite number, zero or more")
    if schedule.warmup_steps < 0:
        raise ValueError(
            f"lr_scheduler.warmup_steps = {schedule.warmup_steps}: must be zero or more"
        )
    if schedule.total_steps is not None and schedule.total_steps < steps:
        raise ValueError(
            f"lr_scheduler.total_steps = {schedule.total_steps}: the schedule would end before "
            f"training.steps = {steps}, and has no learning rate after it; use {steps} or more, or "
            "fewer steps"
        )
