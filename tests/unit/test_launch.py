"""The launcher, with stand-ins for the trainer and for Slurm that note how they were called."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lighthouse.launch import ENVIRONMENT, SIDE_BY_SIDE_VARIABLE, Launch, set_threads, threads
from lighthouse.sweep.resources import Resources
from lighthouse.sweep.submission import next_submission, write_submission
from tests.support import ROOT
from tests.support.commands import StandIns
from tests.support.processes import python
from tests.support.sweeps import make_run
from tests.support.tiers import tiers

SCRIPTS = ROOT / "scripts"
LAUNCH = ["python", "-m", "lighthouse.launch"]
SLURM = {"SLURM_JOB_ID": "10042", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
# Notes how it was called, and does what a test tells it to.
TRAINER = """
import json, os, signal, sys, time
call = {"arguments": sys.argv[1:], "environment": dict(os.environ)}
with open(f"rank-{os.environ['RANK']}.json", "w") as file:
    json.dump(call, file)
rank = int(os.environ["RANK"])
exec(os.environ.get("TRAINER", ""))
"""
# Of a srun of one node: what follows its options.
RUN_IT = 'while [[ $1 == --* ]]; do shift; done; exec "$@"'

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path / "bin")


@pytest.fixture
def start(tmp_path: Path, stand_ins: StandIns) -> Iterator[Start]:
    """Start a command in a folder whose torchtitan is a stand-in."""
    (tmp_path / "torchtitan").mkdir()
    (tmp_path / "torchtitan" / "__init__.py").touch()
    (tmp_path / "torchtitan" / "train.py").write_text(TRAINER)
    started: list[subprocess.Popen[str]] = []
    ours = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") and k != "NPROC"}

    def run(
        *command: str | Path, trainer: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        path = f"{stand_ins.folder}:{Path(python()).parent}:{os.environ['PATH']}"
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=tmp_path,
            env=ours | {"PATH": path, "TRAINER": trainer} | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()


def end_of(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code, and the lines on the screen."""
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed.splitlines()


def call_of(folder: Path, rank: int = 0) -> dict[str, Any]:
    """How a rank of the trainer was called."""
    call: dict[str, Any] = json.loads((folder / f"rank-{rank}.json").read_text())
    return call


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_process_for_each_gpu_or_as_many_as_are_named(start: Start, tmp_path: Path) -> None:
    arguments = ["--job.config_file", "a b.toml", "--processes", "of the trainer"]
    code, _ = end_of(start("bash", SCRIPTS / "train.sh", *arguments, env={"NPROC": "2"}))
    assert code == 0
    for rank in (0, 1):
        call = call_of(tmp_path, rank)
        assert call["arguments"] == arguments
        assert call["environment"]["WORLD_SIZE"] == "2"


def from_train_sh(start: Start, folder: Path) -> dict[str, Any]:
    assert end_of(start("bash", SCRIPTS / "train.sh", "--a.b", "c"))[0] == 0
    return call_of(folder)


def from_train_sbatch(start: Start, folder: Path) -> dict[str, Any]:
    StandIns(folder / "slurm")("srun", RUN_IT)
    env = SLURM | {"PATH": f"{folder / 'slurm'}:{Path(python()).parent}:{os.environ['PATH']}"}
    assert end_of(start("bash", SCRIPTS / "train.sbatch", "run", "--a.b", "c", env=env))[0] == 0
    return call_of(folder)


def from_a_sweep(start: Start, folder: Path) -> dict[str, Any]:
    """One attempt; the stand-in trains nothing, so that it counts as failed."""
    run = make_run(folder / "out")
    resources = Resources(gpus_per_node=0, retries=0)
    submission = next_submission(folder / "out", "test", resources, [run.folder], slurm=False)
    write_submission(submission)
    command = ["python", "-m", "lighthouse.sweep.worker", submission.folder, "0"]
    assert end_of(start(*command))[0] == 1
    return call_of(folder)


WAYS = {"train.sh": from_train_sh, "train.sbatch": from_train_sbatch, "sweep": from_a_sweep}


@pytest.mark.parametrize("way", WAYS)
def test_the_environment_reaches_the_trainer(
    way: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a sweep's trainings run is where it was sent from.
    monkeypatch.chdir(tmp_path)
    given = WAYS[way](start, tmp_path)["environment"]
    assert given.items() >= ENVIRONMENT.items()
    assert given["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "SIGUSR1" in given["PET_SIGNALS_TO_HANDLE"].split(",")
    assert float(given["PET_SHUTDOWN_TIMEOUT"]) > 60


def test_the_callers_environment_wins(start: Start, tmp_path: Path) -> None:
    mine = {"PYTORCH_ALLOC_CONF": "backend:native", "PET_SHUTDOWN_TIMEOUT": "7"}
    assert end_of(start(*LAUNCH, "--", "--a.b", "c", env=mine))[0] == 0
    assert call_of(tmp_path)["environment"].items() >= (ENVIRONMENT | mine).items()


@pytest.mark.parametrize(
    ("gpus", "processes", "base", "wanted"),
    [
        (8, 1, {}, 1),
        (1, 8, {SIDE_BY_SIDE_VARIABLE: "4"}, 1),
        (0, 1, {}, 64),
        (0, 3, {}, 21),
        (0, 2, {SIDE_BY_SIDE_VARIABLE: "4"}, 8),
        (0, 65, {}, 1),
    ],
)
def test_threads_share_the_cores_where_they_compute(
    monkeypatch: pytest.MonkeyPatch, gpus: int, processes: int, base: dict[str, str], wanted: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert threads(gpus, processes, base) == wanted


@pytest.mark.parametrize("processes", [1, 2])
def test_the_launcher_says_how_many_threads(start: Start, tmp_path: Path, processes: int) -> None:
    command = ["env", "-u", "OMP_NUM_THREADS", *LAUNCH, "--processes", str(processes), "--a.b", "c"]
    assert end_of(start(*command))[0] == 0
    wanted = threads(torch.cuda.device_count(), processes, {})
    assert call_of(tmp_path)["environment"]["OMP_NUM_THREADS"] == str(wanted)


def test_the_users_number_of_threads_wins(start: Start, tmp_path: Path) -> None:
    for processes in ("1", "2"):
        command = [*LAUNCH, "--processes", processes, "--a.b", "c"]
        assert end_of(start(*command, env={"OMP_NUM_THREADS": "3"}))[0] == 0
        assert call_of(tmp_path)["environment"]["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("given", "gpus", "wanted"), [(None, 1, 1), (None, 0, 32), ("5", 1, None)])
def test_a_trainer_without_a_launcher_chooses_itself(
    monkeypatch: pytest.MonkeyPatch, given: str | None, gpus: int, wanted: int | None
) -> None:
    """Of a single process torchrun doesn't say."""
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    set_threads()
    assert chosen == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(
    ("trainer", "code", "line"),
    [
        ("sys.exit(5 * rank)", 5, "launch: rank 1 failed, exit code 5"),
        ("rank and os.kill(os.getpid(), 9)", 1, "launch: rank 1 failed, killed by signal 9"),
    ],
)
def test_a_failure_names_its_rank(start: Start, trainer: str, code: int, line: str) -> None:
    assert_ends(start(*LAUNCH, "--processes", "2", "--", "--a.b", "c", trainer=trainer), code, line)


def assert_ends(process: subprocess.Popen[str], code: int, line: str) -> None:
    """With a line on the screen that is the last one and there only once."""
    ended, lines = end_of(process)
    assert ended == code, lines
    assert lines[-1] == line and lines.count(line) == 1
    assert not any("Traceback" in line for line in lines)


REFUSE = "from lighthouse.refusal import *; print('starting'); "


@pytest.mark.parametrize(
    ("trainer", "line"),
    [
        ("end_in_a_rank('why', rank)", "refused: why"),
        ("time.sleep(60) if rank == 0 else end_in_a_rank('why', rank)", "refused: rank 1: why"),
    ],
    ids=["all ranks", "one rank"],
)
def test_a_refusal_is_the_last_line(start: Start, trainer: str, line: str) -> None:
    command = [*LAUNCH, "--processes", "2", "--a.b", "c"]
    assert_ends(start(*command, trainer=REFUSE + trainer), 2, line)


def test_a_refusal_counts_though_another_rank_has_noted_an_error_before(start: Start) -> None:
    """As a rank does whose peer is gone, in the moment before torchrun sees why."""
    trainer = """
if rank == 0:
    noted = {"message": {"message": "peer gone", "extraInfo": {"timestamp": time.time() - 1}}}
    with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
        json.dump(noted, file)
    time.sleep(60)
from lighthouse import refusal
refusal._AFTER_RANK_0 = 1
refusal.end_in_a_rank("why", rank)
"""
    command = [*LAUNCH, "--processes", "2", "--a.b", "c"]
    assert_ends(start(*command, trainer=trainer), 2, "refused: rank 1: why")


def test_a_finished_run_is_the_last_line(start: Start) -> None:
    trainer = REFUSE + "rank or say_last('nothing is left to train', os.environ[FILE_VARIABLE])"
    command = [*LAUNCH, "--processes", "2", "--a.b", "c"]
    assert_ends(start(*command, trainer=trainer), 0, "nothing is left to train")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_is_passed_on_and_waited_for(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    trainer = f"""
def saves(number, frame):
    time.sleep(1)
    open("saved", "w").write(signal.Signals(number).name)
    sys.exit(0)
signal.signal({int(number)}, saves)
open("ready", "w")
for _ in range(600):
    time.sleep(0.1)
"""
    process = start(*LAUNCH, "--a.b", "c", trainer=trainer)
    wait_for(tmp_path / "ready", process)
    process.send_signal(number)
    code, lines = end_of(process)
    assert (code, lines[-1]) == (128 + number, f"launch: stopped by {number.name}")
    assert (tmp_path / "saved").read_text() == number.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--slurm --job.config_file a.toml", "--slurm: the run's folder comes next"),
        ("--slurm", "--slurm: the run's folder comes next"),
        ("--processes 0 --a.b c", "--processes 0: must be a number, at least 1"),
        ("--processes two --a.b c", "--processes two: must be a number"),
        ("--nodes -1 --a.b c", "--nodes -1: must be a number"),
    ],
)
def test_what_cannot_be_launched_is_refused(start: Start, arguments: str, message: str) -> None:
    code, (line,) = end_of(start(*LAUNCH, *arguments.split()))
    assert code == 2 and line.startswith(f"refused: {message}")


def test_how_it_is_used(start: Start) -> None:
    for arguments, wanted in (((), 2), (("--help",), 0)):
        code, lines = end_of(start(*LAUNCH, *arguments))
        assert code == wanted and any("--slurm RUN_FOLDER" in line for line in lines)


# ---- under Slurm


@pytest.fixture
def slurm(start: Start, stand_ins: StandIns) -> Start:
    """Start the batch script with a stand-in for srun; Slurm ends a job that it puts back."""

    def run(
        *arguments: str, srun: str, state: str = "RUNNING", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        stand_ins("srun", srun)
        stand_ins("scontrol", f"[ $1 = requeue ] && kill -TERM $PPID; echo JobState={state}")
        script = SCRIPTS / "train.sbatch"
        return start("bash", script, *arguments, env=SLURM | {"SLURM_NNODES": "2"} | (env or {}))

    return run


def requeued(stand_ins: StandIns) -> bool:
    return ["requeue", "10042"] in stand_ins.calls("scontrol")


def test_slurm_gives_the_nodes(slurm: Start, stand_ins: StandIns) -> None:
    process = slurm("my run", "--job.config_file", "a b.toml", srun="exit 7")
    assert end_of(process)[0] == 7
    (words,) = stand_ins.calls("srun")
    meet = words[words.index("--meet") + 1]
    assert re.fullmatch(rf"{re.escape(socket.gethostname())}:\d+", meet)
    assert words == [
        *("--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"),
        *(python(), "-m", "lighthouse.launch", "--processes", "2"),
        *("--nodes", "2", "--meet", meet, "--run-id", "10042.0"),
        *("--", "--job.dump_folder", "my run", "--job.config_file", "a b.toml"),
    ]
    assert not requeued(stand_ins)


def test_slurms_cpus_and_restarts_are_passed_on(slurm: Start, stand_ins: StandIns) -> None:
    env = {"SLURM_CPUS_PER_TASK": "6", "SLURM_RESTART_COUNT": "3", "NPROC": "5"}
    assert end_of(slurm("run", srun="exit 0", env=env))[0] == 0
    (words,) = stand_ins.calls("srun")
    assert "--cpus-per-task=6" in words
    assert words[words.index("--run-id") + 1] == "10042.3"
    assert words[words.index("--processes") + 1] == "5"


def test_slurm_needs_the_run_folder(slurm: Start, stand_ins: StandIns) -> None:
    code, lines = end_of(slurm("--job.config_file", "a.toml", srun="exit 0"))
    assert code == 2 and lines[-1].startswith("refused: --slurm: the run's folder comes next")
    assert not stand_ins.calls("srun")


@pytest.mark.parametrize(
    ("trainer", "state", "back"),
    [
        ("exit 0", "RUNNING", True),
        ("rm 'my run/STOP'", "RUNNING", False),  # finished all the same
        ("exit 0", "CANCELLED", False),
    ],
    ids=["stopped", "finished", "cancelled"],
)
@pytest.mark.parametrize(
    "number", tiers([signal.SIGUSR1, signal.SIGTERM], signal.SIGUSR1), ids=lambda n: n.name
)
def test_a_notice_stops_and_requeues(
    slurm: Start,
    stand_ins: StandIns,
    tmp_path: Path,
    number: signal.Signals,
    trainer: str,
    state: str,
    back: bool,
) -> None:
    # Until STOP is there; not for ever, so that nothing stays behind a failed test.
    wait = "for i in $(seq 300); do [ -e 'my run/STOP' ] && break; sleep 0.1; done"
    process = slurm("my run", srun=f"touch started; {wait}; {trainer}", state=state)
    wait_for(tmp_path / "started", process)
    process.send_signal(number)
    code, lines = end_of(process)
    # A job that is put back does not end by itself.
    assert code == (-signal.SIGTERM if back else 0), lines
    assert requeued(stand_ins) == back


@pytest.mark.parametrize(
    ("reason", "back"), [("SIGTERM", True), ("the file STOP", False)], ids=["TERM", "file"]
)
def test_a_stop_without_notice(slurm: Start, stand_ins: StandIns, reason: str, back: bool) -> None:
    # Slurm preempts with SIGTERM to the trainer alone; the user writes the file.
    process = slurm("my run", srun=f"echo {reason} >'my run/STOP'; exit 1")
    assert end_of(process)[0] == (-signal.SIGTERM if back else 1)
    assert requeued(stand_ins) == back


def test_a_stop_of_the_attempt_before_counts_no_more(
    slurm: Start, stand_ins: StandIns, tmp_path: Path
) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "STOP").write_text("SIGTERM\n")
    assert end_of(slurm("my run", srun="exit 0"))[0] == 0
    assert not requeued(stand_ins)


def test_a_refusal_under_slurm_is_the_last_line(slurm: Start, stand_ins: StandIns) -> None:
    trainer = {"TRAINER": REFUSE + "end_in_a_rank('why', rank)", "SLURM_NNODES": "1"}
    assert_ends(slurm("my run", srun=RUN_IT, env=trainer), 2, "refused: why")
    assert not requeued(stand_ins)


def test_on_several_nodes_the_batch_process_says_it(
    slurm: Start, stand_ins: StandIns, tmp_path: Path
) -> None:
    """When srun has ended the other nodes' launchers, and reports those."""
    said = "printf 'refused: why' >\"$LIGHTHOUSE_LAST_WORD\""
    process = slurm("my run", srun=f"{said}; echo srun: error: n2: task 1: Killed; exit 137")
    assert_ends(process, 2, "refused: why")
    assert not requeued(stand_ins)
    assert not list((tmp_path / "my run").iterdir())


def test_what_an_attempt_before_has_said_counts_no_more(slurm: Start, tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "LAST_WORD").write_text("refused: why")
    assert end_of(slurm("my run", srun="exit 7"))[0] == 7


def test_a_command_has_no_srun_without_slurm() -> None:
    command = Launch(processes=3, python=("apptainer", "exec", "python")).command(["--a.b", "c d"])
    launch = ["-m", "lighthouse.launch", "--processes", "3", "--", "--a.b", "c d"]
    assert command == ["apptainer", "exec", "python", *launch]
