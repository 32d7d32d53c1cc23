"""What is read from run folders: states, progress, tables and plots."""

import csv
import json
import math
import shutil
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from lighthouse.sweep import code
from lighthouse.sweep.collect import collect, markdown, write_results
from lighthouse.sweep.plots import plot_sweep
from lighthouse.sweep.runs import (
    CANCEL_FILE,
    CANCELLED,
    DONE_FILE,
    FAILED,
    PREEMPTED,
    Attempt,
    active_seconds,
    read_runs,
    write_members,
    write_run,
)
from lighthouse.sweep.screen import status_table
from lighthouse.sweep.slurm import Task
from lighthouse.sweep.state import (
    DONE,
    INTERRUPTED,
    NOT_STARTED,
    QUEUED,
    RUNNING,
    UNKNOWN,
    run_states,
)
from lighthouse.sweep.submit import planned_states
from tests.sweeps import make_run, make_submission

START = {"submission": 1, "host": "elsewhere", "pid": 1, "job": "7_0", "commit": None}
END = {"exit_code": 1, "step": 0, "error": None}


def log(run, *reasons, open_end=False):
    """Attempts of 100 s each, every 1000 s."""
    for number, reason in enumerate(reasons, 1):
        start = number * 1000.0
        run.log_attempt({"number": number, "start": start} | START)
        run.log_attempt({"number": number, "end": start + 100, "reason": reason} | END)
    if open_end:
        number = len(reasons) + 1
        run.log_attempt({"number": number, "start": number * 1000.0} | START)


def log_metrics(run, steps=20, switch=15, loss=lambda step: 3.0):
    """A step every 2 s, from 1010 s on."""
    with (run.folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            stage = "lighthouse" if step < switch else "dense"
            record = {"step": step, "time": 1010.0 + 2 * step, "loss": loss(step), "stage": stage}
            record |= {"tokens_per_second": 50.0, "tokens_seen": step * 10}
            file.write(json.dumps(record | {"time_metrics/eta(s)": 7.0}) + "\n")
        file.write(json.dumps({"step": steps, "time": 1.0, "validation_loss": 2.5}) + "\n")


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
    log(run, PREEMPTED)
    assert state(run) == (INTERRUPTED, "after preempted")
    assert state(run, waits) == (QUEUED, "(Priority) after preempted")
    log(run, PREEMPTED, open_end=True)
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


def test_the_status_shows_progress_and_the_error(tmp_path):
    run = make_run(tmp_path, "k=[1]", steps=40)
    log_metrics(run)
    log(run, PREEMPTED, FAILED)
    run.log_attempt({"number": 2, "error": "ValueError: [red]no[/red]"})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(status_table(run_states([run], {}), "grid"))
    text = captured.get()
    assert "grid: 1 runs: 1 failed" in text
    for part in ("20", "40", "50%", "3.0000", "0:00:07", "ValueError: [red]no[/red]"):
        assert part in text


def test_active_time_is_that_of_attempts():
    def attempt(start, end):
        return Attempt(1, 1, start, "h", 1, None, None, end)

    attempts = [attempt(0.0, 10.0), attempt(20.0, 30.0), attempt(50.0, None)]
    assert [active_seconds(attempts, t) for t in (5, 15, 25, 40, 60)] == [5, 10, 15, 20, 30]


def test_a_row_of_the_table(tmp_path):
    run = make_run(tmp_path)
    log_metrics(run, loss=lambda step: 9.0 if step == 15 else 3.0)
    log(run, PREEMPTED, FAILED)
    (row,) = collect([run])
    assert row | {"identity": "0123abcd"} == {
        "name": "k=1",
        "identity": "0123abcd",
        "overrides": {"lighthouse.topk": 1},
        "done": False,
        "steps": 20,
        "tokens": 200,
        "processes": 1,
        "attempts": 2,
        "gpu_hours": pytest.approx(200 / 3600),
        "lighthouse_tokens_per_second": 50.0,
        "dense_tokens_per_second": 50.0,
        "loss_before_switch": 3.0,
        "spike": 9.0,
        "steps_to_recover": None,
        "final_loss": 4.0,  # of six dense steps, the spike among them
        "validation_loss": 2.5,
    }


def test_a_run_that_has_not_begun_has_an_empty_row(tmp_path):
    (row,) = collect([make_run(tmp_path)])
    assert (row["steps"], row["final_loss"], row["gpu_hours"]) == (0, None, 0.0)


def test_results_in_three_forms(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a=1", "b=2,c=x")]
    log_metrics(runs[0], loss=lambda step: math.nan if step == 20 else 3.0)
    rows = collect(runs)
    table, as_json, text = (path.read_text() for path in write_results(rows, tmp_path))
    assert json.loads(as_json)[0]["final_loss"] == "nan"
    (first, second) = csv.DictReader(table.splitlines())
    assert first["lighthouse.topk"] == "1" and first["tokens"] == "200"
    assert second["name"] == "b=2,c=x" and second["final_loss"] == ""
    lines = text.splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines} == {lines[0].count("|")}
    assert text == markdown(rows)


def test_plots(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a", "b", "not begun")]
    for run in runs[:2]:
        log_metrics(run)
        log(run, PREEMPTED)
    paths = plot_sweep(runs, tmp_path)
    assert [path.name for path in paths] == [
        *("loss_over_steps.png", "loss_over_tokens.png", "loss_over_gpu_hours.png"),
        "loss_against_cost.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    with pytest.raises(ValueError, match="no run has logged a step"):
        plot_sweep(runs[2:], tmp_path)


def test_runs_of_a_sweep_and_of_its_folder(tmp_path):
    runs = [make_run(tmp_path, name) for name in "cab"]
    write_members(tmp_path, "grid", runs[:2])
    assert [run.name for run in read_runs(tmp_path, "grid")] == ["c", "a"]
    assert [run.name for run in read_runs(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="has no runs of other: submit it first"):
        read_runs(tmp_path, "other")


def test_a_run_that_sweeps_share_is_called_as_each_of_them_calls_it(tmp_path):
    run = make_run(tmp_path)
    (planned,) = planned_states(
        [SimpleNamespace(run=replace(run, name="p=2", overrides={"p": 2}))], {}
    )
    write_members(tmp_path, "first", [run])
    write_members(tmp_path, "second", [planned.run])
    (row,) = collect(read_runs(tmp_path, "second"))
    assert (row["name"], row["overrides"]) == ("p=2", {"p": 2})
    assert read_runs(tmp_path, "first") == read_runs(tmp_path) == [run]
    (tmp_path / "first.runs.json").write_text(json.dumps([run.folder.name]))  # without names
    assert read_runs(tmp_path, "first") == [run]


def test_runs_without_their_folder_are_left_out_with_a_note(tmp_path, capsys):
    runs = [make_run(tmp_path, name) for name in "ab"]
    write_members(tmp_path, "grid", runs)
    shutil.rmtree(runs[0].folder)
    assert read_runs(tmp_path, "grid") == runs[1:]
    printed = capsys.readouterr()
    assert printed.err == f"note: {runs[0].folder} is gone; `submit` makes it again\n"
    shutil.rmtree(runs[1].folder)
    with pytest.raises(ValueError, match="submit it first"):
        read_runs(tmp_path, "grid")


def test_what_ended_before_the_first_attempt_has_a_log_of_slurms(tmp_path):
    runs = [make_run(tmp_path, f"k={i}") for i in range(2)]
    submission = make_submission(runs, slurm=True)
    assert state(runs[1]) == (NOT_STARTED, "")
    submission.slurm_log(1).touch()
    note = f"ended before the first attempt, see {submission.folder}/slurm-1.log"
    assert state(runs[1]) == (NOT_STARTED, note)
    assert state(runs[0]) == (NOT_STARTED, "")


def test_changes_of_any_encoding_are_kept(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    (tmp_path / "a.txt").write_bytes(b"\xe8\n")
    git("init", "-q")
    git("add", "a.txt")
    git("commit", "-qm", "x")
    monkeypatch.setattr(code, "ROOT", tmp_path)
    assert not str(code.commit()).endswith("+")
    (tmp_path / "a.txt").write_bytes(b"\xe9\r\n")
    (tmp_path / "b.txt").touch()
    assert str(code.commit()).endswith("+")
    run = make_run(tmp_path / "out")
    write_run(run, "", code.difference())
    kept = (run.folder / "git.diff").read_bytes()
    assert b"# not in git: b.txt\n" in kept and b"-\xe8\n+\xe9\r\n" in kept


def test_time_left_of_a_running_run_goes_on_falling(tmp_path):
    from lighthouse.sweep.progress import progress_of

    run = make_run(tmp_path)
    record = {"step": 1, "time": time.time() - 100, "loss": 1.0, "tokens_per_second": 1.0}
    (run.folder / "metrics.jsonl").write_text(json.dumps(record | {"time_metrics/eta(s)": 300.0}))
    assert progress_of(run, running=False).eta == 300.0
    assert 190 < progress_of(run, running=True).eta <= 200
