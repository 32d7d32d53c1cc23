"""What a run's metrics come to: the loss around the switch to dense, the last one, the speed."""

import itertools
import math
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lighthouse.runs.folder import RESOLVED_FILE, step_of
from lighthouse.runs.metrics import Record
from lighthouse.runs.stage_reports import (
    SMOOTH_STEPS,
    StageReport,
    attention_of,
    split,
    stage_reports,
)

STAGES = ("lighthouse", "dense")


@dataclass(frozen=True)
class Report:
    """None stands for what the run does not have (yet).

    Attributes:
        last_step: latest training step, as of :func:`last_step`.
        loss_before_switch: mean loss of the last `loss_before_steps` logged steps in the
            lighthouse stage, at most `SMOOTH_STEPS`.
        foreseen_loss: validation loss under dense attention when it was last measured before the
            switch, or so far, at `foreseen_step`: where the loss would jump to.
        switch_step: first logged step in the dense stage that follows.
        spike: highest loss in the first `SPIKE_STEPS` logged steps of the dense stage.
        steps_to_recover: steps from `switch_step` until the mean of the last `SMOOTH_STEPS` logged
            dense steps, all of them dense, is first at or below `loss_before_switch`.
        final_loss: mean loss of the last `final_steps` logged steps, at most `SMOOTH_STEPS`, all of
            the stage that the run is in.
        lighthouse_tokens_per_second, dense_tokens_per_second: median per device, without the
            first logged step of the stage, which has warm-up and compilation in it.
        validation_loss: the latest, at `validation_step`.
        leak: what the loss of the lighthouse stage owed to later tokens, when last measured.
        sees_future: whether that stage's selection is one that tells of later tokens, so that its
            loss is not that of a language model.
        checkpoint: newest finished checkpoint.
        stages: all of them, in order.
        diverged: how the run ended where its numbers were not finite any more.
    """

    last_step: int
    loss_before_switch: float | None
    loss_before_steps: int
    foreseen_loss: float | None
    foreseen_step: int | None
    switch_step: int | None
    spike: float | None
    steps_to_recover: int | None
    final_loss: float
    final_steps: int
    lighthouse_tokens_per_second: float | None
    dense_tokens_per_second: float | None
    validation_loss: float | None
    validation_step: int | None
    leak: float | None
    sees_future: bool
    checkpoint: str | None
    stages: tuple[StageReport, ...]
    diverged: str | None = None


def summarize(
    records: Sequence[Record],
    checkpoint: Path | None = None,
    published: bool = False,
    diverged: str | None = None,
) -> Report:
    """Measure the switch in `records`, which are in order of steps.

    Args:
        checkpoint: the run's newest one.
        published: whether the run's Lighthouse layers have the published selection.
        diverged: what its folder says of that.

    Raises:
        ValueError: no training record.
    """
    steps = [record for record in records if "loss" in record]
    if not steps:
        raise ValueError("no training step logged yet")
    stages = stage_reports(steps)
    before = _before_the_switch(stages)
    switch = stages[before + 1] if before is not None else None
    last_of = [len(part[-SMOOTH_STEPS:]) for part in split(steps)]
    end = math.inf if switch is None else switch.first_step
    foreseen = [r for r in records if "validation_dense_loss" in r and r["step"] < end]
    validated = [record for record in records if "validation_loss" in record]
    leaks = [record["validation_leak"] for record in records if "validation_leak" in record]
    return Report(
        last_step=last_step(steps, checkpoint),
        loss_before_switch=None if switch is None else switch.loss_before,
        loss_before_steps=0 if before is None else last_of[before],
        foreseen_loss=foreseen[-1]["validation_dense_loss"] if foreseen else None,
        foreseen_step=foreseen[-1]["step"] if foreseen else None,
        switch_step=None if switch is None else switch.first_step,
        spike=None if switch is None else switch.spike,
        steps_to_recover=None if switch is None else switch.steps_to_recover,
        final_loss=stages[-1].final_loss,
        final_steps=last_of[-1],
        lighthouse_tokens_per_second=_speed(steps, "lighthouse"),
        dense_tokens_per_second=_speed(steps, "dense"),
        validation_loss=validated[-1]["validation_loss"] if validated else None,
        validation_step=validated[-1]["step"] if validated else None,
        leak=leaks[-1] if leaks else None,
        sees_future=published and any(stage.attention == "lighthouse" for stage in stages),
        checkpoint=str(checkpoint) if checkpoint else None,
        stages=tuple(stages),
        diverged=diverged,
    )


def last_step(steps: Sequence[Record], checkpoint: Path | None) -> int:
    """The step that a run has come to; 0 before the first.

    Its newest checkpoint may be of a later step than the last one that it logged.

    Args:
        steps: its training records.
        checkpoint: its newest one.
    """
    saved = None if checkpoint is None else step_of(checkpoint.name)
    return max(steps[-1]["step"] if steps else 0, saved or 0)


def has_published_selection(folder: Path) -> bool:
    """Whether a run's Lighthouse layers may select by tokens that come later.

    Runs from before there was a choice all do. False where the run's configuration is not there.
    """
    resolved = folder / RESOLVED_FILE
    if not resolved.is_file():
        return False
    try:
        section = tomllib.loads(resolved.read_text(encoding="utf-8")).get("lighthouse", {})
    except ValueError as error:
        raise ValueError(f"{resolved} is damaged, no TOML: {error}") from error
    in_layers = any("selection=published" in entry for entry in section.get("layer_overrides", ()))
    return section.get("selection", "published") == "published" or in_layers


def _before_the_switch(stages: Sequence[StageReport]) -> int | None:
    """Index of the first Lighthouse stage that a dense one follows."""
    pairs = itertools.pairwise(stage.attention for stage in stages)
    return next((i for i, pair in enumerate(pairs) if pair == STAGES), None)


def _speed(steps: Sequence[Record], attention: str) -> float | None:
    """Of all stages of an attention, without the first logged step of each."""
    speeds = [
        record["tokens_per_second"]
        for stage in split(steps)
        if attention_of(stage[0]) == attention
        for record in stage[1:]
        if "tokens_per_second" in record
    ]
    return statistics.median(speeds) if speeds else None
