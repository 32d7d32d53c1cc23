"""Sending runs, and ending them."""

import contextlib
import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lighthouse import slurm
from lighthouse.runs.files import write_atomic
from lighthouse.sweep import code
from lighthouse.sweep.batch import batch_script
from lighthouse.sweep.local import run_local
from lighthouse.sweep.run_folder import (
    CANCEL_FILE,
    DIVERGED,
    RUN_FILE,
    Run,
    change_run,
    read_run,
    write_members,
    write_run,
)
from lighthouse.sweep.spec import Spec
from lighthouse.sweep.state import AT_WORK, DONE, NOT_STARTED, UNREADABLE, RunState, run_states
from lighthouse.sweep.submission import (
    SCRIPT_FILE,
    Submission,
    next_submission,
    remove_submission,
    write_submission,
)

if TYPE_CHECKING:
    from lighthouse.sweep.resolve import PlannedRun  # imports the trainer, which takes seconds


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Let only one command of this machine send runs of a sweep at a time.

    Raises:
        ValueError: another one does.
    """
    # Not in the sweep's folder: some shared file systems have no locks.
    place = hashlib.sha256(str(output).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"lighthouse-sweep-{os.getuid()}-{place}"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{output}: another command is sending or running it") from None
        yield


def planned_states(
    planned: Sequence["PlannedRun"], tasks: dict[str, slurm.Task] | None
) -> list[RunState]:
    """The state of each planned run, those without a folder included; as `run_states`."""
    return run_states([_existing(p.run) for p in planned], tasks)


def unfinished(states: Sequence[RunState], named: bool = False) -> list[RunState]:
    """Runs to send: all but the done ones, those that are queued or running, the diverged ones,
    and those that can't be read, with a note on the standard error.

    A run that has diverged does so again, unless its code has changed: it is sent where it was
    ``named``.
    """
    left_out = (DONE, *AT_WORK) if named else (DONE, *AT_WORK, DIVERGED)
    return [s for s in readable(states) if s.state not in left_out]


def readable(states: Sequence[RunState]) -> list[RunState]:
    """Without runs that can't be read, with a note on the standard error of each."""
    for state in states:
        if state.state == UNREADABLE:
            print(f"note: {state.run.name} is left out: {state.note}", file=sys.stderr)
    return [state for state in states if state.state != UNREADABLE]


def prepare(spec: Spec, planned: Sequence["PlannedRun"], states: Sequence[RunState]) -> None:
    """Make the folders of the planned runs that are not started yet, and change those that were.

    What is at work goes on as it began.
    """
    difference = code.difference()
    for plan, state in zip(planned, states, strict=True):
        if state.state == NOT_STARTED:
            write_run(plan.run, plan.config_toml, difference)
        elif plan.changed and state.state not in (*AT_WORK, UNREADABLE):
            change_run(state.run, plan.run.steps, plan.config_toml)
    write_members(spec.output, spec.name, [state.run for state in states])


def run_here(submission: Submission, jobs: int) -> None:
    """Run the submission's runs on this machine, so many at a time."""
    write_submission(submission)
    for name in submission.runs:
        (submission.output / name / CANCEL_FILE).unlink(missing_ok=True)
    run_local(submission, jobs)


def send(spec: Spec, folders: Sequence[Path]) -> Iterator[tuple[str, int]]:
    """Send runs as one array, or as several where the cluster's are shorter than that.

    The next array waits for the one before where ``resources.max_running`` says how many runs may
    be at work, since Slurm counts them array by array.

    Yields:
        Each array's job id, and how many runs it has.

    Raises:
        SlurmError: Slurm refuses, or does not answer. Sending again is safe.
    """
    longest = slurm.longest_array()
    job = None
    for first in range(0, len(folders), longest):
        piece = folders[first : first + longest]
        submission = next_submission(spec.output, spec.name, spec.resources, piece, slurm=True)
        job = _send_array(submission, job if spec.resources.max_running is not None else None)
        yield job, len(piece)


def _send_array(submission: Submission, after: str | None) -> str:
    folders = [submission.output / name for name in submission.runs]
    cancelled = [file for folder in folders if (file := folder / CANCEL_FILE).exists()]
    script = batch_script(submission, after)
    # Before it is sent: a task may begin at once.
    write_submission(submission)
    for file in cancelled:
        file.unlink()
    try:
        job = slurm.submit(script)
    except slurm.NoAnswer:
        raise  # it may be in the queue, where it is found by its name
    except slurm.SlurmError:
        remove_submission(submission)
        for file in cancelled:
            file.touch()
        raise
    for folder in (submission.folder, *folders):
        write_atomic(folder / SCRIPT_FILE, script)
    return job


def cancel(states: Sequence[RunState]) -> None:
    """End runs: those at work save a checkpoint, the others don't begin.

    Raises:
        SlurmError: tasks are still in the queue, because Slurm does not answer; when they begin
            they end at once.
    """
    for state in states:
        if state.state != DONE:
            (state.run.folder / CANCEL_FILE).touch()
    slurm.cancel_pending([s.task for s in states if s.task is not None])


def _existing(run: Run) -> Run:
    """The run as its folder has it, if there is one, under this sweep's name."""
    if not (run.folder / RUN_FILE).exists():
        return run
    return replace(read_run(run.folder), name=run.name, overrides=run.overrides)
