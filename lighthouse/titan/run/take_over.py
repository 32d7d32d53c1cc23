"""What a loaded optimizer takes from the configuration instead of from the checkpoint."""

from typing import Any

from lighthouse.titan.run.schedule import set_rates

_NOT_TAKEN = ("params", "lr", "foreach", "fused", "capturable", "differentiable", "maximize")
"""The rate is the schedule's. The others are how to compute, which the loaded moments fit to."""

Settings = list[list[dict[str, Any]]]
"""Of each optimizer, of each of its groups of weights."""


def settings_of_groups(optimizers: Any) -> Settings:
    """The settings that torchtitan's optimizers were built with, before a checkpoint is loaded."""
    return [
        [{k: v for k, v in group.items() if k not in _NOT_TAKEN} for group in one.param_groups]
        for one in optimizers
    ]


def take_over(optimizers: Any, lr_schedulers: Any, settings: Settings) -> None:
    """Let loaded moments and counts go on under these settings.

    A checkpoint holds its own beside each group. Where they are the same, nothing changes.
    """
    for optimizer, groups in zip(optimizers, settings, strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(own)
    for scheduler in lr_schedulers:
        scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    set_rates(lr_schedulers)
