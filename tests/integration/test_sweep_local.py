"""Sweeps on this machine through the command, with a stand-in for the trainer."""

import json
import os
import signal
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import pytest

from lighthouse.launch import SIDE_BY_SIDE_VARIABLE
from lighthouse.sweep.__main__ import collect_command, resume_command
from lighthouse.sweep.local import check_room, run_local
from lighthouse.sweep.resources import Resources
from lighthouse.sweep.run_folder import FAILED, FINISHED, STOPPED, read_runs, write_members
from tests.support import ROOT
from tests.support.processes import python
from tests.support.sweeps import fake_python, make_run, make_submission


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three runs that has been planned, and the sweep file."""
    output = tmp_path / "out"
    runs = [make_run(output, f"k={i}", steps=20) for i in range(3)]
    write_members(output, "sweep", runs)
    file = tmp_path / "sweep.toml"
    (tmp_path / "base.toml").touch()
    file.write_text(
        f'base = "base.toml"\noutput = "{output}"\n[resources]\ngpus_per_node = 0\n'
        f"python = {json.dumps(fake_python('slow'))}\n"
    )
    return file


def start(*arguments: str | Path) -> subprocess.Popen:
    return subprocess.Popen(
        [python(), "-m", "lighthouse.sweep", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == code, printed
    return printed


def wait_for_step(output: Path, name: str) -> None:
    (run,) = (run for run in read_runs(output) if run.name == name)
    for _ in range(600):
        if (run.folder / "metrics.jsonl").exists():
            return
        time.sleep(0.1)
    raise TimeoutError(name)


def test_ctrl_c_stops_with_checkpoints_and_resume_goes_on(sweep):
    output = sweep.parent / "out"
    process = start("resume", "--local", "-j", "2", sweep)
    wait_for_step(output, "k=0")
    wait_for_step(output, "k=1")
    assert "another command is sending or running it" in finish(start("resume", sweep), 2)
    process.send_signal(signal.SIGINT)
    printed = finish(process, 1)
    assert "2 stopped, 1 not started" in printed
    finish(start("cancel", sweep, "k=2"))
    sweep.write_text(sweep.read_text().replace('"slow"', '"ok"'))
    printed = finish(start("resume", "--local", sweep, "k=[01]"))
    assert "2 done" in printed
    assert "2 done, 1 cancelled" in finish(start("status", sweep))
    finish(start("resume", "--local", "-j", "3", sweep, "k=2"))
    assert "nothing to send" in finish(start("resume", sweep))
    reasons = [[a.reason for a in run.attempts()] for run in read_runs(output)]
    assert reasons == [[STOPPED, FINISHED], [STOPPED, FINISHED], [FINISHED]]
    assert "no run is called k=9; there are: k=0 k=1 k=2" in finish(
        start("cancel", sweep, "k=9"), 2
    )


def test_one_failure_does_not_stop_the_rest(tmp_path):
    runs = [make_run(tmp_path, f"k={i}") for i in range(3)]
    (runs[1].folder / "config.toml").unlink()
    run_local(make_submission(runs), 2)
    # Two of them share the cores.
    given = json.loads((runs[2].folder / "environment.json").read_text())
    assert given[SIDE_BY_SIDE_VARIABLE] == "2"
    assert [run.done for run in runs] == [True, False, True]
    failed = runs[1].attempts()
    assert [a.reason for a in failed] == [FAILED, FAILED]
    assert "FileNotFoundError" in (failed[-1].error or "")


def test_a_refused_run_is_not_tried_again_and_says_why(sweep):
    sweep.write_text(sweep.read_text().replace('"slow"', '"refuse"'))
    printed = finish(start("resume", "--local", sweep, "k=1"), 1)
    assert "training.steps = 20: must be something else" in printed
    (run,) = (run for run in read_runs(sweep.parent / "out") if run.name == "k=1")
    assert [(a.reason, a.exit_code) for a in run.attempts()] == [(FAILED, 2)]


def test_resume_refuses_other_resources_than_the_runs_have(sweep):
    sweep.write_text(sweep.read_text().replace("gpus_per_node = 0", "gpus_per_node = 2"))
    with pytest.raises(ValueError) as refused:
        resume_command(Namespace(sweep=sweep, runs=[], local=False, jobs=None))
    assert "resources.gpus_per_node = 2: k=0 is a run of 1 processes, not 2" in str(refused.value)
    assert not (sweep.parent / "out" / "submissions").exists()


def test_an_output_folder_may_be_given_through_a_link(sweep, capsys):
    link = sweep.parent / "link"
    link.symlink_to("out")
    collect_command(Namespace(sweep=link))
    assert f"{sweep.parent}/out/results/out/results.csv\n" in capsys.readouterr().out


def test_results_are_in_a_folder_of_the_sweeps_own_name(sweep, capsys):
    """Two files may call one sweep, and one file's name may be that of another sweep."""
    output = sweep.parent / "out"
    write_members(output, "mine", read_runs(output))
    sweep.write_text('name = "mine"\n' + sweep.read_text())
    collect_command(Namespace(sweep=sweep))
    assert f"{output}/results/mine/results.csv\n" in capsys.readouterr().out
    assert [folder.name for folder in (output / "results").iterdir()] == ["mine"]


def test_the_first_entry_that_names_no_gpu_ends_the_list(monkeypatch):
    for named, there in (("-1", 0), ("", 0), ("NoDevFiles", 0), ("0,-1,2", 1), ("GPU-1a, 3", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        check_room(Resources(gpus_per_node=there), 1)
        with pytest.raises(ValueError, match=f"{there + 1} GPUs are wanted at a time, {there} are"):
            check_room(Resources(gpus_per_node=there + 1), 1)


def test_each_run_gets_gpus_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    check_room(Resources(gpus_per_node=2), 2)
    with pytest.raises(ValueError, match="6 GPUs are wanted at a time, 4 are here"):
        check_room(Resources(gpus_per_node=2), 3)
    with pytest.raises(ValueError, match=r"resources\.nodes = 2"):
        check_room(Resources(nodes=2), 1)
    with pytest.raises(ValueError, match="--jobs 0"):
        check_room(Resources(gpus_per_node=0), 0)
