"""The batch script, and Slurm's commands when they are missing, slow or refuse."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lighthouse.sweep import slurm
from lighthouse.sweep.batch import batch_script
from lighthouse.sweep.resources import Resources
from lighthouse.sweep.slurm import SlurmError, Task
from lighthouse.sweep.state import queued_tasks
from tests.sweeps import make_run, make_submission


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put a shell script in the place of one of Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    # Nothing else, so that a Slurm that is installed is not found.
    monkeypatch.setenv("PATH", str(folder))

    def fake(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return fake


def test_the_script_has_all_resources(tmp_path):
    runs = [make_run(tmp_path, f"k={i}") for i in range(3)]
    resources = Resources(
        nodes=2,
        gpus_per_node=8,
        time="1-0",
        cpus_per_task=16,
        mem="0",
        partition="a,b",
        account="me",
        qos="low",
        constraint="h100&ib",
        sbatch=["--exclusive", "--nice=5"],
        setup=["module load cuda", 'export A="b c"'],
        max_running=2,
        notice_seconds=90,
    )
    script = batch_script(replace(make_submission(runs, slurm=True), resources=resources))
    options = [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]
    for option in [
        *("--array=0-2%2", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"),
        *("--cpus-per-task=16", "--mem=0", "--time=1-0", "--partition=a,b", "--account=me"),
        *("--qos=low", "--constraint=h100&ib", "--signal=B:USR1@90", "--open-mode=append"),
        *("--requeue", "--exclusive", "--nice=5"),
        f'--output="{tmp_path}/submissions/0001/slurm-%a.log"',
    ]:
        assert option in options
    lines = script.splitlines()
    assert lines.index("module load cuda") < lines.index('export A="b c"') < len(lines) - 1
    assert "gpus-per-node" not in batch_script(make_submission(runs, slurm=True))


def test_nothing_in_the_script_is_executed_but_the_worker(tmp_path, monkeypatch):
    output = tmp_path / "o $(touch pwned) `touch pwned`;touch pwned"
    work = tmp_path / "w 'x' \"y\" $(touch pwned)\n;touch pwned #"
    work.mkdir()
    submission = replace(make_submission([make_run(output)], slurm=True), directory=work)
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    done = subprocess.run(
        ["bash"],
        input=batch_script(submission),
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "7"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"-m lighthouse.sweep.worker {submission.folder} 7\n"
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


def test_without_slurm_the_error_says_so(fake):
    with pytest.raises(SlurmError, match="squeue: not found"):
        slurm.queue()


def test_a_command_without_an_answer_times_out(fake, monkeypatch):
    fake("squeue", "exec /bin/sleep 60")
    monkeypatch.setattr(slurm, "QUERY_SECONDS", 0.2)
    with pytest.raises(SlurmError, match=r"squeue: no answer from Slurm within 0.2 s"):
        slurm.queue()


def test_a_refusal_is_quoted(fake):
    fake("sbatch", "echo 'error: Invalid account' >&2; exit 1")
    with pytest.raises(SlurmError, match="sbatch: error: Invalid account"):
        slurm.submit("")


def test_sbatch_gets_the_script_and_returns_the_id(fake, tmp_path):
    fake("sbatch", f"/bin/cat > '{tmp_path}/got'; echo '12;cluster'")
    assert slurm.submit("the script") == "12"
    assert (tmp_path / "got").read_text() == "the script"


def test_the_queue_has_what_waits_and_runs(fake):
    fake(
        "squeue",
        r"""printf '7|0|RUNNING|None|s-0001-x\n7|1|PENDING|BeginTime|s-0001-x\n'
        printf '7|2|TIMEOUT|TimeLimit|s-0001-x\n8|N/A|RUNNING|None|other\n'
        printf '7|3|COMPLETING|None|s-0001-x\n'""",
    )
    assert slurm.queue() == [
        Task("s-0001-x", "7", 0, "RUNNING", "None"),
        Task("s-0001-x", "7", 1, "PENDING", "BeginTime"),
        Task("s-0001-x", "7", 3, "COMPLETING", "None"),
    ]


def test_another_jobs_name_may_have_any_character(fake):
    fake("squeue", "echo '8|0|RUNNING|None|eval|x|y'")
    assert slurm.queue() == [Task("eval|x|y", "8", 0, "RUNNING", "None")]


def test_no_option_is_given_twice(tmp_path):
    script = batch_script(make_submission([make_run(tmp_path)], slurm=True))
    options = [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]
    for option in options:
        with pytest.raises(ValueError, match=r"resources\.sbatch = .*: is set by the sweep; "):
            Resources(sbatch=[option]).check()


def test_tasks_are_found_by_the_name_of_their_submission(fake, tmp_path):
    runs = [make_run(tmp_path / "out", f"k={i}") for i in range(2)]
    assert queued_tasks(tmp_path / "out") == {}  # Slurm is not asked
    make_submission(runs)
    name = make_submission(runs[::-1], slurm=True).job_name
    fake("squeue", f"echo '7|0|PENDING|None|{name}'; echo '8|1|PENDING|None|x-0001-012345'")
    tasks = queued_tasks(tmp_path / "out")
    assert {folder: task.array for folder, task in tasks.items()} == {runs[1].folder.name: "7"}


@pytest.mark.parametrize("removed", ["1", "2"])
def test_a_submission_without_its_record_is_in_no_ones_way(tmp_path, removed):
    run = make_run(tmp_path)
    for _ in range(2):
        make_submission([run])
    (tmp_path / "submissions" / f"000{removed}" / "submission.json").unlink()
    assert make_submission([run]).number == 3
    shutil.rmtree(tmp_path / "submissions" / "0001")
    assert make_submission([run]).number == 4
