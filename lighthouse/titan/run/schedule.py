"""The learning rate of a run with stages: upstream's schedule, and what each stage makes of it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lighthouse.titan.config.stages import Stages

Factor = Callable[[int], float]
"""Of the learning rate, by the number of steps that are done."""


def factors(section: Mapping[str, Any], steps: int) -> list[float]:
    """What upstream's schedule multiplies the learning rate by, at each of the first steps.

    Args:
        section: the values of ``[lr_scheduler]``, with a number for ``total_steps``.
    """
    # Not imported above: these take seconds, or import this package.
    from torch import nn, optim
    from torchtitan.components.lr_scheduler import build_lr_schedulers
    from torchtitan.config.job_config import LRScheduler

    nothing: Any = [optim.SGD([nn.Parameter()], lr=1.0)]
    built = build_lr_schedulers(nothing, LRScheduler(**section), section["total_steps"])
    factor = built.schedulers[0].lr_lambdas[0]
    return [factor(done) for done in range(steps)]


def staged(schedule: Factor, stages: Stages, done: int) -> float:
    """A schedule times the present stage's ``lr_factor``, reached in its ``warmup_steps``.

    A warmup goes in a line from the rate of the last step before the stage, or from zero, to what
    the stage has at each of its steps.
    """
    stage = stages.at(done + 1)
    target = schedule(done) * stage.table.get("lr_factor", 1.0)
    warmup, into = stage.table.get("warmup_steps", 0), done + 1 - stage.first
    if into >= warmup:
        return target
    before = staged(schedule, stages, stage.first - 2) if stage.first > 1 else 0.0
    return before + (target - before) * (into + 1) / warmup


def follow_stages(lr_schedulers: Any, stages: Stages) -> None:
    """Let torchtitan's just built schedulers follow the stages.

    The factor is a function of the step, so that nothing more has to be kept in a checkpoint.
    """
    if not stages.listed:
        return
    for scheduler in lr_schedulers:
        # Partial functions, as upstream's: of those a checkpoint holds nothing.
        scheduler.lr_lambdas = [
            partial(staged, schedule, stages) for schedule in scheduler.lr_lambdas
        ]
    set_rates(lr_schedulers)


def set_rates(lr_schedulers: Any) -> None:
    """Set the rates of the next step.

    A checkpoint has them as the schedule was when it was written, which may differ now.
    """
    for scheduler in lr_schedulers:
        rates = [
            base * factor(scheduler.last_epoch)
            for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
