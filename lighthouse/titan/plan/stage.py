"""What one stage of a planned run takes: of its cost, the figures that people ask for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lighthouse.cost.memory import GIB
from lighthouse.cost.rates import Rates
from lighthouse.cost.step import Cost
from lighthouse.titan.config.stages import Stage


@dataclass(frozen=True)
class PlannedStage:
    """What a stage would take; None for what is not estimated.

    Attributes:
        name: its attention; ``"all dense"`` for the run with every layer dense in each stage.
        steps: optimizer steps.
        seq_len, tokens_per_step: over all GPUs.
        flops_per_token: by torchtitan's conventions.
        step_seconds: of one optimizer step.
        tokens_per_second: of one GPU.
        mfu: its share of the device's peak, by torchtitan's conventions.
        memory_gib: largest at a time, of one GPU.
        host_gib: of a node, for what its GPUs offload.
        largest_local_batch: sequences of a micro-batch that would fit; 0 for none.
        hours: of all steps.
        seconds_by_part, gib_by_part: what the two consist of.
    """

    name: str
    steps: int
    seq_len: int
    tokens_per_step: int
    flops_per_token: int | None
    step_seconds: float | None
    tokens_per_second: float | None
    mfu: float | None
    memory_gib: float | None
    host_gib: float | None
    largest_local_batch: int | None
    hours: float | None
    seconds_by_part: dict[str, float]
    gib_by_part: dict[str, float]


def planned_stage(
    stage: Stage,
    tokens: int,
    flops: int | None,
    estimate: Cost | None,
    largest: int | None,
    gpus: int,
    rates: Rates | None,
) -> PlannedStage:
    """A stage's figures.

    Args:
        stage: of the run.
        tokens, flops: of an optimizer step over all GPUs; of a token, or None.
        estimate, largest: its cost and the largest micro-batch, or None where nothing is estimated.
        gpus: in all.
        rates: of one of them.
    """
    known = stage.attention, stage.steps, stage.seq_len, tokens, flops
    if estimate is None or rates is None or flops is None:
        return PlannedStage(*known, None, None, None, None, None, None, None, {}, {})
    speed = tokens / gpus / estimate.step_seconds
    return PlannedStage(
        *known,
        step_seconds=estimate.step_seconds,
        tokens_per_second=speed,
        mfu=speed * flops / rates.peak,
        memory_gib=estimate.peak_bytes / GIB,
        host_gib=estimate.host_bytes * min(gpus, rates.node) / GIB,
        largest_local_batch=largest,
        hours=stage.steps * estimate.step_seconds / 3600,
        seconds_by_part=estimate.seconds,
        gib_by_part={part: size / GIB for part, size in estimate.memory.items()},
    )


def lasting(stage: PlannedStage, tokens: int) -> PlannedStage:
    """The stage with dense attention, for as many tokens."""
    steps = round(tokens / stage.tokens_per_step)
    seconds = stage.step_seconds
    hours = None if seconds is None else tokens / stage.tokens_per_step * seconds / 3600
    return replace(stage, name="all dense", steps=steps, hours=hours)


def misfits(stages: Sequence[PlannedStage], parts: Sequence[str], limit: float) -> tuple[str, ...]:
    """Which stages don't fit into ``limit`` GiB, a sentence each that ends with ``parts``'."""
    return tuple(
        f"stage {number}, {stage.name}: {stage.memory_gib:.1f} GiB do not fit the device's "
        f"{limit:.1f} GiB, by {stage.memory_gib - limit:.1f} GiB; {part}"
        for number, (stage, part) in enumerate(zip(stages, parts, strict=True), start=1)
        if stage.memory_gib is not None and stage.memory_gib > limit
    )
