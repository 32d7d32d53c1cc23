"""The batch script of a submission."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lighthouse.sweep.batch import batch_script
from lighthouse.sweep.resources import Resources
from tests.support.sweeps import make_run, make_submission


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


def test_no_option_is_given_twice(tmp_path):
    script = batch_script(make_submission([make_run(tmp_path)], slurm=True))
    options = [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]
    for option in options:
        with pytest.raises(ValueError, match=r"resources\.sbatch = .*: is set by the sweep; "):
            Resources(sbatch=[option]).check()
