"""Sweeps without the trainer, for tests: run folders and submissions with a stand-in for it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from lighthouse.sweep.resources import Resources
from lighthouse.sweep.runs import Run, write_run
from lighthouse.sweep.submission import Submission, next_submission, write_submission

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")


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
