"""What every point of a sweep may spend: one stage makes up for what the others take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lighthouse.titan.plan.job import Plan
    from lighthouse.titan.plan.stage import PlannedStage


@dataclass
class Budget:
    """``[budget]`` of a sweep file.

    Attributes:
        hold: what is the same at every point as in the base: steps, tokens, or estimated hours of
            all GPUs.
        stage: whose steps make up for the others, from 1; unset: no budget.
    """

    hold: Literal["steps", "tokens", "gpu_hours"] = "steps"
    stage: int | None = None


_OF_A_STEP: "dict[str, Callable[[PlannedStage], float | None]]" = {
    "steps": lambda _: 1.0,
    "tokens": lambda stage: float(stage.tokens_per_step),
    "gpu_hours": lambda stage: stage.step_seconds,
}


def filled_steps(budget: Budget, base: "Plan", point: "Plan") -> int:
    """How many steps the filling stage has at a point: as many as the budget of the base allows.

    Raises:
        ValueError: no such stage, no estimate, or nothing left for it.
    """
    assert budget.stage is not None
    if not 1 <= budget.stage <= len(point.stages):
        raise ValueError(
            f"budget.stage = {budget.stage}: there are stages 1 to {len(point.stages)}"
        )
    filling = point.stages[budget.stage - 1]
    others = [stage for stage in point.stages if stage is not filling]
    left = _spent(budget, base.stages) - _spent(budget, others)
    steps = int(left / _a_step(budget, filling) + 1e-6)
    if steps < 1:
        raise ValueError(
            f"stages.{budget.stage}.steps: the other stages spend all {budget.hold} of the base; "
            "shorten them"
        )
    return steps


def _spent(budget: Budget, stages: "Sequence[PlannedStage]") -> float:
    return sum(stage.steps * _a_step(budget, stage) for stage in stages)


def _a_step(budget: Budget, stage: "PlannedStage") -> float:
    amount = _OF_A_STEP[budget.hold](stage)
    if amount is None:
        raise ValueError(
            f"budget.hold = {budget.hold!r}: these runs are not estimated; hold steps or tokens"
        )
    return amount
