"""Sweeps without the trainer, for tests: run folders and submissions with a stand-in for it."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tomli_w

from lighthouse.sweep.resources import Resources
from lighthouse.sweep.run_folder import Run, write_run
from lighthouse.sweep.submission import Submission, next_submission, write_submission

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
START = {"submission": 1, "host": "elsewhere", "pid": 1, "job": "7_0", "commit": None}
END = {"exit_code": 1, "step": 0, "error": None}


def make_run(output: Path, name: str = "k=1", steps: int = 5) -> Run:
    """A run folder, ready for its first attempt."""
    run = Run(
        folder=output / f"{name}@0123abcd",
        name=name,
        identity="0123abcd",
        overrides={"lighthouse.topk": 1},
        processes=1,
        steps=steps,
        checkpoint_folder="checkpoint",
        gpu_hours=None,
        commit=None,
    )
    config = {"job": {"dump_folder": str(run.folder)}, "training": {"steps": steps}}
    write_run(run, tomli_w.dumps(config), diff=b"")
    return run


def fake_python(mode: str) -> list[str]:
    """A value of ``resources.python``; for the modes see the stand-in."""
    return [sys.executable, str(FAKE_TRAINER), mode]


def make_submission(
    runs: Sequence[Run], mode: str = "ok", retries: int = 2, slurm: bool = False
) -> Submission:
    """A written submission of runs of one output folder."""
    resources = Resources(gpus_per_node=0, python=fake_python(mode), retries=retries)
    folders = [run.folder for run in runs]
    submission = next_submission(runs[0].folder.parent, "test", resources, folders, slurm)
    write_submission(submission)
    return submission


def log_attempts(run: Run, *reasons: str, open_end: bool = False) -> None:
    """Attempts of 100 s each, every 1000 s."""
    for number, reason in enumerate(reasons, 1):
        start = number * 1000.0
        run.log_attempt({"number": number, "start": start} | START)
        run.log_attempt({"number": number, "end": start + 100, "reason": reason} | END)
    if open_end:
        number = len(reasons) + 1
        run.log_attempt({"number": number, "start": number * 1000.0} | START)


def log_metrics(
    run: Run, steps: int = 20, switch: int = 15, loss: Callable[[int], float] = lambda step: 3.0
) -> None:
    """A step every 2 s, from 1010 s on."""
    with (run.folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            stage = "lighthouse" if step < switch else "dense"
            record = {"step": step, "time": 1010.0 + 2 * step, "loss": loss(step), "stage": stage}
            record |= {"tokens_per_second": 50.0, "tokens_seen": step * 10}
            file.write(json.dumps(record | {"time_metrics/eta(s)": 7.0}) + "\n")
        file.write(json.dumps({"step": steps, "time": 1.0, "validation_loss": 2.5}) + "\n")
