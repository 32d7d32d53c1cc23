"""The stages of a run as its metrics tell them: what each took, and what happened at its start."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lighthouse.runs.means import mean_of
from lighthouse.runs.metrics import Record

# Counted in logged steps.
SPIKE_STEPS = 50
SMOOTH_STEPS = 10


@dataclass(frozen=True)
class StageReport:
    """Logged steps that are alike; None stands for what there is not (yet).

    Attributes:
        number: from 1, as the run counts; where it does not, among the stages that were logged.
        attention, seq_len: of its steps; 0 where older runs do not say their length.
        first_step, last_step: logged ones.
        logged: how many.
        unlogged_before: steps before the first that were not logged, of this stage or earlier ones.
        tokens: between them, the step before the first included where it was logged.
        seconds: of all its steps, as its clock says.
        tokens_per_second: median per device, without the first logged step of the stage, which has
            warm-up and compilation in it.
        loss_before: mean loss of the last ``SMOOTH_STEPS`` logged steps of the stage before.
        spike: highest loss in its first ``SPIKE_STEPS`` logged steps, of a later stage.
        steps_to_recover: steps from its first until the mean of ``SMOOTH_STEPS`` logged steps, all
            of them its own, is first at or below ``loss_before``.
        final_loss: mean loss of its last ``SMOOTH_STEPS`` logged steps.
    """

    number: int
    attention: str
    seq_len: int
    first_step: int
    last_step: int
    logged: int
    unlogged_before: int
    tokens: float | None
    seconds: float | None
    tokens_per_second: float | None
    loss_before: float | None
    spike: float | None
    steps_to_recover: int | None
    final_loss: float


def attention_of(record: Record) -> str:
    """Of a training record's step."""
    # Older runs say "stage", and nothing where all layers are always dense.
    attention: str = record.get("attention") or record.get("stage") or "dense"
    return attention


def split(steps: Sequence[Record]) -> list[list[Record]]:
    """Training records in order, cut where the stage changes."""

    def key(record: Record) -> tuple[object, ...]:
        return record.get("stage_number"), attention_of(record), record.get("seq_len")

    return [list(group) for _, group in itertools.groupby(steps, key)]


def stage_reports(steps: Sequence[Record]) -> list[StageReport]:
    """One for each stage of training records that are in order of steps."""
    found: list[StageReport] = []
    before: list[Record] = []
    for place, stage in enumerate(split(steps), start=1):
        found.append(_report(stage, before, stage[0].get("stage_number", place)))
        before = stage
    return found


def _report(stage: list[Record], before: list[Record], number: int) -> StageReport:
    losses = [record["loss"] for record in stage]
    first, last = stage[0], stage[-1]
    loss_before = spike = recovered = None
    if before:
        loss_before = mean_of([record["loss"] for record in before][-SMOOTH_STEPS:])
        spike = highest(losses[:SPIKE_STEPS])
        recovered = steps_to_recover(stage, loss_before)
    speeds = [record["tokens_per_second"] for record in stage if "tokens_per_second" in record]
    clock = f"time_metrics/{attention_of(last)}_stage(s)"
    return StageReport(
        number=number,
        attention=attention_of(last),
        seq_len=last.get("seq_len", 0),
        first_step=first["step"],
        last_step=last["step"],
        logged=len(stage),
        unlogged_before=first["step"] - before[-1]["step"] - 1 if before else 0,
        tokens=_difference("tokens_seen", stage, before[-1] if before else None),
        seconds=_difference(clock, stage, before[-1] if before else None),
        tokens_per_second=statistics.median(speeds[1:]) if len(speeds) > 1 else None,
        loss_before=loss_before,
        spike=spike,
        steps_to_recover=recovered,
        final_loss=mean_of(losses[-SMOOTH_STEPS:]),
    )


def _difference(key: str, stage: list[Record], before: Record | None) -> float | None:
    """How much a counter of the run went up in a stage."""
    if key not in stage[-1]:
        return None
    start = 0 if before is None else before.get(key, 0)
    difference: float = stage[-1][key] - start
    return difference


def highest(losses: Sequence[float]) -> float:
    """NaN is higher than any number."""
    return max(losses, key=lambda loss: math.inf if math.isnan(loss) else loss)


def steps_to_recover(stage: Sequence[Record], loss_before: float) -> int | None:
    """See :class:`StageReport`."""
    smooth = smoothed([record["loss"] for record in stage], SMOOTH_STEPS)
    full_windows = list(zip(stage, smooth, strict=True))[SMOOTH_STEPS - 1 :]
    first = stage[0]["step"]
    return next((r["step"] - first for r, s in full_windows if s <= loss_before), None)


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to ``width - 1`` before it."""
    return [mean_of(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def table(stages: Sequence[StageReport]) -> str:
    """The stages for people, a line each."""
    heads = (
        *("stage", "attention", "length", "steps", "tokens", "seconds", "tokens/s"),
        *("before", "spike", "recovered", "final"),
    )
    rows = [heads]
    for stage in stages:
        recovered = "-" if stage.loss_before is None else "not yet"
        if stage.steps_to_recover is not None:
            recovered = f"{stage.steps_to_recover:,} steps"
        rows.append(
            (
                str(stage.number),
                stage.attention,
                f"{stage.seq_len:,}" if stage.seq_len else "-",
                f"{stage.first_step:,}-{stage.last_step:,}",
                _number(stage.tokens, ",.0f"),
                _number(stage.seconds, ",.1f"),
                _number(stage.tokens_per_second, ",.0f"),
                _number(stage.loss_before, ".4f"),
                _number(stage.spike, ".4f"),
                recovered,
                _number(stage.final_loss, ".4f"),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
