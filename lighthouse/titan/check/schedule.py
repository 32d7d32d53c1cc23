"""Schedules of the learning rate that upstream would cut, with a warning, to another than asked."""

from typing import TYPE_CHECKING

from lighthouse.titan.config.stages import Stages

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def check_schedule(job_config: "JobConfig") -> None:
    """Refuse parts of a run's schedule that do not fit into each other.

    Raises:
        ValueError: naming the keys, the values they got and what would do.
    """
    schedule, steps = job_config.lr_scheduler, job_config.training.steps
    if schedule.total_steps is not None and schedule.total_steps < steps:
        raise ValueError(
            f"lr_scheduler.total_steps = {schedule.total_steps}: the schedule would end before "
            f"training.steps = {steps}, and has no learning rate after it; use {steps} or more, or "
            "fewer steps"
        )
    # A default that nobody has set upstream cuts and says so.
    warmup, total = schedule.warmup_steps, schedule.total_steps
    if total is not None and warmup > total and warmup != type(schedule)().warmup_steps:
        raise ValueError(
            f"lr_scheduler.warmup_steps = {warmup}: the schedule ends before, at "
            f"lr_scheduler.total_steps = {total}, and never has optimizer.lr; use {total} or "
            "fewer, or a longer schedule"
        )
    _check_decay(job_config)
    _check_warmups(job_config)


def _check_decay(job_config: "JobConfig") -> None:
    """A decay begins where it was asked to; one over all steps, behind the warmup."""
    schedule = job_config.lr_scheduler
    ratio, warmup = schedule.decay_ratio, schedule.warmup_steps
    if ratio is None or ratio == 1:
        return
    total = schedule.total_steps or job_config.training.steps
    steps = round(total * ratio)  # as upstream has it
    # The warmup of a short try takes all of it, and upstream says so.
    if not steps or warmup >= total or warmup + steps <= total:
        return
    before = total - steps
    if schedule.decay_from_stage is not None:
        asked, later = f"lr_scheduler.decay_from_stage = {schedule.decay_from_stage}", "later stage"
    else:
        asked, later = f"lr_scheduler.decay_ratio = {ratio} of {total} steps", "smaller ratio"
    raise ValueError(
        f"{_warmup(job_config)}: {asked} begins the decay behind step {before}, within the warmup; "
        f"use {before} or fewer, or a {later}"
    )


def _check_warmups(job_config: "JobConfig") -> None:
    """A stage's warmup is a line: it does not begin while the run's own still rises."""
    run = job_config.lr_scheduler.warmup_steps
    for stage in Stages.of(job_config):
        own, before = stage.table.get("warmup_steps", 0), stage.first - 1
        if own and run > before:
            raise ValueError(
                f"stages.{stage.number}.warmup_steps = {own}: {_warmup(job_config)} is not over "
                f"before that stage, and two warmups at once are no line; set "
                f"lr_scheduler.warmup_steps to at most {before}, or leave the stage's out"
            )


def _warmup(job_config: "JobConfig") -> str:
    """The run's warmup as messages name it; the default may be in no file."""
    schedule = job_config.lr_scheduler
    default = " (the default)" if schedule.warmup_steps == type(schedule)().warmup_steps else ""
    return f"lr_scheduler.warmup_steps = {schedule.warmup_steps}{default}"
