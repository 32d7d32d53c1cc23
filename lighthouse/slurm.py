"""The few Slurm commands that are needed, and how a task goes back into the queue.

Each command has a timeout: a dead controller blocks them.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from types import FrameType

# A client gives up by itself after some ten seconds for each controller.
QUERY_SECONDS = 30
SUBMIT_SECONDS = 90
DEFAULT_LONGEST_ARRAY = 1001  # Slurm's own, where it doesn't tell
REQUEUE_WAITS = (0, 5, 15, 40, 120, 300)  # a controller is seldom away for longer

# Not in the queue any more, though still listed for a while.
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}


class SlurmError(Exception):
    """A command of Slurm's was refused, or got no answer."""


class NoAnswer(SlurmError):
    """Nothing came back in time: what was asked for may have been done, or be done yet."""


@dataclass(frozen=True)
class Task:
    """An element of an array that is in the queue: Slurm's ids, state and reason to wait."""

    job_name: str
    array: str
    index: int
    state: str
    reason: str

    @property
    def running(self) -> bool:
        return self.state != "PENDING"


class Notice:
    """Whether this process was told that its end is near: SIGUSR1, SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.given = False
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.given = True


def own_task() -> str:
    """This process's job, or ARRAY_TASK: the id of an array's last task is that of the array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def go_back_into_the_queue(task: str) -> bool:
    """Requeue this process's own job, and wait for Slurm to end this process.

    Returns:
        False where Slurm has not taken it: it does not answer, or has decided otherwise already, as
        for a job that was cancelled.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing left to save
    for wait in REQUEUE_WAITS:
        time.sleep(wait)
        try:
            if job(task)["JobState"] != "RUNNING":
                return False
            requeue(task)
        except SlurmError as error:
            print(f"back into the queue: {error}", flush=True)
        else:
            time.sleep(300)  # leaving before would count as the job's end
            return True
    print("not back in the queue", flush=True)
    return False


def submit(script: str) -> str:
    """Send a batch script; returns the job's id.

    Raises:
        NoAnswer: it may have been sent, for all that sbatch says.
        SlurmError: it was not.
    """
    answer = _slurm(SUBMIT_SECONDS, "sbatch", "--parsable", text=script)
    if (job := _job_id(answer)) is None:
        raise NoAnswer(f"sbatch: no job's id in what it says, {answer.strip()!r}")
    return job


def _job_id(answer: str) -> str | None:
    """What ``sbatch --parsable`` ends with, behind the words of a site's plugins.

    A cluster's name may follow.
    """
    found = re.findall(r"^\s*(\d+)(?:;\S*)?\s*$", answer, re.MULTILINE)
    return found[-1] if found else None


def longest_array() -> int:
    """How many tasks an array of this cluster can have: its MaxArraySize, counted from 0."""
    try:
        answer = _slurm(QUERY_SECONDS, "scontrol", "show", "config")
    except SlurmError:
        return DEFAULT_LONGEST_ARRAY
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE)
    return max(1, int(found[1])) if found else DEFAULT_LONGEST_ARRAY


def queue() -> list[Task]:
    """The caller's array tasks that wait or run."""
    # With -r each element is a line of its own. The name is last because it may have any character.
    options = ("--me", "-h", "-r", "-t", "all", "-o", "%F|%K|%T|%r|%j")
    lines = _slurm(QUERY_SECONDS, "squeue", *options).splitlines()
    return [
        Task(name, array, int(index), state, reason)
        for array, index, state, reason, name in (
            line.split("|", 4) for line in lines if line.count("|") >= 4
        )
        if index.isdecimal() and state not in _ENDED
    ]


def job(task: str) -> dict[str, str]:
    """What the controller knows of a job or an ARRAY_TASK."""
    words = _slurm(QUERY_SECONDS, "scontrol", "-o", "show", "job", task).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def requeue(task: str) -> None:
    """Put a running ARRAY_TASK back into the queue, which ends the script that it runs."""
    _slurm(QUERY_SECONDS, "scontrol", "requeue", task)


def cancel_pending(tasks: Collection[str]) -> None:
    """Take ARRAY_TASKs that have not begun out of the queue."""
    if tasks:
        _slurm(QUERY_SECONDS, "scancel", "--state=PENDING", *tasks)


def _slurm(timeout: float, *command: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: not found; is this a machine of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]}: no answer from Slurm within {timeout:g} s") from None
    if done.returncode != 0:
        message = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        # One sentence: each line of several begins with the command's name.
        lines = [line.strip().removeprefix(f"{command[0]}: ") for line in message.splitlines()]
        # Its own words for a controller that took too long, and may have done it; and an id of a
        # job that was sent before something else failed.
        sent = command[0] == "sbatch" and _job_id(done.stdout) is not None
        kind = NoAnswer if sent or "timed out" in message.lower() else SlurmError
        raise kind(f"{command[0]}: {'; '.join(dict.fromkeys(filter(None, lines)))}")
    return done.stdout
