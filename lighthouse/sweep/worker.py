"""One attempt at one run: train, give notice on, write down how it ended, and what comes next.

    python -m lighthouse.sweep.worker SUBMISSION_FOLDER INDEX

SIGUSR1, SIGTERM and SIGINT are notice of an end: training saves a checkpoint and stops. Then, and
after a failure that is worth another attempt, the worker puts its Slurm task back into the queue.
Without Slurm it exits with `AGAIN` after such a failure.
"""

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lighthouse import refusal, slurm
from lighthouse.launch import Launch, environment
from lighthouse.refusal import ENDINGS, FILE_VARIABLE, ending_of, last_word
from lighthouse.runs.files import write_atomic
from lighthouse.runs.folder import LAST_WORD_FILE, RESOLVED_FILE, STOP_FILE
from lighthouse.sweep import code
from lighthouse.sweep.retry import given_up
from lighthouse.sweep.run_folder import (
    ALIVE_FILE,
    CANCEL_FILE,
    CANCELLED,
    DIVERGED,
    DONE_FILE,
    FAILED,
    FINISHED,
    LOG_FILE,
    LOST,
    PREEMPTED,
    STOPPED,
    TIME_LIMIT,
    Attempt,
    Run,
    read_run,
)
from lighthouse.sweep.state import is_alive
from lighthouse.sweep.submission import Submission, read_submission

AGAIN = 75  # EX_TEMPFAIL
LOOK_SECONDS = 0.5
TOUCH_SECONDS = 20.0
LOG_TAIL = 200_000

# A traceback's last line, or what Slurm says of a job step. torchrun prefixes what workers print;
# it and srun add errors of their own that say no more than the exit code does.
_ERROR = re.compile(
    r"^(?:\[[^\]\n]*\]:? ?)*"
    r"((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b(?::.*)?|srun: error: .*)$",
    re.MULTILINE,
)
_LAST_WORD = re.compile(rf"^(?:{'|'.join(ENDINGS)})(.*)$", re.MULTILINE)
_CAUSE = "The above exception was the direct cause of the following exception:"
_NOT_WHY = ("ChildFailedError", "Exited with exit code")
# What ranks say that were left alone by the one that failed.
_OF_PEERS = re.compile(
    r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|DistBackendError|DistNetworkError|"
    r"NCCL|communicator was aborted|SignalException"
)
# Said by the launcher; other signals come from a rank that has printed why, or from outside.
_KILLED = re.compile(r"^launch: (rank \d+) failed, killed by signal (7|9|11)$", re.MULTILINE)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 unless the run failed."""
    notice = slurm.Notice()
    submission = read_submission(Path(arguments[0]))
    run = read_run(submission.output / submission.runs[int(arguments[1])])
    if run.done or (run.folder / CANCEL_FILE).exists():
        return 0
    _close_lost_attempts(run)
    if run.checkpoint_step() >= run.steps:  # killed before it could say so
        write_atomic(run.folder / DONE_FILE, f"step {run.steps}\n")
        return 0
    outcome = _attempt(run, submission, notice)
    print(f"{run.name}: {outcome.reason}, {outcome.step} of {run.steps} steps saved", flush=True)
    if outcome.reason == FINISHED:
        write_atomic(run.folder / DONE_FILE, f"step {outcome.step}\n")
        return 0
    if outcome.reason == FAILED:
        why = given_up(run.attempts(), submission)
        if why is not None:
            print(f"{run.name}: {outcome.error}; {why}", flush=True)
            return 1
    elif outcome.reason == DIVERGED:
        print(f"{run.name}: {outcome.error}; it would again", flush=True)
        return 1
    elif outcome.reason in (CANCELLED, STOPPED):
        return 0
    return _requeue(slurm.own_task()) if submission.slurm else AGAIN


def error_of(log: str, exit_code: int) -> str:
    """One line on why a process failed, as a user can act on it.

    The refusal; or that a rank was killed; or the first error, as explained by those it was raised
    as, rather than those of ranks that lost it; or how the process ended.
    """
    if exit_code in ENDINGS.values() and (said := _LAST_WORD.findall(log)):
        return said[-1][:500]
    if killed := _KILLED.search(log):
        why = ": out of memory, perhaps" if killed[2] == "9" else ""
        return f"{killed[1]} killed by signal {killed[2]}{why}"
    cause, _, rest = log.rpartition(_CAUSE)
    found = [*_errors(rest), *_errors(cause)]
    if found := [error for error in found if not _OF_PEERS.search(error)] or found:
        return found[0].strip()[:500]
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def _errors(log: str) -> list[str]:
    return [e for e in _ERROR.findall(log) if not any(words in e for words in _NOT_WHY)]


def _close_lost_attempts(run: Run) -> None:
    """Write down that attempts without an end were killed.

    Raises:
        RuntimeError: one is still at work on this machine.
    """
    for attempt in run.attempts():
        if attempt.end is not None:
            continue
        if is_alive(attempt, run):
            raise RuntimeError(
                f"{run.folder}: process {attempt.pid} on {attempt.host} is training it already"
            )
        written = (run.folder / LOG_FILE).stat().st_mtime
        end = {"number": attempt.number, "end": max(written, attempt.start), "reason": LOST}
        run.log_attempt(end | {"step": run.checkpoint_step()})


def _attempt(run: Run, submission: Submission, notice: slurm.Notice) -> Attempt:
    """Train until the end, one way or another, and write it down."""
    began_at = run.checkpoint_step()
    log_path, config = run.folder / LOG_FILE, run.folder / RESOLVED_FILE
    task = slurm.own_task() if submission.slurm else None
    stop, word = run.folder / STOP_FILE, run.folder / LAST_WORD_FILE
    word.unlink(missing_ok=True)
    reason: str | None = None
    touched = -math.inf
    with log_path.open("ab") as log:
        log_start = log.tell()
        number = len(run.attempts()) + 1
        begun = {
            "number": number,
            "submission": submission.number,
            "start": time.time(),
            "host": os.uname().nodename,
            "job": task,
        }
        try:
            # A session of its own: Ctrl-C in a terminal is for this process to pass on, as a file.
            process = subprocess.Popen(
                _launch(run, submission).command(["--job.config_file", str(config)]),
                cwd=submission.directory,
                env=_environment(run, submission) | {FILE_VARIABLE: str(word)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as refused:  # resources.python is not there, say
            begun |= {"pid": os.getpid(), "commit": code.commit()}
            end = {"end": time.time(), "reason": FAILED, "step": began_at}
            run.log_attempt(begun | end | {"error": f"{type(refused).__name__}: {refused}"})
            return _logged(run, number)
        run.log_attempt(begun | {"pid": process.pid, "commit": code.commit()})
        alive = run.folder / ALIVE_FILE
        while process.poll() is None:
            if time.monotonic() - touched > TOUCH_SECONDS:
                alive.touch()
                touched = time.monotonic()
            if reason is None:
                if (run.folder / CANCEL_FILE).exists():
                    reason = CANCELLED
                elif notice.given:
                    reason = _reason_of_notice(task)
            # Again and again: the trainer removes a file that it finds when it starts.
            if reason is not None:
                stop.touch()
            time.sleep(LOOK_SECONDS)
    stop.unlink(missing_ok=True)
    alive.unlink(missing_ok=True)

    step, error, exit_code = run.checkpoint_step(), None, process.returncode
    if (said := last_word(word)) is not None:
        with log_path.open("a", encoding="utf-8") as log_text:
            log_text.write(f"{said}\n")
        # Of several nodes srun gives the exit code of the launchers that it killed then.
        exit_code = ENDINGS.get(ending_of(said) or "", exit_code)
    if step >= run.steps:
        reason = FINISHED
    elif reason is None or (reason == TIME_LIMIT and step == began_at):
        if exit_code == 0 and reason == TIME_LIMIT:
            error = f"no checkpoint within resources.time = {submission.resources.time}"
        elif exit_code == 0:
            error = "training ended before its last step without being asked to"
        else:
            with log_path.open("rb") as log:
                log.seek(max(log_start, log_path.stat().st_size - LOG_TAIL))
                error = error_of(log.read().decode(errors="replace"), exit_code)
        reason = DIVERGED if exit_code == ENDINGS[refusal.DIVERGED] else FAILED
    end = {"end": time.time(), "reason": reason, "exit_code": exit_code, "step": step}
    run.log_attempt({"number": number} | end | {"error": error})
    return _logged(run, number)


def _launch(run: Run, submission: Submission) -> Launch:
    resources = submission.resources
    srun = list(resources.srun)
    if resources.cpus_per_task is not None:  # which srun does not take over from sbatch
        srun.insert(0, f"--cpus-per-task={resources.cpus_per_task}")
    return Launch(
        processes=resources.processes_per_node,
        nodes=resources.nodes,
        python=tuple(resources.python),
        srun=tuple(srun) if submission.slurm else None,
        run_id=run.identity,
    )


def _environment(run: Run, submission: Submission) -> dict[str, str]:
    """That of a training, and how the run is called in Weights & Biases."""
    names = {"WANDB_RUN_GROUP": submission.sweep, "WANDB_RUN_NAME": run.name}
    # One for all runs would mix them; the trainer keeps one for each folder.
    inherited = {k: v for k, v in os.environ.items() if k != "WANDB_RUN_ID"}
    return environment(inherited) | names


def _logged(run: Run, number: int) -> Attempt:
    return next(attempt for attempt in run.attempts() if attempt.number == number)


def _reason_of_notice(task: str | None) -> str:
    if task is None:
        return STOPPED
    try:
        job = slurm.job(task)
    except slurm.SlurmError as error:
        print(f"reason of the notice: {error}", flush=True)
        return PREEMPTED
    if job.get("PreemptTime", "None") != "None":
        return PREEMPTED
    # After notice of a time limit the job is still running; after scancel it is not.
    return TIME_LIMIT if job["JobState"] == "RUNNING" else CANCELLED


def _requeue(task: str) -> int:
    if not slurm.go_back_into_the_queue(task):
        print("`resume` of the sweep continues the run", flush=True)
    return AGAIN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
