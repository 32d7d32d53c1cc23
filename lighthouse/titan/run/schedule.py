"""The learning rate of a run with stages: upstream's schedule, and what each stage makes of it."""

from collections.abc import Callable
from typing import Any

from lighthouse.titan.config.stages import Stages

Factor = Callable[[int], float]
"""Of the learning rate, by the number of steps that are done."""


def staged(schedule: Factor, stages: Stages) -> Factor:
    """A schedule times each stage's ``lr_factor``, reached in its ``warmup_steps``.

    A warmup goes in a line from the rate of the last step before the stage, or from zero, to what
    the stage has at each of its steps.
    """

    def factor(done: int) -> float:
        stage = stages.at(done + 1)
        target = schedule(done) * stage.table.get("lr_factor", 1.0)
        warmup, into = stage.table.get("warmup_steps", 0), done + 1 - stage.first
        if into >= warmup:
            return target
        before = factor(stage.first - 2) if stage.first > 1 else 0.0
        return before + (target - before) * (into + 1) / warmup

    return factor


def follow_stages(lr_schedulers: Any, stages: Stages) -> None:
    """Let torchtitan's just built schedulers follow the stages.

    The factor is a function of the step, so that nothing more has to be kept in a checkpoint.
    """
    if not any({"lr_factor", "warmup_steps"} & stage.table.keys() for stage in stages):
        return
    for scheduler in lr_schedulers:
        scheduler.lr_lambdas = [staged(schedule, stages) for schedule in scheduler.lr_lambdas]
        rates = [
            base * factor(0)
            for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
