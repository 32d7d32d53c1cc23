"""How long each stage has taken, and how long the rest of the run will take."""

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighthouse.runs.metrics import ETA, read_metrics
from lighthouse.titan.config.stages import Stage, Stages

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

ELAPSED = {
    "lighthouse": "time_metrics/lighthouse_stage(s)",
    "window": "time_metrics/window_stage(s)",
    "dense": "time_metrics/dense_stage(s)",
}
"""Stages of one attention are timed together."""


class StageClock:
    """A clock over training steps, by stage.

    A step lasts until the next one begins: what comes between them, such as validation and
    checkpoints, is part of it. The host's clock is read without waiting for the accelerator, so
    that a reading between two log steps can be off by the steps that are still in its queue.

    Args:
        job_config: torchtitan's ``JobConfig``.
    """

    def __init__(self, job_config: "JobConfig") -> None:
        self._stages = Stages.of(job_config)
        self._folder = Path(job_config.job.dump_folder)
        self._elapsed: dict[str, float] = {}
        # Seconds and steps that tell the speed: without the first step of a stage in this process,
        # which compiles and warms up.
        self._measured = dict.fromkeys(self._stages, (0.0, 0))
        self._present: Stage | None = None
        self._began = 0.0
        self._first = True

    def resume(self, step: int) -> None:
        """Go on from the elapsed times that this run's folder has logged up to ``step``."""
        try:
            records = read_metrics(self._folder)
        except ValueError:
            return  # nothing logged yet
        for record in records:
            if record["step"] <= step:
                logged = {stage: record.get(key) for stage, key in ELAPSED.items()}
                self._elapsed |= {k: v for k, v in logged.items() if v is not None}

    def begin_step(self, step: int) -> None:
        """Start the clock of ``step``; to be called before every step."""
        now = time.perf_counter()
        if self._present is not None:
            self._elapsed[self._present.attention] = self._elapsed_now(now)
            if not self._first:
                seconds, steps = self._measured[self._present]
                self._measured[self._present] = (seconds + now - self._began, steps + 1)
        stage = self._stages.at(step)
        self._first = stage != self._present
        self._present, self._began = stage, now

    def metrics(self, step: int) -> dict[str, float]:
        """Times to log at ``step``, in seconds.

        ``time_metrics/lighthouse_stage(s)`` and its like: spent in the stages that have begun. A
        restart counts on from what was logged for the step it resumes; steps that were lost and
        done again count once.

        ``time_metrics/eta(s)``: left after this step until ``training.steps``, the remaining steps
        of each stage at the mean speed it had in this process. A stage that is not measured yet
        is taken to be as fast as the other one. Absent before any is measured.
        """
        assert self._present is not None, "begin_step comes first"
        now = self._elapsed_now(time.perf_counter())
        elapsed = self._elapsed | {self._present.attention: now}
        metrics = {ELAPSED[attention]: seconds for attention, seconds in elapsed.items()}
        per_step = {k: seconds / steps for k, (seconds, steps) in self._measured.items() if steps}
        if per_step:
            other = next(iter(per_step.values()))
            left = self._stages.left_after(step)
            metrics[ETA] = sum(n * per_step.get(stage, other) for stage, n in left.items())
        return metrics

    def _elapsed_now(self, now: float) -> float:
        assert self._present is not None
        return self._elapsed.get(self._present.attention, 0.0) + now - self._began


def console_eta(metrics: Mapping[str, Any]) -> str:
    """The end of the console's line for a step, such as "  eta: 3:02:07"; empty if not known."""
    if ETA not in metrics:
        return ""
    return f"  eta: {timedelta(seconds=round(metrics[ETA]))}"
