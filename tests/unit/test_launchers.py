"""The launchers with stand-ins for torchrun and Slurm, which note how they were called."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
NOTE = 'printf "%s|" "$(basename "$0")" "$@" >>"$CALLS"; echo >>"$CALLS"\n'
SLURM = {
    "SLURM_JOB_ID": "10042",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
}
REAL_SLEEP = shutil.which("sleep")


@pytest.fixture
def launch(tmp_path: Path):
    """Start a launcher in an empty folder, with stand-ins for the named commands."""
    (tmp_path / "bin").mkdir()

    def start(script: Path, *args: str, env: dict[str, str], **commands: str) -> subprocess.Popen:
        for name, command in commands.items():
            file = tmp_path / "bin" / name
            file.write_text(f"#!/usr/bin/env bash\n{NOTE}{command}\n")
            file.chmod(0o755)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(script), *args],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "CALLS": str(tmp_path / "calls")} | env,
        )

    return start


@pytest.fixture
def slurm(launch):
    def start(*args: str, srun: str, state: str = "RUNNING") -> subprocess.Popen:
        # `sleep` is where the script waits for Slurm to end it.
        commands = {"scontrol": f"echo JobState={state}", "hostname": "echo node1", "sleep": ""}
        return launch(SCRIPTS / "train.sbatch", *args, env=SLURM, srun=srun, **commands)

    return start


def calls(folder: Path, command: str) -> list[list[str]]:
    """Arguments of each call of a stand-in."""
    lines = (folder / "calls").read_text().splitlines()
    return [args for name, *args in (line.split("|")[:-1] for line in lines) if name == command]


def test_one_machine(launch, tmp_path):
    # Copied away from the repository's environment, whose torchrun would come first.
    (tmp_path / "scripts").mkdir()
    script = Path(shutil.copy(SCRIPTS / "train.sh", tmp_path / "scripts"))
    args = ("--job.config_file", "a b.toml")
    assert launch(script, *args, env={"NPROC": "3"}, torchrun="exit 5").wait() == 5
    assert calls(tmp_path, "torchrun") == [
        ["--standalone", "--nproc_per_node=3", "-m", "torchtitan.train", *args]
    ]


def test_slurm_gives_the_nodes(slurm, tmp_path):
    args = ("--job.config_file", "a b.toml")
    assert slurm("my run", *args, srun="exit 7").wait() == 7
    assert calls(tmp_path, "srun") == [
        [
            *["torchrun", "--nnodes=2", "--nproc_per_node=8", "--rdzv_backend=c10d"],
            *["--rdzv_id=10042.0", "--rdzv_endpoint=node1:20042", "-m", "torchtitan.train"],
            *["--job.dump_folder", "my run", *args],
        ]
    ]
    assert ["requeue", "10042"] not in calls(tmp_path, "scontrol")


def test_slurm_needs_the_run_folder(slurm):
    assert slurm("--job.config_file", "a.toml", srun="exit 0").wait() == 2


@pytest.mark.parametrize(
    ("trainer", "state", "requeued"),
    [
        ("true", "RUNNING", True),
        ("rm 'my run/STOP'", "RUNNING", False),  # finished all the same
        ("true", "CANCELLED", False),
    ],
    ids=["stopped", "finished", "cancelled"],
)
def test_a_notice_stops_and_requeues(slurm, tmp_path, trainer, state, requeued):
    # Until STOP is there; not for ever, so that nothing stays behind a failed test.
    wait = f"for i in $(seq 300); do [ -e 'my run/STOP' ] && break; {REAL_SLEEP} 0.1; done"
    process = slurm("my run", srun=f"touch started; {wait}; {trainer}", state=state)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
    assert (["requeue", "10042"] in calls(tmp_path, "scontrol")) == requeued


@pytest.mark.parametrize(
    ("reason", "requeued"), [("SIGTERM", True), ("the file STOP", False)], ids=["TERM", "file"]
)
def test_a_stop_without_notice(slurm, tmp_path, reason, requeued):
    # Slurm preempts with SIGTERM to the trainer alone; the user writes the file.
    process = slurm("my run", srun=f"echo {reason} >'my run/STOP'; exit 1")
    assert process.wait() == 1
    assert (["requeue", "10042"] in calls(tmp_path, "scontrol")) == requeued
