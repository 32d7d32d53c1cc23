"""One attempt at a run: how it can end, what is written down, and when it is tried again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lighthouse.launch import ENVIRONMENT
from lighthouse.runs.folder import STOP_FILE
from lighthouse.runs.metrics import read_metrics
from lighthouse.sweep import worker
from lighthouse.sweep.resources import Resources
from lighthouse.sweep.run_folder import (
    ALIVE_FILE,
    CANCEL_FILE,
    CANCELLED,
    DIVERGED,
    DONE_FILE,
    FAILED,
    FINISHED,
    LOST,
    STOPPED,
    Attempt,
)
from lighthouse.sweep.state import is_alive, run_states
from lighthouse.sweep.submission import next_submission, write_submission
from lighthouse.sweep.submit import unfinished
from lighthouse.sweep.worker import AGAIN, error_of
from tests.support.commands import StandIns
from tests.support.sweeps import make_run, make_submission

CAUSE = "The above exception was the direct cause of the following exception:"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.02)
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def attempt(submission) -> int:
    return worker.main([str(submission.folder), "0"])


def reasons(run) -> list[str | None]:
    return [a.reason for a in run.attempts()]


def when_training(run, action) -> threading.Thread:
    """Do something once the run has logged a step."""

    def wait() -> None:
        while not (run.folder / "metrics.jsonl").exists():
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_finished_run_is_marked_and_left_alone(tmp_path):
    run = make_run(tmp_path)
    submission = make_submission([run])
    assert attempt(submission) == 0 and run.done
    assert attempt(submission) == 0
    (only,) = run.attempts()
    assert (only.reason, only.exit_code, only.step, only.error) == (FINISHED, 0, 5, None)
    assert only.host == os.uname().nodename and only.end >= only.start > time.time() - 60


def test_a_run_that_was_finished_but_not_marked_is_not_trained_again(tmp_path):
    run = make_run(tmp_path)
    submission = make_submission([run])
    attempt(submission)
    (run.folder / DONE_FILE).unlink()
    assert attempt(submission) == 0
    assert run.done and len(run.attempts()) == 1


def test_a_failure_is_tried_again(tmp_path):
    run = make_run(tmp_path)
    submission = make_submission([run], "once")
    assert attempt(submission) == AGAIN
    assert attempt(submission) == 0
    assert reasons(run) == [FAILED, FINISHED]
    assert run.attempts()[0].error == "ValueError: no luck with 0x7f1"


def test_the_same_failure_twice_is_the_last(tmp_path, capsys):
    run = make_run(tmp_path)
    submission = make_submission([run], "same", retries=9)
    assert [attempt(submission) for _ in range(2)] == [AGAIN, 1]
    assert "failed twice the same way" in capsys.readouterr().out
    # Sent again, it gets as many attempts again.
    submission = make_submission([run], "same", retries=9)
    assert [attempt(submission) for _ in range(2)] == [AGAIN, 1]


def test_a_refusal_is_not_tried_again(tmp_path, capsys):
    run = make_run(tmp_path)
    submission = make_submission([run], "refuse", retries=9)
    assert attempt(submission) == 1
    (only,) = run.attempts()
    assert (only.reason, only.exit_code) == (FAILED, 2)
    assert only.error == "training.steps = 5: must be something else"
    assert f"{only.error}; refused, and would be again" in capsys.readouterr().out
    (state,) = run_states([run], {})
    assert (state.state, state.note) == (FAILED, only.error)
    # Sent again, it gets a new chance.
    assert attempt(make_submission([run])) == 0


def test_a_run_that_diverged_is_not_tried_again_unless_it_is_named(tmp_path, capsys):
    run = make_run(tmp_path)
    assert attempt(make_submission([run], "diverge", retries=9)) == 1
    (only,) = run.attempts()
    assert (only.reason, only.exit_code) == (DIVERGED, 3)
    assert f"{only.error}; it would again" in capsys.readouterr().out
    states = run_states([run], {})
    assert (states[0].state, states[0].note) == (DIVERGED, "step 3: the loss is not finite")
    assert unfinished(states) == [] and unfinished(states, named=True) == states


def test_failures_are_limited(tmp_path):
    run = make_run(tmp_path)
    submission = make_submission([run], "different", retries=2)
    assert [attempt(submission) for _ in range(3)] == [AGAIN, AGAIN, 1]


def test_an_end_before_the_last_step_is_a_failure(tmp_path):
    run = make_run(tmp_path)
    assert attempt(make_submission([run], "early")) == AGAIN
    assert run.attempts()[0].error == "training ended before its last step without being asked to"


def test_a_signal_stops_with_a_checkpoint_and_the_next_attempt_continues(tmp_path):
    run = make_run(tmp_path, steps=20)
    submission = make_submission([run], "slow")
    thread = when_training(run, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert attempt(submission) == 0
    thread.join()
    (stopped,) = run.attempts()
    assert stopped.reason == STOPPED and 0 < stopped.step < 20
    assert not (run.folder / STOP_FILE).exists()
    assert attempt(make_submission([run])) == 0
    assert run.done and [r["step"] for r in read_metrics(run.folder)] == list(range(1, 21))


def test_a_cancelled_run_stops_and_does_not_start(tmp_path):
    run = make_run(tmp_path, steps=20)
    submission = make_submission([run], "slow")
    thread = when_training(run, (run.folder / CANCEL_FILE).touch)
    assert attempt(submission) == 0
    thread.join()
    assert reasons(run) == [CANCELLED]
    assert attempt(submission) == 0
    assert reasons(run) == [CANCELLED]


def test_a_killed_attempt_is_noted_by_the_next(tmp_path):
    run = make_run(tmp_path)
    (run.folder / "train.log").touch()
    begun = {"number": 1, "submission": 1, "start": 1.0, "host": "x", "pid": 1}
    run.log_attempt(begun | {"job": "1_0", "commit": None})
    with (run.folder / "attempts.jsonl").open("a") as file:
        file.write('{"number": 1, "en')  # the worker died while it wrote
    assert attempt(make_submission([run])) == 0
    assert reasons(run) == [LOST, FINISHED]


def test_what_keeps_training_from_starting_is_the_error_of_an_attempt(tmp_path):
    run = make_run(tmp_path)
    resources = Resources(gpus_per_node=0, python=["pyhton3"])
    submission = next_submission(tmp_path, "test", resources, [run.folder], slurm=False)
    write_submission(submission)
    assert [attempt(submission) for _ in range(2)] == [AGAIN, 1]
    (state,) = run_states([run], {})
    assert state.state == FAILED and len(state.attempts) == 2
    assert state.note == "FileNotFoundError: [Errno 2] No such file or directory: 'pyhton3'"


def test_an_attempt_is_judged_by_its_own_end(tmp_path):
    run = make_run(tmp_path, steps=3)
    begun = {"number": 9, "submission": 1, "start": 1.0, "host": "x", "pid": 1, "job": None}
    other = begun | {"commit": None, "end": 2.0, "reason": FAILED}
    thread = when_training(run, lambda: run.log_attempt(other))
    assert attempt(make_submission([run], "slow")) == 0
    thread.join()
    assert run.done and reasons(run) == [FINISHED, FAILED]


def test_a_trainer_is_found_by_any_spelling_of_its_folder(tmp_path):
    run = make_run(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    spelled = tmp_path / "link" / run.folder.name / "config.toml"
    command = [sys.executable, "-c", "input('ready')", str(spelled)]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        assert process.stdout.read(5) == b"ready"  # its command line is there by now
        begun = {"number": 1, "submission": 1, "start": 1.0, "host": os.uname().nodename}
        trainer = Attempt(**begun, pid=process.pid, job=None, commit=None)
        assert is_alive(trainer, run)
        assert not is_alive(trainer, make_run(tmp_path / "real", "other"))
        process.communicate(b"\n")


def test_a_run_is_not_trained_twice_at_a_time(tmp_path):
    run = make_run(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()", str(run.folder)], stdin=-1) as process:
        begun = {"number": 1, "submission": 1, "start": 1.0, "host": os.uname().nodename}
        run.log_attempt(begun | {"pid": process.pid, "job": None, "commit": None})
        with pytest.raises(RuntimeError, match=f"process {process.pid} on .* is training it"):
            attempt(make_submission([run]))
        process.communicate(b"\n")


def test_while_training_a_file_tells_other_machines(tmp_path):
    run = make_run(tmp_path, steps=5)
    seen: list[bool] = []
    thread = when_training(run, lambda: seen.append((run.folder / ALIVE_FILE).exists()))
    assert attempt(make_submission([run], "slow")) == 0
    thread.join()
    assert seen == [True] and not (run.folder / ALIVE_FILE).exists()


def test_the_environment_names_the_run_and_shares_no_wandb_id(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "of another")
    assert attempt(make_submission([run])) == 0
    given = json.loads((run.folder / "environment.json").read_text())
    assert given["WANDB_RUN_GROUP"] == "test" and given["WANDB_RUN_NAME"] == "k=1"
    assert "WANDB_RUN_ID" not in given
    assert ENVIRONMENT.items() <= given.items()


def test_training_is_launched_with_the_runs_configuration(tmp_path):
    run = make_run(tmp_path)
    assert attempt(make_submission([run])) == 0
    arguments = json.loads((run.folder / "arguments.json").read_text())
    launcher = ["-m", "lighthouse.launch", "--processes", "1", "--"]
    assert arguments == ["ok", *launcher, "--job.config_file", str(run.folder / "config.toml")]


def test_a_task_of_slurm_trains_in_a_step_on_its_nodes(tmp_path, monkeypatch):
    """With the sweep's options of srun; nodes meet at the first one by the run's identity."""
    srun = StandIns(tmp_path / "bin")
    srun("srun", "exit 7")
    srun("scontrol", "echo JobState=CANCELLED")
    monkeypatch.setenv("PATH", str(srun.folder), prepend=os.pathsep)
    for name, value in (("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "0")):
        monkeypatch.setenv(name, value)
    run = make_run(tmp_path / "out")
    resources = Resources(nodes=4, gpus_per_node=8, cpus_per_task=3, srun=["--mpi=none"])
    submission = next_submission(tmp_path / "out", "test", resources, [run.folder], slurm=True)
    write_submission(submission)
    assert attempt(submission) == AGAIN
    (only,) = run.attempts()
    assert (only.job, only.exit_code, only.error) == ("7_0", 7, "exit code 7")
    (words,) = srun.calls("srun")
    meet = words.index("--meet") + 1
    assert re.fullmatch(rf"{socket.gethostname()}:\d+", words[meet])
    assert words == [
        *("--ntasks=4", "--ntasks-per-node=1", "--kill-on-bad-exit=1"),
        *("--cpus-per-task=3", "--mpi=none"),
        *(sys.executable, "-m", "lighthouse.launch", "--processes", "8"),
        *("--nodes", "4", "--meet", words[meet], "--run-id", "0123abcd"),
        *("--", "--job.config_file", str(run.folder / "config.toml")),
    ]


@pytest.mark.parametrize(
    ("log", "exit_code", "error"),
    [
        (
            "a\n[rank1]: torch.OutOfMemoryError: CUDA\nKeyError: 2\n",
            1,
            "torch.OutOfMemoryError: CUDA",
        ),
        ("[rank0]:[rank0]: ValueError: x\nChildFailedError: y\n", 1, "ValueError: x"),
        ("x.errors.ChildFailedError: \n", 1, "exit code 1"),
        ("Error while loading\nno ValueError: here\n", 3, "exit code 3"),
        ("", -9, "killed by signal 9"),
        ("KeyboardInterrupt\n", 1, "KeyboardInterrupt"),
        (f"OSError: x\n\n[rank0]: {CAUSE}\n\nSaveError: y\n", 1, "SaveError: y"),
        (f"RuntimeError: x\n\n{CAUSE}\n\na.BackendCompilerFailed: y\n", 1, "RuntimeError: x"),
        ("srun: error: n1: task 0: Out Of Memory\n", 1, "srun: error: n1: task 0: Out Of Memory"),
        ("srun: error: n1: task 0: Exited with exit code 1\n", 1, "exit code 1"),
        ("ValueError: x\nrefused: a.b = 1: must be 2\n", 2, "a.b = 1: must be 2"),
        ("refused: earlier\nrefused: a.b = 1: must be 2\n", 2, "a.b = 1: must be 2"),
        ("refused: rank 1: a.b = 1: no\nrefused: a.b = 1: no\n", 2, "a.b = 1: no"),
        ("refused: rank 1: no text\n", 2, "rank 1: no text"),
        ("ValueError: x\nI refused: it\n", 2, "ValueError: x"),
        ("refused: by a tool\nValueError: x\n", 1, "ValueError: x"),
        ("[rank0]: RuntimeError: [..] Connection closed by peer\nOSError: x\n", 1, "OSError: x"),
        (
            "torch.distributed.DistBackendError: NCCL error\n",
            *(1, "torch.distributed.DistBackendError: NCCL error"),
        ),
        (
            "[rank0]: RuntimeError: Connection reset by peer\n"
            "launch: rank 1 failed, killed by signal 9\n",
            *(1, "rank 1 killed by signal 9: out of memory, perhaps"),
        ),
        ("OSError: x\nlaunch: rank 1 failed, killed by signal 6\n", 1, "OSError: x"),
    ],
)
def test_the_error_of_a_log(log, exit_code, error):
    assert error_of(log, exit_code) == error


def test_paths_with_spaces_and_shell_characters(tmp_path):
    output = tmp_path / "a b; $(touch pwned) 'c'"
    run = make_run(output)
    assert attempt(make_submission([run])) == 0
    assert run.done and not list(Path.cwd().glob("pwned")) and not list(tmp_path.glob("pwned"))
