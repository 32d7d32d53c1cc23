"""What state each run is in, from its folder and Slurm's queue.

Slurm's word on how a job ended is not asked: a job that stops in time is a TIMEOUT to it.
"""

import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lighthouse import slurm
from lighthouse.sweep.retry import is_over
from lighthouse.sweep.run_folder import (
    ALIVE_FILE,
    CANCEL_FILE,
    CANCELLED,
    DIVERGED,
    FAILED,
    STOPPED,
    Attempt,
    Run,
    read_if_there,
)
from lighthouse.sweep.submission import Submission, read_submissions

DONE = "done"
RUNNING = "running"
QUEUED = "queued"
NOT_STARTED = "not started"
INTERRUPTED = "interrupted"
UNKNOWN = "unknown"
UNREADABLE = "unreadable"

AT_WORK = (RUNNING, QUEUED)

ALIVE_SECONDS = 120.0  # without a touch, several times of what a worker waits between two


@dataclass(frozen=True)
class RunState:
    """A run, one of the states above or of the reasons `FAILED`, `DIVERGED`, `CANCELLED` and
    `STOPPED`, and what there is to say about it; ``task`` is its ARRAY_TASK in the queue."""

    run: Run
    attempts: list[Attempt]
    state: str
    note: str
    task: str | None


def queued_tasks(output: Path) -> dict[str, slurm.Task]:
    """Slurm's task of each run folder that is in the queue; Slurm is not asked if none can be.

    Raises:
        SlurmError: no answer, though there are runs that may be in the queue.
    """
    submissions = read_submissions(output)
    runs_of = {s.job_name: s.runs for s in submissions if s.slurm}
    if not runs_of:
        return {}
    try:
        tasks = slurm.queue()
    except slurm.SlurmError as error:
        open_ones = [str(s.folder) for s in _open_submissions(submissions)]
        if not open_ones:
            return {}
        raise slurm.SlurmError(
            f"{error}; it may still have runs of {', '.join(open_ones)} in its queue: ask where it "
            "answers, or remove these folders if no queue has them any more"
        ) from None
    return {runs_of[t.job_name][t.index]: t for t in tasks if t.job_name in runs_of}


def _open_submissions(submissions: Sequence[Submission]) -> list[Submission]:
    """Those of Slurm's with a run that is not known as done or over, nor was sent again later."""
    last = {name: submission for submission in submissions for name in submission.runs}
    found = set()
    for name, submission in last.items():
        folder = submission.output / name
        if submission.slurm and (run := read_if_there(folder)) is not None:
            unknown = run.unreadable() is not None
            if unknown or not (run.done or is_over(run.attempts(), submission)):
                found.add(submission.number)
    return [submission for submission in submissions if submission.number in found]


def run_states(runs: Sequence[Run], tasks: dict[str, slurm.Task] | None) -> list[RunState]:
    """The state of each run.

    Args:
        runs: runs of one sweep.
        tasks: from `queued_tasks`; ``None`` if Slurm does not answer.
    """
    return [_run_state(run, tasks) for run in runs]


def is_alive(attempt: Attempt, run: Run) -> bool:
    """Whether an attempt is still at work.

    On this machine its launcher's process tells. On another one that shares the disk, the file that
    its worker touches does, by the clock of the disk; of Slurm's attempts the queue says more.
    """
    if attempt.host != socket.gethostname():
        return attempt.job is None and _touched_lately(run.folder)
    try:
        words = os.fsdecode(Path(f"/proc/{attempt.pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return False
    # Without the run's folder the id is another process's by now.
    folder = run.folder.resolve()
    paths = (Path(os.path.realpath(word)) for word in words if os.path.isabs(word))
    return any(path.is_relative_to(folder) for path in paths)


def _touched_lately(folder: Path) -> bool:
    try:
        touched = (folder / ALIVE_FILE).stat().st_mtime
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as file:
            now = os.fstat(file.fileno()).st_mtime
    except OSError:
        return False
    return now - touched < ALIVE_SECONDS


def _run_state(run: Run, tasks: dict[str, slurm.Task] | None) -> RunState:
    task = (tasks or {}).get(run.folder.name)
    name = f"{task.array}_{task.index}" if task else None
    if (why := run.unreadable()) is not None:
        return RunState(run, [], UNREADABLE, why, name)
    attempts = run.attempts()
    state, note = _judge(run, attempts, task, slurm_answers=tasks is not None)
    return RunState(run, attempts, state, note, name)


def _judge(
    run: Run, attempts: list[Attempt], task: slurm.Task | None, slurm_answers: bool
) -> tuple[str, str]:
    if run.done:
        return DONE, ""
    last = attempts[-1] if attempts else None
    if task is not None and task.running:
        return RUNNING, ""
    if task is not None:
        after = f"after {last.reason}: {last.error or ''}".rstrip(": ") if last else ""
        return QUEUED, " ".join(filter(None, (f"({task.reason})", after)))
    if last is not None and last.end is None:
        if is_alive(last, run):
            return RUNNING, "" if last.host == socket.gethostname() else f"on {last.host}"
        if last.job is not None and not slurm_answers:
            return UNKNOWN, f"job {last.job}"
        return INTERRUPTED, f"killed without notice on {last.host}"
    if (run.folder / CANCEL_FILE).exists():
        return CANCELLED, ""
    if last is None:
        log = _slurm_log(run) if slurm_answers else None
        return NOT_STARTED, f"ended before the first attempt, see {log}" if log else ""
    if last.reason in (FAILED, DIVERGED, STOPPED, CANCELLED):
        return last.reason, last.error or ""
    return INTERRUPTED, f"after {last.reason}"


def _slurm_log(run: Run) -> Path | None:
    """What Slurm wrote of the last task that the run had: a line of ``setup`` may have failed."""
    for submission in reversed(read_submissions(run.folder.parent)):
        if submission.slurm and run.folder.name in submission.runs:
            log = submission.slurm_log(submission.runs.index(run.folder.name))
            return log if log.exists() else None
    return None
