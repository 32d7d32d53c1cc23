"""How far a run has come, from its metrics."""

import time
from dataclasses import dataclass

from lighthouse.runs.folder import newest_checkpoint
from lighthouse.runs.metrics import ETA, read_metrics
from lighthouse.runs.run_report import last_step
from lighthouse.sweep.run_folder import Run


@dataclass(frozen=True)
class Progress:
    """The step that a run has come to, and what the latest that it logged says; ``eta`` is in
    seconds of training, counted from now if the run is going on."""

    step: int
    loss: float | None = None
    tokens_per_second: float | None = None
    eta: float | None = None


def progress_of(run: Run, running: bool) -> Progress:
    """Progress of a run; step 0 before anything is logged or saved."""
    try:
        records = [record for record in read_metrics(run.folder) if "loss" in record]
    except ValueError:
        records = []
    step = last_step(records, newest_checkpoint(run.folder))
    if not records:
        return Progress(step)
    last = records[-1]
    eta = last.get(ETA)
    if eta is not None and running:
        eta = max(0.0, eta - (time.time() - last.get("time", time.time())))
    return Progress(step, last["loss"], last.get("tokens_per_second"), eta)
