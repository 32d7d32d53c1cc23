"""What state a run is in, from its folder and Slurm's queue."""

import os
import socket
import time

from lighthouse.slurm import Task
from lighthouse.sweep.run_folder import (
    ALIVE_FILE,
    CANCEL_FILE,
    CANCELLED,
    DONE_FILE,
    FAILED,
    PREEMPTED,
    Attempt,
)
from lighthouse.sweep.state import (
    ALIVE_SECONDS,
    DONE,
    INTERRUPTED,
    NOT_STARTED,
    QUEUED,
    RUNNING,
    UNKNOWN,
    is_alive,
    run_states,
)
from tests.support.sweeps import END, log_attempts, make_run, make_submission


def state(run, task=None, answers=True):
    tasks = {run.folder.name: task} if task else {}
    (found,) = run_states([run], tasks if answers else None)
    return found.state, found.note


def test_states(tmp_path):
    run = make_run(tmp_path)
    waits, runs = (Task("x", "7", 0, s, "Priority") for s in ("PENDING", "RUNNING"))
    assert state(run) == (NOT_STARTED, "")
    assert state(run, waits) == (QUEUED, "(Priority)")
    (run.folder / CANCEL_FILE).touch()
    assert state(run) == (CANCELLED, "")
    (run.folder / CANCEL_FILE).unlink()
    log_attempts(run, PREEMPTED)
    assert state(run) == (INTERRUPTED, "after preempted")
    assert state(run, waits) == (QUEUED, "(Priority) after preempted")
    log_attempts(run, PREEMPTED, open_end=True)
    assert state(run, runs) == (RUNNING, "")
    assert state(run) == (INTERRUPTED, "killed without notice on elsewhere")
    assert state(run, answers=False) == (UNKNOWN, "job 7_0")
    run.log_attempt({"number": 2, "end": 2100.0, "reason": FAILED} | END | {"error": "E: x"})
    assert state(run) == (FAILED, "E: x")
    assert state(run, waits) == (QUEUED, "(Priority) after failed: E: x")
    (run.folder / CANCEL_FILE).touch()
    assert state(run) == (CANCELLED, "")
    (run.folder / DONE_FILE).touch()
    assert state(run, runs) == (DONE, "")


def test_what_ended_before_the_first_attempt_has_a_log_of_slurms(tmp_path):
    runs = [make_run(tmp_path, f"k={i}") for i in range(2)]
    submission = make_submission(runs, slurm=True)
    assert state(runs[1]) == (NOT_STARTED, "")
    submission.slurm_log(1).touch()
    note = f"ended before the first attempt, see {submission.folder}/slurm-1.log"
    assert state(runs[1]) == (NOT_STARTED, note)
    assert state(runs[0]) == (NOT_STARTED, "")


def attempt_of(host: str, pid: int = 1, job: str | None = None) -> Attempt:
    return Attempt(1, 1, 1.0, host, pid, job, commit=None)


def test_an_attempt_on_another_machine_is_alive_while_its_worker_touches_a_file(tmp_path):
    run = make_run(tmp_path)
    elsewhere = attempt_of("elsewhere")
    assert not is_alive(elsewhere, run)
    alive = run.folder / ALIVE_FILE
    alive.touch()
    assert is_alive(elsewhere, run)
    assert not is_alive(attempt_of("elsewhere", job="7_0"), run)  # the queue knows better
    assert not is_alive(attempt_of(socket.gethostname(), pid=2**22 + 1), run)
    long_ago = time.time() - ALIVE_SECONDS - 5
    os.utime(alive, (long_ago, long_ago))
    assert not is_alive(elsewhere, run)
    assert sorted(f.name for f in run.folder.iterdir() if f.name.startswith(".")) == []


def test_a_run_at_work_on_another_machine_is_running(tmp_path):
    run = make_run(tmp_path)
    log_attempts(run, open_end=True)
    run.log_attempt({"number": 1, "job": None})
    assert state(run) == (INTERRUPTED, "killed without notice on elsewhere")
    (run.folder / ALIVE_FILE).touch()
    assert state(run) == (RUNNING, "on elsewhere")
